// Trials side by side: what they differ in, how they came out, their curves.

import { button, closer, copy, el, toast } from "./dom.js";
import { get } from "./api.js";
import { DASH, duration, number, value } from "./format.js";
import { markColour } from "./palette.js";
import { Series } from "./series.js";
import { better, store } from "./store.js";

export class Comparison {
  constructor(dialog, path) {
    this.dialog = dialog;
    this.path = path;
    dialog.addEventListener("close", () => this.series?.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }

  async open(numbers) {
    try {
      const trials = await Promise.all(numbers.map((n) => get(`${this.path}/trials/${n}`)));
      this.fill(trials);
    } catch (error) {
      toast(error.message, true);
    }
  }

  fill(trials) {
    const colours = trials.map((_, place) => markColour(`compare-${place % 4}`));
    const chart = el("div");
    this.dialog.replaceChildren(
      el(
        "header",
        {},
        el("h2", {}, "Side by side"),
        el(
          "label",
          {},
          el("input", {
            type: "checkbox",
            onchange: (event) => {
              this.dialog.classList.toggle("all", event.target.checked);
            },
          }),
          " also what is the same",
        ),
        closer(() => this.dialog.close()),
      ),
      el(
        "div",
        { class: "scroll" },
        el(
          "table",
          { class: "side-by-side" },
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              el("td"),
              ...trials.map((trial, place) =>
                el(
                  "th",
                  { scope: "col" },
                  el("i", { class: "swatch", style: `background:${colours[place]}` }),
                  `trial ${trial.number}`,
                ),
              ),
            ),
          ),
          el("tbody", {}, ...rows(trials)),
        ),
      ),
      chart,
    );
    this.dialog.classList.remove("all");
    this.dialog.showModal();
    this.series = new Series(chart, store.metric);
    this.series.show(
      trials.map(({ curve, exploits }, place) => ({ curve, exploits, colour: colours[place] })),
    );
  }
}

function rows(trials) {
  const union = (read) => [...new Set(trials.flatMap((trial) => Object.keys(read(trial))))];
  const found = [
    row(
      "state",
      trials.map((t) => store.trials.get(t.number)?.shown ?? t.state),
    ),
    row(
      "step",
      trials.map((t) => t.step),
    ),
    row(
      "time",
      trials.map((t) => duration(t.seconds)),
    ),
  ];
  if (trials.some((t) => t.reason))
    found.push(
      row(
        "note",
        trials.map((t) => t.reason),
      ),
    );
  found.push(group("metrics"));
  for (const name of union((t) => t.metrics)) found.push(metricRow(name, trials));
  found.push(group("parameters"));
  for (const key of union((t) => t.overrides)) {
    found.push(
      row(
        key,
        trials.map((t) => (key in t.overrides ? String(value(t.overrides[key])) : DASH)),
      ),
    );
  }
  const copies = trials.map((t) =>
    el(
      "td",
      {},
      button("Copy overrides", () => copy(t.overrides_text, "overrides")),
    ),
  );
  found.push(el("tr", {}, el("th"), ...copies));
  return found;
}

function row(name, texts) {
  const same = texts.every((text) => text === texts[0]);
  return el(
    "tr",
    { class: same ? "same" : "differs" },
    el("th", { scope: "row" }, name),
    ...texts.map((text) => el("td", {}, text)),
  );
}

/** The value of the sweep's own metric that is better is marked. */
function metricRow(name, trials) {
  const values = trials.map((trial) => trial.metrics[name] ?? null);
  const made = row(
    name,
    values.map((v) => number(v, 6)),
  );
  if (name !== store.summary.metric) return made;
  const best = values.reduce((a, b) => (better(b, a) ? b : a), null);
  values.forEach(
    (v, place) => v !== null && v === best && made.children[place + 1].classList.add("good"),
  );
  return made;
}

const group = (name) => el("tr", { class: "group" }, el("th", { colspan: 9 }, name));
