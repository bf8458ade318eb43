// The learning curves of all trials: live, smoothed, on log axes.

import { $, el, fillSelect } from "./dom.js";
import { number, shortNames } from "./format.js";
import { Plane, dot } from "./plane.js";
import { css, faint, markColour, shades } from "./palette.js";
import { STATES, changed, marks, store } from "./store.js";
import { rangeOf, scaleOf, withoutOutliers } from "./scales.js";
import { hue, stateColour } from "./palette.js";

const REACH = 18; // pixels around the pointer in which a curve is found

export function makeCurves(root, chooseMetric) {
  const chart = new Curves(root);
  $("#metric", root).addEventListener("change", (event) => chooseMetric(event.target.value));
  for (const id of ["curve-x", "log-x", "log-y", "outliers"]) {
    $(`#${id}`, root).addEventListener("change", () => chart.plane.draw());
  }
  $("#smooth", root).addEventListener("input", (event) => {
    store.smooth = Number(event.target.value);
    chart.plane.draw();
  });
  $("#colour-by", root).addEventListener("change", (event) => {
    store.colourBy = event.target.value;
    changed("style");
  });
  return chart;
}

class Curves {
  constructor(root) {
    this.root = root;
    this.plane = new Plane($(".plane", root), this);
  }

  draw(kinds) {
    if (kinds.has("trials") || kinds.has("style") || kinds.has("summary")) this.controls();
    if (kinds.size === 1 && kinds.has("summary")) return;
    this.plane.draw(kinds);
  }

  controls() {
    const names = shortNames(store.differing);
    const metrics = store.metrics.length > 0 ? store.metrics : [store.summary.metric];
    fillSelect(
      $("#metric", this.root),
      metrics.map((m) => [m, m]),
      store.metric,
    );
    fillSelect(
      $("#colour-by", this.root),
      [
        ["value", store.summary.metric],
        ["state", "state"],
        ...store.differing.map((key) => [key, names[key]]),
      ],
      store.colourBy,
    );
    fillScale($("#colour-scale", this.root));
  }

  axes() {
    this.over = $("#curve-x", this.root).value;
    const [logX, logY, all] = ["log-x", "log-y", "outliers"].map(
      (id) => $(`#${id}`, this.root).checked,
    );
    const [xs, ys] = [[], []];
    for (const trial of store.list) {
      const { value } = trial.curve;
      const over = trial.curve[this.over];
      for (let i = 0; trial.passes && i < value.length; i += 1) {
        if (value[i] === null || over[i] === null) continue;
        if (!(logX && over[i] <= 0)) xs.push(over[i]);
        if (!(logY && value[i] <= 0)) ys.push(value[i]);
      }
    }
    const shown = ([low, high], log) => (low <= high ? [low, high] : [log ? 1 : 0, log ? 10 : 1]);
    const [left, right] = shown(rangeOf(xs), logX);
    const [low, high] = shown(all || logY ? rangeOf(ys) : withoutOutliers(ys), logY);
    return {
      x: { title: this.over, low: left, high: right, log: logX },
      y: { title: store.metric, low, high, log: logY },
      key: `${this.over} ${store.metric} ${logX} ${logY} ${all}`,
    };
  }

  paint(context, map) {
    const shown = store.list.filter((trial) => trial.passes);
    const hidden = store.list.filter((trial) => !trial.passes);
    const alpha = Math.max(0.25, Math.min(0.95, 9 / Math.sqrt(shown.length)));
    context.lineJoin = "round";
    context.lineWidth = 1;
    context.strokeStyle = faint(css("--unknown"), 0.18);
    context.beginPath();
    for (const trial of hidden) this.trace(context, map, trial, 0);
    context.stroke();
    context.lineWidth = shown.length > 200 ? 1 : 1.4;
    // The worst first, so that the best lie on top.
    shown.sort((a, b) => (b.rank ?? 2) - (a.rank ?? 2));
    for (const trial of shown) {
      context.strokeStyle = faint(trial.colour, alpha);
      context.beginPath();
      this.trace(context, map, trial, store.smooth);
      context.stroke();
      if (trial.shown === "running") this.end(context, map, trial, 2, trial.colour);
    }
  }

  overlay(context, map) {
    context.lineJoin = "round";
    for (const { trial, colour, strong } of marks()) {
      const ink = markColour(colour);
      if (strong && store.smooth > 0) this.stroke(context, map, trial, 0, faint(ink, 0.35), 1);
      if (strong) this.stroke(context, map, trial, store.smooth, css("--panel"), 5);
      this.stroke(context, map, trial, store.smooth, ink, strong ? 2.4 : 1.6);
      this.end(context, map, trial, 3.5, ink);
      if (strong) this.exploits(context, map, trial, ink);
    }
  }

