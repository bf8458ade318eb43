// What is said of a trial beside the pointer.

import { $, el } from "./dom.js";
import { duration, number, shortNames, value } from "./format.js";
import { store } from "./store.js";

const MOST = 14; // parameters that are listed

export function showTip(trial, x, y, note = null) {
  const tip = $("#tip");
  const key = JSON.stringify([trial.number, trial.step, trial.shown, note]);
  if (tip.dataset.key !== key) {
    tip.dataset.key = key;
    tip.replaceChildren(...content(trial, note));
  }
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = x + 16 + width > innerWidth ? x - 16 - width : x + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - height - 4))}px`;
}

export function hideTip() {
  $("#tip").hidden = true;
}

function content(trial, note) {
  const { summary } = store;
  const keys = (store.differing.length > 0 ? store.differing : store.parameters)
    .filter((key) => key in trial.overrides)
    .slice(0, MOST);
  const names = shortNames(keys);
  const rows = keys.flatMap((key) => [
    el("dt", {}, names[key]),
    el("dd", {}, value(trial.overrides[key])),
  ]);
  const repeat = summary.repeats > 1 ? ` · repeat ${trial.repeat}` : "";
  return [
    el(
      "p",
      { class: "title" },
      el("b", {}, `trial ${trial.number}`),
      repeat,
      el("span", { class: `pill ${trial.shown.replaceAll(" ", "-")}` }, trial.shown),
    ),
    el(
      "p",
      {},
      `${summary.metric} `,
      el("b", {}, number(trial.value, 5)),
      ` at step ${trial.step}, ${duration(trial.seconds)}`,
    ),
    el("dl", {}, ...rows),
    ...(note ? [el("p", {}, note)] : []),
    ...exploits(trial),
    ...(trial.reason
      ? [el("p", { class: trial.state === "failed" ? "reason" : "muted" }, trial.reason)]
      : []),
  ];
}

function exploits(trial) {
  const last = trial.exploits.slice(-3);
  const lines = last.map(({ step, donor }) =>
    el("p", {}, `step ${step}: went on from trial ${donor}`),
  );
  const more = trial.exploits.length - last.length;
  return more > 0 ? [el("p", { class: "muted" }, `${more} earlier exploits`), ...lines] : lines;
}
