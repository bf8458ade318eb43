// The text of the filter: words, and terms such as `lr<0.01`, `state=failed`, `step>=40`.

import { value as written } from "./format.js";

const TERM = /^([\w.-]+?)(<=|>=|!=|<|>|=|:)(.*)$/;

/** A function that says of a trial whether it passes. Terms are split at spaces; all must hold. */
export function compileFilter(text, store) {
  const terms = (text.match(/[^\s"]*"[^"]*"|\S+/g) ?? []).map((term) => compile(term, store));
  return (trial) => terms.every((term) => term(trial));
}

function compile(term, store) {
  const found = TERM.exec(term);
  const read = found && reader(found[1], store);
  if (!read) {
    const word = unquoted(term).toLowerCase();
    return (trial) => everything(trial).includes(word);
  }
  const [, , sign, right] = found;
  return comparison(read, sign, unquoted(right));
}

/** Reads a column of a trial by its name, or by the end of a parameter's name. */
function reader(name, store) {
  const own = {
    number: (t) => t.number,
    trial: (t) => t.number,
    state: (t) => t.shown,
    step: (t) => t.step,
    seconds: (t) => t.seconds,
    host: (t) => t.host,
    value: (t) => t.value,
    repeat: (t) => t.repeat,
    configuration: (t) => t.configuration,
    reason: (t) => t.reason,
  }[name];
  if (own) return own;
  if (store.metrics.includes(name)) return (t) => t.metrics[name];
  const key =
    store.parameters.find((k) => k === name) ??
    store.parameters.find((k) => k.endsWith(`.${name}`));
  return key === undefined ? null : (t) => t.overrides[key];
}

function comparison(read, sign, right) {
  const limit = Number(right);
  const isNumber = right !== "" && !Number.isNaN(limit);
  const text = right.toLowerCase();
  const equal = (given) =>
    isNumber && typeof given === "number" ? given === limit : asText(given) === text;
  switch (sign) {
    case "=":
      return (trial) => equal(read(trial));
    case "!=":
      return (trial) => !equal(read(trial));
    case ":":
      return (trial) => asText(read(trial)).includes(text);
    case "<":
      return (trial) => known(read(trial)) && read(trial) < limit;
    case "<=":
      return (trial) => known(read(trial)) && read(trial) <= limit;
    case ">":
      return (trial) => known(read(trial)) && read(trial) > limit;
    default:
      return (trial) => known(read(trial)) && read(trial) >= limit;
  }
}

const known = (given) => typeof given === "number";
const unquoted = (text) => text.replaceAll('"', "");
const asText = (given) =>
  (typeof given === "string" ? given : (JSON.stringify(given) ?? "")).toLowerCase();

function everything(trial) {
  const values = Object.entries(trial.overrides).map(([key, given]) => `${key} ${written(given)}`);
  return [`#${trial.number}`, trial.shown, trial.host, trial.reason, ...values]
    .join(" ")
    .toLowerCase();
}
