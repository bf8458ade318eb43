// The trials that are shown, as a file for other programs.

import { el } from "./dom.js";
import { store } from "./store.js";

export function saveCsv(name) {
  const heads = ["trial", "state", "step", "seconds", "started", "host"];
  const rows = store.list
    .filter((trial) => trial.passes)
    .map((trial) => [
      ...[trial.number, trial.shown, trial.step, trial.seconds, trial.started, trial.host],
      ...store.metrics.map((metric) => trial.metrics[metric]),
      ...store.parameters.map((key) => trial.overrides[key]),
      trial.reason,
    ]);
  const lines = [[...heads, ...store.metrics, ...store.parameters, "note"], ...rows];
  const text = lines.map((line) => line.map(field).join(",")).join("\r\n");
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** A value as RFC 4180 has it. */
function field(given) {
  if (given === null || given === undefined) return "";
  const text = typeof given === "object" ? JSON.stringify(given) : String(given);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
