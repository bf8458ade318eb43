// The trials as rows: sorted, filtered, and only those in sight made.

import { $, el, setText } from "./dom.js";
import {
  STATES,
  changed,
  clearFilter,
  hover,
  isFiltered,
  select,
  store,
  toggleCompared,
} from "./store.js";
import { columnsOf, orderBy, textOf } from "./columns.js";
import { hideTip } from "./tip.js";

const ROW = 28; // pixels: as in the style sheet
const SPARE = 8; // rows above and below those in sight

export class Table {
  constructor(root, openTrial) {
    this.root = root;
    this.openTrial = openTrial;
    this.sort = { key: "value", down: false };
    this.rows = []; // trials, as sorted
    this.made = new Map(); // by number: the row in sight, and what it says
    this.head = el("thead");
    this.body = el("tbody");
    this.columns = el("colgroup");
    this.box = $("#table", root);
    this.box.replaceChildren(el("table", { role: "grid" }, this.columns, this.head, this.body));
    this.listen();
  }

  listen() {
    const { box, root } = this;
    box.addEventListener("scroll", () => this.rowsSoon(), { passive: true });
    this.sized = new ResizeObserver(() => this.rowsSoon());
    this.sized.observe(box);
    box.addEventListener("pointerover", (event) => {
      if (event.pointerType !== "touch") hover(numberOf(event));
    });
    box.addEventListener("pointerleave", () => hover(null));
    box.addEventListener("click", (event) => this.clicked(event));
    box.addEventListener("dblclick", (event) => {
      const chosen = numberOf(event);
      if (chosen !== null) this.openTrial(chosen);
    });
    box.addEventListener("keydown", (event) => this.pressed(event));
    $("#filter", root).addEventListener("input", (event) => {
      store.query = event.target.value;
      changed("filter");
    });
    $("#clear", root).addEventListener("click", () => {
      clearFilter();
      $("#filter", root).value = "";
    });
    for (const id of ["only-differing", "all-metrics"]) {
      $(`#${id}`, root).addEventListener("change", () => this.draw(new Set(["trials"])));
    }
  }

  clicked(event) {
    const key = event.target.closest("th button")?.dataset.key;
    if (key !== undefined) {
      this.sortBy(key);
      return;
    }
    const chosen = numberOf(event);
    if (chosen === null) return;
    hideTip();
    this.box.focus({ preventScroll: true }); // not the box in the row: arrow keys are to go on
    if (event.target.closest(".tick")) toggleCompared(chosen);
    else select(chosen);
  }

  sortBy(key) {
    this.sort = { key, down: this.sort.key === key ? !this.sort.down : false };
    this.draw(new Set(["trials"]));
  }