  stroke(context, map, trial, weight, colour, width) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    this.trace(context, map, trial, weight);
    context.stroke();
  }

  /** The path of a curve, with a gap where it has no value. */
  trace(context, map, trial, weight) {
    const xs = trial.curve[this.over];
    const ys = smoothed(trial, weight);
    let open = false;
    for (let i = 0; i < ys.length; i += 1) {
      const y = ys[i] === null ? NaN : map.y(ys[i]);
      const x = xs[i] === null ? NaN : map.x(xs[i]);
      if (!Number.isFinite(x) || !Number.isFinite(y)) open = false;
      else if (open) context.lineTo(x, y);
      else {
        context.moveTo(x, y);
        open = true;
      }
    }
  }

  end(context, map, trial, radius, colour) {
    const ys = smoothed(trial, store.smooth);
    let last = ys.length - 1;
    while (last >= 0 && ys[last] === null) last -= 1;
    if (last < 0) return;
    dot(
      context,
      map.x(trial.curve[this.over][last]),
      map.y(ys[last]),
      radius,
      colour,
      css("--panel"),
    );
  }

  /** Diamonds where the trial went on from another one's weights. */
  exploits(context, map, trial, colour) {
    for (const { step } of trial.exploits) {
      const at = lastBefore(trial.curve.step, step);
      if (at < 0) continue;
      const [x, y] = [map.x(trial.curve[this.over][at]), map.y(smoothed(trial, store.smooth)[at])];
      diamond(context, x, y, 5, css("--exploit"), colour);
    }
  }

  find(map, x, y) {
    const dataX = map.dataX(x);
    let best = null;
    let least = REACH;
    for (const trial of store.list) {
      if (!trial.passes) continue;
      const distance = this.distance(map, trial, dataX, x, y);
      if (distance < least) {
        least = distance;
        best = trial.number;
      }
    }
    return best;
  }

  /** How far a curve runs above or below the pointer, or how far its ends are. */
  distance(map, trial, dataX, x, y) {
    const xs = trial.curve[this.over];
    const ys = smoothed(trial, store.smooth);
    const left = lastBefore(xs, dataX);
    const right = left + 1;
    if (left < 0 || right >= xs.length) {
      const end = left < 0 ? 0 : xs.length - 1;
      if (end < 0 || ys[end] === null || ys[end] === undefined) return Infinity;
      return Math.hypot(map.x(xs[end]) - x, map.y(ys[end]) - y);
    }
    if (ys[left] === null || ys[right] === null) return Infinity;
    const [x0, x1] = [map.x(xs[left]), map.x(xs[right])];
    const [y0, y1] = [map.y(ys[left]), map.y(ys[right])];
    // A log axis has no place for 0, at which a curve may begin.
    const share = Number.isFinite(x0) && x1 > x0 ? (x - x0) / (x1 - x0) : 1;
    const slope = Number.isFinite(x0) && x1 > x0 ? (y1 - y0) / (x1 - x0) : 0;
    return Math.abs(y0 + (y1 - y0) * share - y) / Math.hypot(1, slope);
  }

  close() {
    this.plane.close();
  }
}

/** The exponential mean of a curve, corrected for its start; kept until the trial changes. */
function smoothed(trial, weight) {
  const { value } = trial.curve;
  if (weight === 0) return value;
  if (trial.smoothed?.weight === weight) return trial.smoothed.values;
  let mean = 0;
  let seen = 0;
  const values = value.map((v) => {
    if (v === null) return null;
    mean = weight * mean + (1 - weight) * v;
    seen += 1;
    return mean / (1 - weight ** seen);
  });
  trial.smoothed = { weight, values };
  return values;
}

/** The place of the last number that is not above `limit`; -1 where there is none. */
export function lastBefore(sorted, limit) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= limit) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

export function diamond(context, x, y, size, colour, edge) {
  if (!Number.isFinite(x) || !Number.isFinite(y)) return;
  context.beginPath();
  context.moveTo(x, y - size);
  context.lineTo(x + size, y);
  context.lineTo(x, y + size);
  context.lineTo(x - size, y);
  context.closePath();
  context.fillStyle = colour;
  context.fill();
  context.lineWidth = 1.2;
  context.strokeStyle = edge;
  context.stroke();
}

/** What the colours of the curves mean. */
function fillScale(root) {
  const by = store.colourBy;
  const swatch = (colour, text) =>
    el("span", { class: "key" }, el("i", { style: `background:${colour}` }), text);
  if (by === "state") {
    const there = STATES.filter((state) => store.summary.counts[state]);
    root.replaceChildren(...there.map((state) => swatch(stateColour(state), state)));
    return;
  }
  const scale = scaleOf(by);
  if (by !== "value" && scale.categories) {
    root.replaceChildren(...scale.categories.map((text, place) => swatch(hue(place), text)));
    return;
  }
  const ramp = by === "value" ? shades() : [...shades()].reverse();
  const ends =
    by === "value" ? ["best", "worst, by rank"] : [number(scale.low), number(scale.high)];
  const gradient = el("i", {
    class: "ramp",
    style: `background:linear-gradient(90deg,${ramp.join(",")})`,
  });
  root.replaceChildren(
    el("span", { class: "key" }, ends[0], gradient, ends[1]),
    swatch(css("--failed"), "failed"),
  );
}
