// What is known of the sweep on screen, and what of it is filtered, hovered and selected.
//
// Whoever changes something calls `changed(kind)`; those who draw are called once a frame with all
// kinds: summary, trials, filter, highlight, style.

import { assignColours } from "./palette.js";
import { compileFilter } from "./filter.js";

export const STATES = ["running", "finished", "stopped early", "stopped", "interrupted", "failed"];

export const store = fresh();

function fresh() {
  return {
    summary: null, // as the server has it
    metrics: [], // names of all that is measured
    metric: null, // whose curves are here
    trials: new Map(), // by number
    list: [], // the same, by number in order
    parameters: [], // keys of overrides, in the order of the search space
    differing: [], // those of them that are not the same everywhere
    importance: { trials: 0, shares: {} },
    query: "", // the filter as it was typed
    states: new Set(), // that are shown; none: all
    brush: {}, // by key: the range or the values that are let through
    hovered: null, // numbers of trials
    selected: null,
    compared: [],
    colourBy: "value",
    smooth: 0,
  };
}

const listeners = new Set();
let pending = null;

export function subscribe(listener) {
  listeners.add(listener);
}

export function changed(...kinds) {
  if (pending === null) {
    pending = new Set();
    requestAnimationFrame(() => {
      const seen = pending;
      pending = null;
      if (seen.has("trials") || seen.has("filter")) applyFilter();
      if (seen.has("trials") || seen.has("style")) assignColours(store);
      for (const listener of listeners) listener(seen);
    });
  }
  for (const kind of kinds) pending.add(kind);
}

/** Forget the sweep, and whoever listened. */
export function reset() {
  Object.assign(store, fresh());
  listeners.clear();
}

/** Take an answer of the server in. */
export function take(answer) {
  store.summary = answer.summary;
  store.metrics = answer.metrics;
  const kinds = ["summary"];
  if (answer.whole) store.trials.clear();
  for (const trial of answer.trials) store.trials.set(trial.number, trial);
  const live = answer.summary.live;
  if (answer.whole || answer.trials.length > 0 || store.live !== live) {
    store.live = live;
    derive();
    kinds.push("trials");
  }
  changed(...kinds);
}

function derive() {
  const { metric } = store.summary;
  store.list = [...store.trials.values()].sort((a, b) => a.number - b.number);
  for (const trial of store.list) {
    trial.value = trial.metrics[metric] ?? null;
    trial.shown = trial.state === "running" && !store.live ? "interrupted" : trial.state;
  }
  const keys = new Set(Object.keys(store.summary.space));
  for (const trial of store.list) for (const key in trial.overrides) keys.add(key);
  store.parameters = [...keys];
  store.differing = store.parameters.filter(differs);
  if (!store.trials.has(store.selected)) store.selected = null;
  store.compared = store.compared.filter((number) => store.trials.has(number));
}

function differs(key) {
  const first = JSON.stringify(store.list[0]?.overrides[key]);
  return store.list.some((trial) => JSON.stringify(trial.overrides[key]) !== first);
}

function applyFilter() {
  const passes = compileFilter(store.query, store);
  for (const trial of store.list) {
    trial.passes =
      (store.states.size === 0 || store.states.has(trial.shown)) &&
      Object.values(store.brush).every((allowed) => allowed(trial)) &&
      passes(trial);
  }
}

export const isFiltered = () =>
  store.query.trim() !== "" || store.states.size > 0 || Object.keys(store.brush).length > 0;

export function clearFilter() {
  store.query = "";
  store.states.clear();
  store.brush = {};
  changed("filter");
}

export function hover(number) {
  if (store.hovered === number) return;
  store.hovered = number;
  changed("highlight");
}

export function select(number) {
  store.selected = number;
  changed("highlight");
}

/** Put a trial beside others, or take it away again. */
export function toggleCompared(number) {
  const at = store.compared.indexOf(number);
  if (at >= 0) store.compared.splice(at, 1);
  else store.compared.push(number);
  changed("highlight");
}

/** The trials that stand out in every chart, those on top last: `{trial, colour, strong}`. */
export function marks() {
  const found = new Map();
  const put = (number, colour, strong) => {
    const trial = store.trials.get(number);
    if (trial === undefined) return;
    found.delete(number);
    found.set(number, { trial, colour, strong });
  };
  put(store.summary?.best?.number, "best", false);
  store.compared.forEach((number, place) => put(number, `compare-${place % 4}`, true));
  put(store.selected, "selected", true);
  put(store.hovered, "hovered", true);
  return [...found.values()];
}

/** Whether something is picked out, so that the rest may step back. */
export const isPicked = () =>
  store.hovered !== null || store.selected !== null || store.compared.length > 0;

/** Whether `a` is a better value of the sweep's metric than `b`; none is worse than any. */
export function better(a, b) {
  if (a === null || b === null) return a !== null;
  return store.summary.mode === "min" ? a < b : a > b;
}
