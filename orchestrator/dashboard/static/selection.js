// The bar at the foot of the page: the trial that is selected, and those that are compared.

import { button, closer, el } from "./dom.js";
import { number, shortNames, value } from "./format.js";
import { changed, select, store, toggleCompared } from "./store.js";

export class Selection {
  constructor(root, open, compare) {
    this.root = root;
    this.open = open;
    this.compare = compare;
  }

  draw() {
    const trial = store.trials.get(store.selected);
    this.root.hidden = trial === undefined && store.compared.length === 0;
    if (this.root.hidden) return;
    const key = JSON.stringify([
      trial?.number,
      trial?.shown,
      trial?.value,
      trial?.step,
      store.compared,
    ]);
    if (this.root.dataset.key === key) return;
    this.root.dataset.key = key;
    this.root.replaceChildren(...(trial ? this.chosen(trial) : []), ...this.compared());
  }

  chosen(trial) {
    const names = shortNames(store.differing);
    const values = store.differing
      .filter((k) => k in trial.overrides)
      .map((k) => `${names[k]}=${value(trial.overrides[k])}`);
    const beside = store.compared.includes(trial.number);
    return [
      el(
        "span",
        { class: "title" },
        el("i", { class: "swatch selected" }),
        `trial ${trial.number}`,
        el("span", { class: `pill ${trial.shown.replaceAll(" ", "-")}` }, trial.shown),
      ),
      el("span", {}, `${store.summary.metric} `, el("b", {}, number(trial.value, 5))),
      el("span", { class: "values" }, values.join("  ")),
      button("Details", () => this.open(trial.number), "primary details"),
      button(beside ? "Do not compare" : "Compare", () => toggleCompared(trial.number)),
      closer(() => select(null)),
    ];
  }

  compared() {
    if (store.compared.length === 0) return [];
    const list = store.compared.map((n, place) =>
      el(
        "button",
        {
          class: "chip",
          title: "take it away",
          onclick: () => toggleCompared(n),
        },
        el("i", { class: `compare-${place % 4}` }),
        String(n),
      ),
    );
    return [
      el(
        "span",
        { class: "compared" },
        "comparing ",
        ...list,
        el(
          "button",
          { class: "primary", disabled: store.compared.length < 2, onclick: () => this.compare() },
          "Side by side",
        ),
        el(
          "button",
          {
            class: "quiet",
            onclick: () => {
              store.compared = [];
              changed("highlight");
            },
          },
          "Clear",
        ),
      ),
    ];
  }
}
