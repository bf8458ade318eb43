// What is said of the whole sweep: in the header that stays, and in the cards below it.

import { $, el, fillList, setText } from "./dom.js";
import { DASH, clock, duration, number, plural, value } from "./format.js";
import { STATES, store } from "./store.js";

/** A sweep's state in a word, also on the way to another one. */
export const stateOf = ({ state, starting, stopping }) =>
  starting ? "starting" : stopping ? "stopping" : state;

export function fillHead(summary) {
  $("#status").hidden = false;
  const state = $("#state");
  setText(state, stateOf(summary));
  state.className = `pill ${summary.starting ? "running" : summary.state}`;
  const percent = Math.round(100 * summary.progress);
  $("#bar").setAttribute("aria-valuenow", String(percent));
  $("#bar i").style.width = `${percent}%`;
  setText($("#progress"), `${percent}%`);
  $("#eta").parentElement.hidden = !summary.live;
  setText($("#eta"), duration(summary.eta));
  setText($("#best-name"), `best ${summary.metric}`);
  setText($("#best-value"), summary.best === null ? DASH : number(summary.best.value, 5));
  $("#stop-sweep").hidden = !summary.live || summary.stopping;
  $("#resume").hidden = !summary.resumable;
}

export function fillFacts(summary) {
  fillBest(summary);
  fillTrials(summary);
  fillTime(summary);
  fillSearch(summary);
  const told = [
    summary.error,
    ...summary.unreadable.map((name) => `${name}: cannot be read`),
  ].filter(Boolean);
  $("#sweep-error").hidden = told.length === 0;
  setText($("#sweep-error"), told.slice(0, 3).join(" · "));
}

function fillBest({ best, metric, start }) {
  const trial = best && store.trials.get(best.number);
  setText($("#best-trial"), best === null ? DASH : `${metric} ${number(best.value, 6)}`);
  $("#best-overrides").value = best?.overrides_text ?? "";
  $("#best-command").value = best?.command ?? "";
  $("#copy-overrides").disabled = best === null;
  $("#copy-command").disabled = !best?.command;
  const parts = best === null ? ["no trial has a value yet"] : [`trial ${best.number}`];
  if (best && best.repeats > 1) parts.push(`mean of ${best.repeats} repeats`);
  if (trial && trial.exploits.length > 0) parts.push("its values since its last exploit");
  if (best && start) parts.push(`in ${start.directory} on ${start.host}`);
  setText($("#best-note"), parts.join(" · "));
}

function fillTrials({ counts, trials, repeats }) {
  const there = STATES.filter((state) => counts[state]);
  const begun = there.reduce((sum, state) => sum + counts[state], 0);
  const total = Math.max(trials * repeats, begun);
  const key = JSON.stringify([counts, total]);
  const box = $("#trials-shares");
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  setText($("#trials-figure"), `${begun} of ${total}`);
  const kind = (state) => state.replaceAll(" ", "-");
  box.replaceChildren(
    ...there.map((state) =>
      el("i", {
        class: kind(state),
        style: `flex:${counts[state]}`,
        title: `${counts[state]} ${state}`,
      }),
    ),
    el("i", { class: "rest", style: `flex:${total - begun}` }),
  );
  $("#trials-legend").replaceChildren(
    ...there.map((state) =>
      el("li", {}, el("i", { class: kind(state) }), `${counts[state]} ${state}`),
    ),
  );
}

function fillTime({ live, elapsed, eta, started, minutes, concurrent, resources, cpus, gpus }) {
  const hosts = Object.entries(resources.hosts);
  const each = [plural(cpus, "CPU"), gpus ? plural(gpus, "GPU") : null].filter(Boolean).join(", ");
  const used = [
    plural(resources.cpus, "CPU"),
    resources.gpus ? plural(resources.gpus, "GPU") : null,
  ]
    .filter(Boolean)
    .join(", ");
  fillList($("#time-list"), [
    [live ? "running for" : "ran for", duration(elapsed)],
    ["left", live ? `about ${duration(eta)}` : null],
    ["budget", minutes ? duration(minutes * 60) : null],
    ["started", clock(started)],
    ["in use", live ? `${used} by ${plural(resources.trials, "trial")}` : "nothing"],
    ["at once", `${plural(concurrent, "trial")} of ${each}`],
    [
      "hosts",
      hosts.map(([host, count]) => (hosts.length > 1 ? `${host} (${count})` : host)).join(", "),
    ],
  ]);
}

function fillSearch({ task, metric, mode, search, scheduler, trials, repeats, steps, space }) {
  fillList($("#search-list"), [
    ["task", task],
    ["metric", `${metric}, the ${mode === "min" ? "lower" : "higher"} the better`],
    ["search", `${search}, ${plural(trials, "configuration")}`],
    ["repeats", repeats > 1 ? repeats : null],
    ["scheduler", scheduler],
    ["steps", steps],
  ]);
  fillList(
    $("#space-list"),
    Object.entries(space).map(([key, domain]) => [
      key,
      Object.entries(domain)
        .map(([kind, limits]) => `${kind} ${value(limits)}`)
        .join(", "),
    ]),
  );
}
