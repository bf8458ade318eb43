// A pair of axes with a canvas over it.
//
// Plotly draws axes, grids, contours, and zooms; the marks of trials are painted on two canvases of
// our own, one for all of them and one for those that stand out. A thousand curves take some
// milliseconds so, need no WebGL, which not every browser has, and light up without being redrawn.

import { corners, layout, mapOf, plotly, roughMap } from "./axes.js";
import { el } from "./dom.js";
import { css } from "./palette.js";
import { hover, isPicked, select, store } from "./store.js";
import { showTip, hideTip } from "./tip.js";

const CONFIG = { displayModeBar: false, doubleClick: "autosize", responsive: false };
const CLICK = 5; // pixels that a click may move

/**
 * `chart` has `axes()`: `{x, y, key}`, each axis `{title, low, high, log, ticks}`, a zoom is kept
 * while the key stays; also `traces()` for Plotly, made anew where `content` is another one;
 * `paint(context, map)` for all marks, `overlay(context, map)` for those that stand out, and
 * `find(map, x, y)`: the number of the trial under a pixel, or null. `isOwn`: its marks are not of
 * all trials, and never step back.
 */
export class Plane {
  constructor(root, chart) {
    this.chart = chart;
    this.plot = el("div", { class: "plot" });
    this.base = el("canvas", { class: "marks" });
    this.over = el("canvas", { class: "marks" });
    root.replaceChildren(this.plot, this.base, this.over);
    this.root = root;
    this.signature = null;
    this.visible = false;
    this.stale = true;
    this.frame = null;
    this.watch();
  }

  watch() {
    this.seen = new IntersectionObserver(
      (entries) => {
        this.visible = entries.at(-1).isIntersecting;
        if (this.visible && this.stale) this.draw();
      },
      { rootMargin: "100px" },
    );
    this.seen.observe(this.root);
    this.sized = new ResizeObserver(() => this.resize());
    this.sized.observe(this.root);
    this.root.addEventListener("pointermove", (event) => this.moved(event));
    this.root.addEventListener("pointerleave", () => this.left());
    this.root.addEventListener("pointerdown", (event) => this.pressed(event));
  }

  /** Draw what changed: all, or with `highlight` alone what stands out. */
  draw(kinds = null) {
    if (!this.visible || store.summary === null) {
      this.stale = true;
      return;
    }
    if (kinds !== null && kinds.size === 1 && kinds.has("highlight")) {
      this.repaint(true);
      return;
    }
    this.stale = false;
    this.axes = this.chart.axes();
    this.repaint();
    plotly().then((Plotly) => {
      const { axes } = this;
      const signature = JSON.stringify([axes.x, axes.y, axes.key, axes.content, css("--ink")]);
      if (this.closed || signature === this.signature) return;
      this.react(Plotly, axes, signature);
      this.repaint();
    });
  }

  react(Plotly, axes, signature) {
    const first = this.signature === null;
    this.signature = signature;
    const traces = [corners(axes), ...(axes.traces?.() ?? [])];
    Plotly.react(this.plot, traces, layout(axes), CONFIG);
    if (!first) return;
    for (const event of ["afterplot", "relayout", "relayouting"]) {
      this.plot.on(`plotly_${event}`, () => this.repaint());
    }
  }

  resize() {
    if (!this.visible || this.signature === null) return;
    requestAnimationFrame(() => {
      if (this.closed || this.root.clientWidth === 0) return;
      window.Plotly.Plots.resize(this.plot);
      this.repaint();
    });
  }

  repaint(overlayAlone = false) {
    this.baseToo = this.baseToo || !overlayAlone;
    if (this.frame !== null) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      if (this.closed) return;
      const map = this.map();
      if (this.baseToo) this.on(this.base, map, (context) => this.chart.paint(context, map));
      this.baseToo = false;
      this.on(this.over, map, (context) => this.chart.overlay(context, map));
      this.base.classList.toggle("back", isPicked() && !this.chart.isOwn);
    });
  }

  /** Paint on a cleared canvas, within the axes. */
  on(canvas, map, paint) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.root.clientWidth, this.root.clientHeight];
    if (
      canvas.width !== Math.round(width * ratio) ||
      canvas.height !== Math.round(height * ratio)
    ) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.save();
    context.beginPath();
    context.rect(map.left, map.top, map.width, map.height);
    context.clip();
    paint(context);
    context.restore();
    canvas.classList.add(this.plot._fullLayout ? "painted" : "rough");
  }

  /** From data to pixels; until Plotly has drawn the axes, about where they will be. */
  map() {
    const { _fullLayout: drawn } = this.plot;
    return drawn
      ? mapOf(drawn)
      : roughMap(this.axes, this.root.clientWidth, this.root.clientHeight);
  }

  at(event) {
    const box = this.root.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  under(event) {
    if (!this.plot._fullLayout) return null;
    const map = this.map();
    const [x, y] = this.at(event);
    const inside =
      x >= map.left - 8 &&
      x <= map.left + map.width + 8 &&
      y >= map.top - 8 &&
      y <= map.top + map.height + 8;
    return inside ? this.chart.find(map, x, y) : null;
  }

  moved(event) {
    if (event.pointerType === "touch" || event.buttons !== 0) return;
    const number = this.under(event);
    this.plot.classList.toggle("pointing", number !== null);
    hover(number);
    const trial = store.trials.get(number);
    if (trial) showTip(trial, event.clientX, event.clientY, this.chart.note?.(trial));
    else hideTip();
  }

  left() {
    hover(null);
    hideTip();
  }

  pressed(event) {
    const [x, y] = [event.clientX, event.clientY];
    // Plotly lays a cover over the page while a button is down: the release is heard there.
    window.addEventListener(
      "pointerup",
      (release) => {
        const moved = Math.hypot(release.clientX - x, release.clientY - y);
        const number = moved <= CLICK ? this.under(event) : null;
        if (number !== null) select(number);
      },
      { once: true },
    );
  }

  close() {
    this.closed = true;
    this.seen.disconnect();
    this.sized.disconnect();
    if (this.signature !== null) window.Plotly.purge(this.plot);
  }
}

/** A ring or a filled dot. */
export function dot(context, x, y, radius, colour, edge = null) {
  if (!Number.isFinite(x) || !Number.isFinite(y)) return;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = colour;
  context.fill();
  if (edge === null) return;
  context.lineWidth = 1.5;
  context.strokeStyle = edge;
  context.stroke();
}

/** The number of the trial whose point is nearest to a pixel, or null where none is near. */
export function nearest(points, x, y, reach = 14) {
  let best = null;
  let least = reach * reach;
  for (const [number, px, py] of points) {
    const distance = (px - x) ** 2 + (py - y) ** 2;
    if (distance <= least) {
      least = distance;
      best = number;
    }
  }
  return best;
}
