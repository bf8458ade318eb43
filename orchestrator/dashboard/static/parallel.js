// Parallel coordinates: an axis for each parameter that differs, and one for the metric.

import { $, el } from "./dom.js";
import { number, shortNames } from "./format.js";
import { css, faint, markColour } from "./palette.js";
import { VALUE, scaleOf } from "./scales.js";
import { changed, hover, isPicked, marks, select, store } from "./store.js";
import { hideTip, showTip } from "./tip.js";

const TOP = 26;
const BOTTOM = 18;
const SIDE = 46;
const ROOM = 74; // pixels between two axes, at least
const NEAR_AXIS = 14; // pixels within which a press is meant for an axis
const REACH = 10; // and for a line
const CLICK = 4; // that a click may move

export class Parallel {
  constructor(root) {
    this.frame = $(".plane", root); // scrolls sideways where the axes have no room
    this.root = el("div", { class: "inner" });
    this.base = el("canvas", { class: "marks" });
    this.over = el("canvas", { class: "marks" });
    this.root.append(this.base, this.over);
    this.frame.replaceChildren(this.root);
    this.ranges = {}; // by key: what a brush lets through, from low to high
    this.axes = [];
    this.visible = false;
    this.seen = new IntersectionObserver((entries) => {
      this.visible = entries.at(-1).isIntersecting;
      if (this.visible) this.draw(new Set(["trials"]));
    });
    this.seen.observe(this.frame);
    this.sized = new ResizeObserver(() => this.draw(new Set(["trials"])));
    this.sized.observe(this.frame);
    this.root.addEventListener("pointermove", (event) => this.moved(event));
    this.root.addEventListener("pointerleave", () => this.left());
    this.root.addEventListener("pointerdown", (event) => this.pressed(event));
  }

  draw(kinds) {
    if (!this.visible || !store.summary || (kinds.size === 1 && kinds.has("summary"))) return;
    if (kinds.has("trials")) this.layOut();
    if (kinds.has("filter")) this.forgetCleared();
    if (!(kinds.size === 1 && kinds.has("highlight"))) this.paint(this.base, (c) => this.all(c));
    this.paint(this.over, (c) => this.outstanding(c));
    this.base.classList.toggle("back", isPicked());
  }

  layOut() {
    const keys = [...store.differing, VALUE];
    const names = { ...shortNames(store.differing), [VALUE]: store.summary.metric };
    const least = 2 * SIDE + (keys.length - 1) * ROOM;
    this.root.style.width = `${Math.max(this.frame.clientWidth, least)}px`;
    const width = this.root.clientWidth - 2 * SIDE;
    this.bottom = this.root.clientHeight - BOTTOM;
    this.axes = keys.map((key, place) => ({
      key,
      name: names[key],
      scale: scaleOf(key),
      x: SIDE + (keys.length > 1 ? (width * place) / (keys.length - 1) : width / 2),
    }));
    for (const trial of store.list)
      trial.shares = this.axes.map(({ scale }) => scale.share(scale.at(trial)));
  }

  y(share) {
    return this.bottom - share * (this.bottom - TOP);
  }

