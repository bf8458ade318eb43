// The columns of the table: what each reads of a trial, how it is written, and how it sorts.

import { DASH, duration, number, shortNames, value } from "./format.js";
import { STATES, better, store } from "./store.js";

const numeric = (read, write) => ({ read, write: (t) => write(read(t)), right: true });

/** `{key, name, read, write}` for each column, by what there is to see; `right`: of numbers. */
export function columnsOf(onlyDiffering, allMetrics) {
  const { summary } = store;
  const keys = onlyDiffering && store.list.length > 1 ? store.differing : store.parameters;
  const names = shortNames(keys);
  const others = allMetrics ? store.metrics.filter((metric) => metric !== summary.metric) : [];
  const repeat = { key: "repeat", name: "repeat", ...numeric((t) => t.repeat, String) };
  return [
    { key: "number", name: "#", ...numeric((t) => t.number, String) },
    {
      key: "state",
      name: "state",
      read: (t) => STATES.indexOf(t.shown),
      write: stateText,
      pill: true,
    },
    { key: "value", name: summary.metric, strong: true, ...numeric((t) => t.value, number) },
    { key: "step", name: "step", ...numeric((t) => t.step, String) },
    ...keys.map((key) => parameter(key, names[key])),
    ...others.map((metric) => ({
      key: `m ${metric}`,
      name: metric,
      ...numeric((t) => t.metrics[metric] ?? null, number),
    })),
    { key: "seconds", name: "time", ...numeric((t) => t.seconds, duration) },
    ...(summary.repeats > 1 ? [repeat] : []),
    { key: "reason", name: "note", read: (t) => t.reason, write: (t) => t.reason, wide: true },
  ];
}

function parameter(key, name) {
  const read = (trial) => trial.overrides[key];
  const right = store.list.every((trial) => typeof (read(trial) ?? 0) === "number");
  return { key: `o ${key}`, name, title: key, read, write: (trial) => value(read(trial)), right };
}

function stateText(trial) {
  const asked = store.summary.stopping_trials.includes(trial.number);
  return asked && trial.shown === "running" ? "stopping" : trial.shown;
}

export const textOf = (column, trial) => column.write(trial) || (column.right ? DASH : "");

/** How two trials compare in a column; what lacks a value comes last, whichever way is down. */
export function orderBy(column, down) {
  const sign = down ? -1 : 1;
  return column.key === "value" ? byValue(sign) : byColumn(column.read, sign);
}

const byValue = (sign) => (a, b) => {
  if (a.value === b.value) return a.number - b.number;
  if (a.value === null || b.value === null) return a.value === null ? 1 : -1;
  return sign * (better(a.value, b.value) ? -1 : 1);
};

const byColumn = (read, sign) => (a, b) => {
  const [left, right] = [read(a), read(b)];
  const [lacksLeft, lacksRight] = [left, right].map(
    (v) => v === null || v === undefined || v === "",
  );
  if (lacksLeft || lacksRight) return lacksLeft - lacksRight || a.number - b.number;
  const bothNumbers = typeof left === "number" && typeof right === "number";
  const order = bothNumbers ? left - right : compareTexts(left, right);
  return sign * order || a.number - b.number;
};

const collator = new Intl.Collator(undefined, { numeric: true });
const compareTexts = (a, b) => collator.compare(value(a), value(b));