  pressed(event) {
    if (event.target !== this.box || this.rows.length === 0) return;
    const at = this.rows.findIndex((trial) => trial.number === store.selected);
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 2);
    const moves = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      PageDown: at + page,
      PageUp: at - page,
      Home: 0,
      End: this.rows.length - 1,
    };
    if (event.key in moves) {
      const to = Math.max(0, Math.min(this.rows.length - 1, moves[event.key]));
      select(this.rows[to].number);
    } else if (event.key === "Enter" && at >= 0) this.openTrial(store.selected);
    else if (event.key === " " && at >= 0) toggleCompared(store.selected);
    else return;
    event.preventDefault();
  }

  draw(kinds) {
    if (kinds.has("trials") || kinds.has("filter")) {
      this.layOut();
      this.arrange();
    }
    if (kinds.has("highlight")) {
      if (store.selected !== this.shownSelection) this.reveal(store.selected);
      this.shownSelection = store.selected;
    }
    this.fillRows();
  }

  layOut() {
    const [onlyDiffering, allMetrics] = ["only-differing", "all-metrics"].map(
      (id) => $(`#${id}`, this.root).checked,
    );
    this.shown = columnsOf(onlyDiffering, allMetrics);
    this.headings();
  }

  headings() {
    const key = JSON.stringify([this.shown.map((c) => [c.key, c.name]), this.sort]);
    if (this.head.dataset.key === key) return;
    this.head.dataset.key = key;
    const cells = this.shown.map((column) => {
      const sorted = this.sort.key === column.key;
      const order = sorted ? (this.sort.down ? "descending" : "ascending") : null;
      return el(
        "th",
        { "aria-sort": order, class: column.right ? "right" : null, scope: "col" },
        el("button", { "data-key": column.key, title: column.title ?? column.name }, column.name),
      );
    });
    const tick = el(
      "th",
      { class: "tick", scope: "col" },
      el("span", { class: "offscreen" }, "compare"),
    );
    this.head.replaceChildren(el("tr", {}, tick, ...cells));
  }

  arrange() {
    const { key, down } = this.sort;
    const order = orderBy(this.shown.find((column) => column.key === key) ?? this.shown[2], down);
    this.rows = store.list.filter((trial) => trial.passes).sort(order);
    this.widths();
    const all = store.list.length;
    setText(
      $("#shown", this.root),
      this.rows.length === all ? "" : `${this.rows.length} of ${all}`,
    );
    $("#clear", this.root).hidden = !isFiltered();
    if (store.query === "" && document.activeElement?.id !== "filter")
      $("#filter", this.root).value = "";
  }

  /** Fixed widths, by each column's longest text: only some rows are there to be measured. */
  widths() {
    const pen = document.createElement("canvas").getContext("2d");
    const { fontSize, fontFamily } = getComputedStyle(this.box);
    pen.font = `650 ${fontSize} ${fontFamily}`; // as its boldest texts are
    const wide = this.shown.map((column) => {
      let longest = "";
      for (const trial of this.rows) {
        const text = textOf(column, trial);
        if (text.length > longest.length) longest = text;
      }
      const texts = [`${column.name} ↑`, longest].map((text) => pen.measureText(text).width);
      const width = Math.max(...texts) + (column.pill ? 34 : 20);
      return Math.round(Math.max(44, Math.min(column.wide ? 460 : 180, width)));
    });
    const key = wide.join();
    if (this.columns.dataset.key === key) return;
    this.columns.dataset.key = key;
    this.columns.replaceChildren(...[28, ...wide].map((w) => el("col", { style: `width:${w}px` })));
    this.columns.parentElement.style.width = `${28 + wide.reduce((sum, w) => sum + w, 0)}px`;
  }

  rowsSoon() {
    if (this.soon) return;
    this.soon = true;
    requestAnimationFrame(() => {
      this.soon = false;
      if (this.shown) this.fillRows();
    });
  }

  /** Rows that say what they said stay the same elements: a click may be under way on them. */
  fillRows() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - SPARE);
    const count = Math.ceil(this.box.clientHeight / ROW) + 2 * SPARE;
    const last = Math.min(this.rows.length, first + count);
    const before = this.made;
    this.made = new Map();
    for (const trial of this.rows.slice(first, last)) {
      const texts = this.shown.map((column) => textOf(column, trial));
      const key = texts.join("\n") + this.head.dataset.key;
      const old = before.get(trial.number);
      const row = old?.key === key ? old.row : this.row(trial, texts);
      this.made.set(trial.number, { key, row });
      this.mark(row, trial);
    }
    const rows = [...this.made.values()].map(({ row }) => row);
    const there = [...this.body.children].slice(1, -1);
    if (rows.length !== there.length || rows.some((row, place) => row !== there[place])) {
      this.body.replaceChildren(
        el("tr", { class: "space" }),
        ...rows,
        el("tr", { class: "space" }),
      );
    }
    this.body.firstChild.style.height = `${first * ROW}px`;
    this.body.lastChild.style.height = `${(this.rows.length - last) * ROW}px`;
  }

  row(trial, texts) {
    const box = el("input", {
      type: "checkbox",
      tabindex: "-1",
      "aria-label": `compare trial ${trial.number}`,
    });
    return el(
      "tr",
      { "data-number": trial.number },
      el("td", { class: "tick" }, box),
      ...this.shown.map((column, place) => cell(column, trial, texts[place])),
    );
  }

  mark(row, trial) {
    const { hovered, selected, compared, summary } = store;
    row.classList.toggle("hovered", trial.number === hovered);
    row.classList.toggle("selected", trial.number === selected);
    row.classList.toggle("best", trial.number === summary.best?.number);
    row.setAttribute("aria-selected", String(trial.number === selected));
    $("input", row).checked = compared.includes(trial.number);
  }

  /** Scroll a trial that was selected elsewhere into sight. */
  reveal(chosen) {
    const at = this.rows.findIndex((trial) => trial.number === chosen);
    if (at < 0) return;
    const head = this.head.offsetHeight;
    const [top, bottom] = [at * ROW, (at + 1) * ROW + head];
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (bottom > this.box.scrollTop + this.box.clientHeight) {
      this.box.scrollTop = bottom - this.box.clientHeight;
    }
  }

  close() {
    this.sized.disconnect();
  }
}

function cell(column, trial, text) {
  if (column.pill) {
    return el("td", {}, el("span", { class: `pill ${trial.shown.replaceAll(" ", "-")}` }, text));
  }
  const broken = column.wide && trial.shown === "failed";
  const classes = [
    column.right && "right",
    column.strong && "strong",
    column.wide && "wide",
    broken && "broken",
  ].filter(Boolean);
  return el(
    "td",
    { class: classes.join(" ") || null, title: text.length > 18 ? text : null },
    text,
  );
}

function numberOf(event) {
  const row = event.target.closest("tr[data-number]");
  return row ? Number(row.dataset.number) : null;
}

/** Buttons that show the trials of one state, with how many there are. */
export function stateChips(root) {
  const { counts } = store.summary;
  const there = STATES.filter((state) => counts[state] || store.states.has(state));
  const key = JSON.stringify([there.map((s) => [s, counts[s]]), [...store.states]]);
  if (root.dataset.key === key) return;
  root.dataset.key = key;
  root.replaceChildren(
    ...there.map((state) =>
      el(
        "button",
        {
          class: `chip ${state.replaceAll(" ", "-")}`,
          "aria-pressed": String(store.states.has(state)),
          onclick: () => {
            if (!store.states.delete(state)) store.states.add(state);
            changed("filter");
          },
        },
        el("i"),
        `${state} `,
        el("b", {}, counts[state] ?? 0),
      ),
    ),
  );
}
