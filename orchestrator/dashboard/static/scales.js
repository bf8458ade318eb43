// Where a value of a parameter, or of the metric, lies between the ends of an axis.

import { store } from "./store.js";
import { value as written } from "./format.js";

const FEWEST = 8; // values among which some can be told to lie far off
const SAMPLE = 4_000; // values by which the many are judged
const FAR = 3; // times the width of the middle eight tenths
const VALUE = "value"; // the key of the metric itself; no override has a name without a dot

/**
 * The axis of a key: numbers between `low` and `high`, on a log scale where they were drawn on one,
 * or `categories`. `at(trial)` is its number, or the place of its category; null where the trial
 * has none. `whole`: all are integers. `share(at)` is where that lies between 0 and 1,
 * `from(share)` the way back, `within(at)` the nearest that is on the axis.
 */
export function scaleOf(key) {
  const read = key === VALUE ? (t) => t.value : (t) => t.overrides[key];
  const values = known(store.list.map(read));
  if (key === VALUE) {
    // A trial that diverged is not to squeeze all others into a line: it lies at the end.
    const sound = known(store.list.filter((t) => t.state !== "failed").map(read));
    return numerical(read, sound.length > 0 ? sound : values, false, withoutOutliers);
  }
  const domain = store.summary?.space[key] ?? {};
  const numeric = values.length > 0 && values.every((v) => typeof v === "number");
  const log = Object.keys(domain).some((kind) => kind.startsWith("log"));
  if (!numeric || "choice" in domain) return categorical(read, domain.choice, values);
  return numerical(read, values, log && values.every((v) => v > 0));
}

const known = (values) => values.filter((v) => v !== undefined && v !== null);

function numerical(read, values, log, range = rangeOf) {
  const [low, high] = range(values);
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
    share: (at) => {
      if (at === null) return null;
      return width > 0 ? Math.max(0, Math.min(1, (to(at) - to(low)) / width)) : 0.5;
    },
    within: (at) => Math.max(low, Math.min(high, at)),
    from: (share) => (log ? 10 ** (to(low) + share * width) : low + share * width),
  };
}

/** The least and the greatest number. */
export function rangeOf(values) {
  // Not Math.min(...values): there may be more of them than a call takes arguments.
  let low = Infinity;
  let high = -Infinity;
  for (const v of values) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return [low, high];
}

/** The same without those that lie far off from nearly all others. */
export function withoutOutliers(values) {
  const step = Math.ceil(values.length / SAMPLE);
  const sample = values.filter((_, place) => place % step === 0).sort((a, b) => a - b);
  if (sample.length < FEWEST) return rangeOf(values);
  const [tenth, ninth] = [0.1, 0.9].map((share) => sample[Math.round(share * (sample.length - 1))]);
  const spare = FAR * (ninth - tenth);
  return rangeOf(values.filter((v) => v >= tenth - spare && v <= ninth + spare));
}

export { VALUE };
