// When each trial ran, one lane for each of those that ran at the same time, and what ended it.

import { $, el } from "./dom.js";
import { duration } from "./format.js";
import { css, faint, markColour, stateColour } from "./palette.js";
import { Plane } from "./plane.js";
import { STATES, marks, store } from "./store.js";
import { diamond } from "./curves.js";

const GAP = 0.12; // between lanes, as a share of one
const UNITS = [
  [86_400, "d"],
  [3_600, "h"],
  [60, "min"],
  [1, "s"],
];

export class Timeline {
  constructor(root) {
    this.root = root;
    this.plane = new Plane($(".plane", root), this);
  }

  draw(kinds) {
    if (kinds.has("trials") || kinds.has("style")) this.legend();
    if (kinds.size === 1 && kinds.has("summary") && !store.live) return;
    this.plane.draw(kinds);
  }

  legend() {
    const there = STATES.filter((state) => store.summary.counts[state]);
    const entry = (colour, text, shape = "") =>
      el("li", {}, el("i", { class: shape, style: `background:${colour}` }), text);
    const exploits = store.list.some((trial) => trial.exploits.length > 0);
    $("#timeline-legend", this.root).replaceChildren(
      ...there.map((state) =>
        entry(
          stateColour(state),
          state === "stopped early" ? "stopped early by the scheduler" : state,
        ),
      ),
      ...(exploits ? [entry(css("--exploit"), "exploit", "diamond")] : []),
    );
  }

  axes() {
    this.pack();
    const span = Math.max(this.end - this.begin, 1);
    const [unit, name] = UNITS.find(([seconds]) => span >= 2 * seconds) ?? UNITS.at(-1);
    this.unit = unit;
    // The right end moves with the clock: by steps, so that axes are not drawn anew each second.
    const step = span / unit / 40;
    const high = Math.ceil(span / unit / step) * step;
    return {
      x: { title: `since the start (${name})`, low: 0, high: store.live ? high * 1.02 : high },
      y: { title: "", low: -0.5, high: Math.max(this.lanes, 1) - 0.5, hidden: true },
      key: name,
    };
  }

  /** Put each trial into the first lane that is free when it starts. */
  pack() {
    const ran = store.list
      .filter((trial) => trial.started > 0)
      .sort((a, b) => a.started - b.started);
    this.begin = ran[0]?.started ?? store.summary.started;
    this.end = this.begin;
    const free = [];
    this.bars = ran.map((trial) => {
      const end = Math.max(endOf(trial), trial.started);
      let lane = free.findIndex((until) => until <= trial.started + 0.01);
      if (lane < 0) lane = free.length;
      free[lane] = end;
      this.end = Math.max(this.end, end);
      return { trial, end, lane };
    });
    this.lanes = free.length;
    this.byNumber = new Map(this.bars.map((bar) => [bar.trial.number, bar]));
  }

  box(map, { trial, end, lane }) {
    const left = map.x((trial.started - this.begin) / this.unit);
    const right = map.x((end - this.begin) / this.unit);
    const [top, bottom] = [map.y(lane + 0.5 - GAP / 2), map.y(lane - 0.5 + GAP / 2)];
    return [left, top, Math.max(right - left, 1.5), Math.max(bottom - top, 1)];
  }

  paint(context, map) {
    for (const bar of this.bars) {
      const [left, top, width, height] = this.box(map, bar);
      const colour = stateColour(bar.trial.shown);
      context.fillStyle = faint(colour, bar.trial.passes ? 0.75 : 0.15);
      context.fillRect(left, top, width, height);
      if (!bar.trial.passes) continue;
      // What stopped it is a mark at its end: also where bars are too short to tell their colours.
      if (["stopped early", "stopped", "failed"].includes(bar.trial.state)) {
        context.fillStyle = colour;
        context.fillRect(left + width - 2.5, top - 1, 2.5, height + 2);
      }
      if (width > 26 && height > 10) this.label(context, bar.trial, left, top + height / 2);
    }
    for (const bar of this.bars) if (bar.trial.passes) this.exploits(context, map, bar);
  }

  label(context, trial, left, middle) {
    context.font = "10px system-ui, sans-serif";
    context.fillStyle = css("--panel");
    context.fillText(String(trial.number), left + 4, middle + 3.5);
  }

  /** A diamond where a trial took over from another one, and a line from that one. */
  exploits(context, map, bar) {
    for (const { step, donor } of bar.trial.exploits) {
      const x = map.x((timeAt(bar, step) - this.begin) / this.unit);
      const y = map.y(bar.lane);
      const from = this.byNumber.get(donor);
      if (from !== undefined) {
        context.strokeStyle = faint(css("--exploit"), 0.6);
        context.lineWidth = 1;
        context.beginPath();
        context.moveTo(x, map.y(from.lane));
        context.lineTo(x, y);
        context.stroke();
      }
      diamond(context, x, y, 4, css("--exploit"), css("--panel"));
    }
  }

  overlay(context, map) {
    for (const { trial, colour, strong } of marks()) {
      const bar = this.byNumber.get(trial.number);
      if (bar === undefined) continue;
      const [left, top, width, height] = this.box(map, bar);
      context.fillStyle = faint(markColour(colour), strong ? 0.55 : 0.01);
      context.fillRect(left, top, width, height);
      context.lineWidth = strong ? 2 : 1.2;
      context.strokeStyle = markColour(colour);
      context.strokeRect(left - 0.5, top - 0.5, width + 1, height + 1);
    }
  }

  find(map, x, y) {
    for (const bar of this.bars) {
      const [left, top, width, height] = this.box(map, bar);
      const spare = Math.max(0, (6 - width) / 2);
      const across = x >= left - spare && x <= left + width + spare;
      if (bar.trial.passes && across && y >= top && y <= top + height) return bar.trial.number;
    }
    return null;
  }

  note(trial) {
    const bar = this.byNumber.get(trial.number);
    return bar
      ? `ran from ${duration(trial.started - this.begin)} to ${duration(bar.end - this.begin)}`
      : null;
  }

  close() {
    this.plane.close();
  }
}

/** When a trial ended, as far as is known. */
function endOf(trial) {
  if (trial.ended !== null) return trial.ended;
  return trial.shown === "running" ? Date.now() / 1000 : trial.started + trial.seconds;
}

/** When a trial was at a step, by the seconds of its curve: it may have waited for its turns. */
function timeAt({ trial, end }, step) {
  const { curve } = trial;
  let at = curve.step.findIndex((s) => s >= step);
  if (at < 0) at = curve.step.length - 1;
  const share = (curve.seconds[at] ?? 0) / Math.max(trial.seconds, 1e-9);
  return trial.started + Math.min(1, share) * (end - trial.started);
}