  paint(canvas, draw) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.root.clientWidth, this.root.clientHeight];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.lineJoin = "round";
    draw(context);
  }

  all(context) {
    const shown = store.list.filter((t) => t.passes).sort((a, b) => (b.rank ?? 2) - (a.rank ?? 2));
    const alpha = Math.max(0.12, Math.min(0.85, 6 / Math.sqrt(shown.length)));
    context.strokeStyle = faint(css("--unknown"), 0.12);
    for (const trial of store.list) if (!trial.passes) this.line(context, trial);
    for (const trial of shown) {
      context.strokeStyle = faint(trial.colour, alpha);
      this.line(context, trial);
    }
  }

  /** A trial's line, with a gap where it lacks a value. */
  line(context, trial) {
    context.beginPath();
    let before = null;
    trial.shares?.forEach((share, place) => {
      if (share === null) {
        before = null;
        return;
      }
      const [x, y] = [this.axes[place].x, this.y(share)];
      if (before === null) context.moveTo(x, y);
      else {
        const middle = (before + x) / 2;
        context.bezierCurveTo(middle, this.y(trial.shares[place - 1]), middle, y, x, y);
      }
      before = x;
    });
    context.stroke();
  }

  outstanding(context) {
    for (const { trial, colour, strong } of marks()) {
      context.lineWidth = strong ? 5 : 0.01;
      context.strokeStyle = css("--panel");
      this.line(context, trial);
      context.lineWidth = strong ? 2.4 : 1.6;
      context.strokeStyle = markColour(colour);
      this.line(context, trial);
    }
    this.drawAxes(context);
  }

  drawAxes(context) {
    context.font = "11px system-ui, sans-serif";
    const room = this.axes.length > 1 ? this.axes[1].x - this.axes[0].x : 200;
    this.axes.forEach(({ key, name, scale, x }, place) => {
      const last = place === this.axes.length - 1;
      context.strokeStyle = css("--axis");
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(x, TOP);
      context.lineTo(x, this.bottom);
      context.stroke();
      context.fillStyle = css("--ink");
      context.textAlign = "center";
      const shown = fitted(context, name, room - 8);
      const half = context.measureText(shown).width / 2 + 2;
      const most = this.root.clientWidth - half;
      context.fillText(shown, Math.max(half, Math.min(most, x)), 14);
      this.ticks(context, scale, x, last, room);
      this.drawBrush(context, key, scale, x);
    });
  }

  ticks(context, scale, x, last, room) {
    const texts = scale.categories
      ? scale.categories.map((text, place) => [scale.high > 0 ? place / scale.high : 0.5, text])
      : numericTicks(scale);
    context.textAlign = last ? "right" : "left";
    for (const [share, text] of texts) {
      const shown = fitted(context, text, Math.min(room - 12, 90));
      const [at, y] = [x + (last ? -5 : 5), this.y(share) + 4];
      context.lineWidth = 3;
      context.strokeStyle = faint(css("--panel"), 0.85);
      context.strokeText(shown, at, y);
      context.fillStyle = css("--muted");
      context.fillText(shown, at, y);
    }
  }

  drawBrush(context, key, scale, x) {
    const range = this.ranges[key];
    if (range === undefined) return;
    const [bottom, top] = range.map((at) => this.y(Math.max(0, Math.min(1, scale.share(at)))));
    context.fillStyle = faint(css("--accent"), 0.3);
    context.fillRect(x - 5, top, 10, bottom - top);
    context.strokeStyle = css("--accent");
    context.lineWidth = 1.2;
    context.strokeRect(x - 5, top, 10, bottom - top);
  }

  at(event) {
    const box = this.root.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  find(x, y) {
    let right = this.axes.findIndex((axis) => axis.x >= x);
    if (right < 0) right = this.axes.length - 1;
    const left = Math.max(0, right - 1);
    const [a, b] = [this.axes[left], this.axes[right]];
    const share = b.x > a.x ? Math.max(0, Math.min(1, (x - a.x) / (b.x - a.x))) : 0;
    let best = null;
    let least = REACH;
    for (const trial of store.list) {
      const [from, to] = [trial.shares?.[left] ?? null, trial.shares?.[right] ?? null];
      if (!trial.passes || from === null || to === null) continue;
      const [y0, y1] = [this.y(from), this.y(to)];
      const distance = Math.abs(y0 + (y1 - y0) * eased(share) - y);
      if (distance < least) {
        least = distance;
        best = trial.number;
      }
    }
    return best;
  }

  axisAt(x) {
    return this.axes.find((axis) => Math.abs(axis.x - x) <= NEAR_AXIS) ?? null;
  }

  moved(event) {
    if (event.pointerType === "touch" || event.buttons !== 0) return;
    const [x, y] = this.at(event);
    const found = this.find(x, y);
    this.root.style.cursor = this.axisAt(x) ? "ns-resize" : found !== null ? "pointer" : "default";
    hover(found);
    const trial = store.trials.get(found);
    if (trial) showTip(trial, event.clientX, event.clientY);
    else hideTip();
  }

  left() {
    hover(null);
    hideTip();
  }

  pressed(event) {
    const [x, y] = this.at(event);
    const axis = this.axisAt(x);
    if (axis === null) {
      const found = this.find(x, y);
      if (found !== null) select(found);
      return;
    }
    event.preventDefault();
    hideTip();
    this.root.setPointerCapture(event.pointerId);
    const share = (e) =>
      Math.max(0, Math.min(1, (this.bottom - this.at(e)[1]) / (this.bottom - TOP)));
    const start = share(event);
    const drag = (e) => {
      if (Math.abs(this.at(e)[1] - y) <= CLICK) return;
      this.brush(axis, [Math.min(start, share(e)), Math.max(start, share(e))]);
    };
    const end = (e) => {
      this.root.removeEventListener("pointermove", drag);
      if (Math.abs(this.at(e)[1] - y) <= CLICK) this.brush(axis, null);
    };
    this.root.addEventListener("pointermove", drag);
    this.root.addEventListener("pointerup", end, { once: true });
  }

  /** Let through what lies in a part of an axis; null: everything. */
  brush({ key, scale }, shares) {
    if (shares === null) {
      delete this.ranges[key];
      delete store.brush[key];
    } else {
      // What lies at an end of the axis may lie beyond it.
      const least = scale.log ? 0 : -Infinity;
      const low = shares[0] === 0 ? least : scale.from(shares[0]);
      const high = shares[1] === 1 ? Infinity : scale.from(shares[1]);
      const spare = scale.categories ? 0.2 : 0; // a category is a point, which is hard to meet
      this.ranges[key] = [low, high];
      store.brush[key] = (trial) => {
        const at = scale.at(trial);
        return at !== null && at >= low - spare && at <= high + spare;
      };
    }
    changed("filter");
  }

  forgetCleared() {
    for (const key in this.ranges) if (!(key in store.brush)) delete this.ranges[key];
  }

  close() {
    this.seen.disconnect();
    this.sized.disconnect();
  }
}

/** The middle of a Bézier line with level ends, by how far it has come. */
const eased = (share) => {
  // x(t) is not linear in t: some steps of Newton's method find the t of this x.
  let t = share;
  for (let i = 0; i < 4; i += 1) {
    const x = 1.5 * t * (1 - t) ** 2 + 1.5 * t ** 2 * (1 - t) + t ** 3;
    const slope = 1.5 * (1 - t) ** 2 + 1.5 * t ** 2;
    t = Math.max(0, Math.min(1, t - (x - share) / Math.max(slope, 0.1)));
  }
  return 3 * t ** 2 - 2 * t ** 3;
};

function numericTicks({ low, high, from, share, whole }) {
  if (!Number.isFinite(low)) return [];
  if (low === high) return [[0.5, number(low)]];
  if (whole && high - low <= 8) {
    const count = Math.round(high - low) + 1;
    return Array.from({ length: count }, (_, n) => [share(low + n), String(low + n)]);
  }
  return [0, 0.25, 0.5, 0.75, 1].map((share) => [share, number(from(share), 3)]);
}

function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let shown = text;
  while (shown.length > 1 && context.measureText(`${shown}…`).width > width)
    shown = shown.slice(0, -1);
  return `${shown}…`;
}
