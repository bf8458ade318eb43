// The metric over each parameter, one small chart for each, the most important first.

import { $, el } from "./dom.js";
import { shortNames } from "./format.js";
import { css, faint, markColour } from "./palette.js";
import { axisOf } from "./axes.js";
import { Plane, dot, nearest } from "./plane.js";
import { VALUE, scaleOf } from "./scales.js";
import { marks, store } from "./store.js";

const FEW = 6; // charts that are shown at first

export class Slices {
  constructor(root) {
    this.root = root;
    this.slices = [];
    for (const id of ["slices-log", "slices-all"]) {
      $(`#${id}`, root).addEventListener("change", () => this.draw(new Set(["trials"])));
    }
  }

  draw(kinds) {
    if (kinds.has("trials") || kinds.has("style")) this.arrange();
    if (kinds.size === 1 && kinds.has("summary")) return;
    for (const slice of this.slices) slice.plane.draw(kinds);
  }

  arrange() {
    const { shares } = store.importance;
    const keys = [...store.differing].sort((a, b) => (shares[b] ?? 0) - (shares[a] ?? 0));
    const shown = $("#slices-all", this.root).checked ? keys : keys.slice(0, FEW);
    $("#slices-all", this.root).parentElement.hidden = keys.length <= FEW;
    const log = $("#slices-log", this.root).checked;
    if (shown.join("\n") !== this.slices.map((s) => s.key).join("\n")) {
      this.close();
      const boxes = shown.map(() => el("div", { class: "plane low" }));
      $(".many", this.root).replaceChildren(...boxes);
      this.slices = shown.map((key, place) => new Slice(boxes[place], key));
    }
    for (const slice of this.slices) slice.log = log;
  }

  close() {
    for (const slice of this.slices) slice.plane.close();
    this.slices = [];
  }
}

/** Points of all trials over one parameter. */
class Slice {
  constructor(root, key) {
    this.key = key;
    this.log = false;
    this.plane = new Plane(root, this);
  }

  axes() {
    this.x = scaleOf(this.key);
    this.y = scaleOf(VALUE);
    const title = shortNames(store.parameters)[this.key];
    const low = this.log ? lowestPositive() : this.y.low;
    const y = axisOf({ ...this.y, low, log: this.log }, store.summary.metric);
    return { x: axisOf(this.x, title), y, key: `${this.key} ${this.log}` };
  }

  point(map, trial) {
    const x = this.x.at(trial);
    if (x === null || trial.value === null) return [NaN, NaN];
    return [map.x(x + (this.x.categories ? jitter(trial) : 0)), map.y(this.y.within(trial.value))];
  }

  paint(context, map) {
    paintPoints(context, (trial) => this.point(map, trial));
  }

  overlay(context, map) {
    overlayPoints(context, (trial) => this.point(map, trial));
  }

  find(map, x, y) {
    return nearest(
      shownPoints((trial) => this.point(map, trial)),
      x,
      y,
    );
  }
}

/** Categories lie on a line: what is on it is spread a little, each trial always alike. */
export const jitter = (trial) => (((trial.number * 0.618034) % 1) - 0.5) * 0.4;

const lowestPositive = () =>
  store.list.reduce(
    (least, { value }) => (value !== null && value > 0 && value < least ? value : least),
    Infinity,
  );

export function paintPoints(context, place) {
  const shown = store.list.filter((t) => t.passes).sort((a, b) => (b.rank ?? 2) - (a.rank ?? 2));
  const radius = shown.length > 300 ? 2.5 : 3.5;
  const alpha = shown.length > 300 ? 0.7 : 0.9;
  for (const trial of store.list) {
    if (!trial.passes) dot(context, ...place(trial), radius - 1, faint(css("--unknown"), 0.25));
  }
  for (const trial of shown) dot(context, ...place(trial), radius, faint(trial.colour, alpha));
}

export function overlayPoints(context, place) {
  for (const { trial, colour, strong } of marks()) {
    dot(context, ...place(trial), strong ? 6 : 4.5, markColour(colour), css("--panel"));
  }
}

export const shownPoints = (place) =>
  store.list.filter((trial) => trial.passes).map((trial) => [trial.number, ...place(trial)]);
