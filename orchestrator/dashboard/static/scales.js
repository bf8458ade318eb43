// Where a value of a parameter, or of the metric, lies between the ends of an axis.

import { store } from "./store.js";
import { value as written } from "./format.js";

const VALUE = "value"; // the key of the metric itself; no override has a name without a dot

/**
 * The axis of a key: numbers between `low` and `high`, on a log scale where they were drawn on one,
 * or `categories`. `at(trial)` is its number, or the place of its category; null where the trial
 * has none. `whole`: all are integers. `share(at)` is where that lies between 0 and 1,
 * `from(share)` the way back.
 */
export function scaleOf(key) {
  const read = key === VALUE ? (t) => t.value : (t) => t.overrides[key];
  const values = store.list.map(read).filter((v) => v !== undefined && v !== null);
  const domain = store.summary?.space[key] ?? {};
  const numeric = values.length > 0 && values.every((v) => typeof v === "number");
  const log = Object.keys(domain).some((kind) => kind.startsWith("log"));
  if (!numeric || "choice" in domain) return categorical(read, domain.choice, values);
  return numerical(read, values, log && values.every((v) => v > 0));
}

function numerical(read, values, log) {
  // Not Math.min(...values): there may be more of them than a call takes arguments.
  let low = Infinity;
  let high = -Infinity;
  for (const v of values) {
    low = Math.min(low, v);
    high = Math.max(high, v);
  }
  const at = (trial) => {
    const given = read(trial);
    return typeof given === "number" ? given : null;
  };
  return {
    low,
    high,
    log,
    categories: null,
    whole: values.every(Number.isInteger),
    at,
    label: (t) => written(read(t)),
    ...between(low, high, log),
  };
}

function categorical(read, choice, values) {
  const name = (v) => (v === undefined ? null : written(v));
  const categories = [...new Set([...(choice ?? []), ...values].map(name))];
  if (choice === undefined) categories.sort();
  const places = new Map(categories.map((category, place) => [category, place]));
  const label = (trial) => name(read(trial));
  const high = Math.max(categories.length - 1, 0);
  return {
    low: 0,
    high,
    log: false,
    categories,
    label,
    at: (t) => places.get(label(t)) ?? null,
    ...between(0, high, false),
  };
}

function between(low, high, log) {
  const to = log ? Math.log10 : (v) => v;
  const width = to(high) - to(low);
  return {
    share: (at) => (at === null ? null : width > 0 ? (to(at) - to(low)) / width : 0.5),
    from: (share) => (log ? 10 ** (to(low) + share * width) : low + share * width),
  };
}

export { VALUE };
