// How much each parameter mattered, as bars.

import { $, el } from "./dom.js";
import { get } from "./api.js";
import { plural, shortNames } from "./format.js";
import { changed, store } from "./store.js";

const PAUSE = 5_000; // between two askings, while trials end

export class Importance {
  constructor(root, path) {
    this.root = root;
    this.path = path;
    this.asked = -Infinity;
    this.ended = -1; // trials, at the last asking
  }

  draw(kinds) {
    if (kinds.has("trials")) this.ask();
    if (!kinds.has("trials") && !kinds.has("style")) return;
    const { shares, trials } = store.importance;
    const entries = Object.entries(shares);
    const names = shortNames(store.parameters);
    const most = Math.max(...entries.map(([, share]) => share), 1e-9);
    $("#importance-note", this.root).textContent =
      entries.length > 0
        ? `PED-ANOVA over ${plural(trials, "trial")}`
        : "needs ten ended trials or more";
    $("#importance-bars", this.root).replaceChildren(
      ...entries.map(([key, share]) =>
        el(
          "li",
          { title: key },
          el("span", { class: "name" }, names[key] ?? key),
          el("span", { class: "track" }, el("i", { style: `width:${(100 * share) / most}%` })),
          el("span", { class: "share" }, `${Math.round(100 * share)}%`),
        ),
      ),
    );
  }

  async ask() {
    const ended = store.list.filter((trial) => trial.state !== "running").length;
    if (ended === this.ended) return;
    const wait = PAUSE - (performance.now() - this.asked);
    if (wait > 0) {
      clearTimeout(this.later);
      this.later = setTimeout(() => this.ask(), wait);
      return;
    }
    this.asked = performance.now();
    this.ended = ended;
    try {
      const found = await get(`${this.path}/importance`);
      if (this.closed) return;
      store.importance = found;
      changed("style");
    } catch {
      this.ended = -1; // the poll tells what is wrong; the next change asks again
    }
  }

  close() {
    this.closed = true;
    clearTimeout(this.later);
  }
}
