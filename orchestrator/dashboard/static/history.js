// Each trial's value in the order of the trials, and the best so far of those that finished.

import { $ } from "./dom.js";
import { css, faint } from "./palette.js";
import { axisOf } from "./axes.js";
import { Plane, nearest } from "./plane.js";
import { VALUE, scaleOf } from "./scales.js";
import { better, store } from "./store.js";
import { overlayPoints, paintPoints, shownPoints } from "./slices.js";

export class History {
  constructor(root) {
    this.root = root;
    this.plane = new Plane($(".plane", root), this);
    $("#history-log", root).addEventListener("change", () => this.plane.draw());
  }

  draw(kinds) {
    if (kinds.size === 1 && kinds.has("summary")) return;
    this.plane.draw(kinds);
  }

  axes() {
    const log = $("#history-log", this.root).checked;
    this.scale = scaleOf(VALUE);
    const y = axisOf(this.scale, store.summary.metric);
    const positive = store.list.map((t) => t.value).filter((v) => v !== null && v > 0);
    const low = log && y.low <= 0 ? positive.reduce((a, b) => Math.min(a, b), 1) : y.low;
    const last = Math.max(1, store.list.at(-1)?.number ?? 1);
    return { x: { title: "trial", low: 0, high: last }, y: { ...y, low, log }, key: String(log) };
  }

  paint(context, map) {
    paintPoints(context, this.place(map));
    context.strokeStyle = faint(css("--best"), 0.9);
    context.lineWidth = 1.6;
    context.beginPath();
    let best = null;
    for (const trial of store.list) {
      if (trial.state !== "finished" || trial.value === null) continue;
      const [x, y] = [map.x(trial.number), best === null ? map.y(trial.value) : map.y(best)];
      if (best === null) context.moveTo(x, y);
      else context.lineTo(x, y);
      if (best === null || better(trial.value, best)) best = trial.value;
      context.lineTo(x, map.y(best));
    }
    if (best !== null) context.lineTo(map.left + map.width, map.y(best));
    context.stroke();
  }

  overlay(context, map) {
    overlayPoints(context, this.place(map));
  }

  place(map) {
    return ({ number, value }) => [
      map.x(number),
      value === null ? NaN : map.y(this.scale.within(value)),
    ];
  }

  find(map, x, y) {
    return nearest(shownPoints(this.place(map)), x, y);
  }

  close() {
    this.plane.close();
  }
}
