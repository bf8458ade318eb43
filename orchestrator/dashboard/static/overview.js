// All runs of the storage, each with its stages and its sweeps.

import { $, el, setText } from "./dom.js";
import { Poll, get } from "./api.js";
import { stateOf } from "./facts.js";
import { DASH, clock, duration, number, plural } from "./format.js";

const PAUSE = 3_000;
const STAGES = ["prepare", "tune", "train", "evaluate"];

export class Overview {
  constructor(main, first) {
    main.replaceChildren($("#overview-page").content.cloneNode(true));
    setText($("#here"), "");
    $("#find-run").addEventListener("input", () => this.draw());
    this.found = null;
    this.first = first;
    this.poll = new Poll(() => this.look(), PAUSE);
  }

  async look() {
    const found = await get("/api/runs");
    if (this.poll?.stopped) return false;
    const sweeps = found.runs.flatMap((run) => run.sweeps);
    if (this.first && sweeps.length === 1) {
      location.replace(sweepLink(sweeps[0]));
      return false;
    }
    this.first = false;
    const key = JSON.stringify(found);
    if (key !== this.key) {
      this.key = key;
      this.found = found;
      this.draw();
    }
    return false;
  }

  draw() {
    if (this.found === null) return;
    setText($("#storage"), `${this.found.storage} on ${this.found.host}`);
    const wanted = $("#find-run").value.trim().toLowerCase();
    const runs = this.found.runs
      .filter((run) => run.name.toLowerCase().includes(wanted))
      .sort(byActivity);
    const nothing = el(
      "p",
      { class: "card empty" },
      this.found.runs.length > 0
        ? "No run is called so."
        : "Nothing has run here yet. A run shows up as soon as it starts.",
    );
    $("#runs").replaceChildren(...(runs.length > 0 ? runs.map(runCard) : [nothing]));
  }

  close() {
    this.poll.stop();
  }
}

export const sweepLink = ({ run, sweep }) =>
  `#/${encodeURIComponent(run)}/${encodeURIComponent(sweep)}`;

const lastStart = (run) => Math.max(0, ...run.sweeps.map((sweep) => sweep.started));
const byActivity = (a, b) =>
  (b.holder !== null) - (a.holder !== null) ||
  lastStart(b) - lastStart(a) ||
  a.name.localeCompare(b.name);

function runCard(run) {
  const stages = STAGES.filter((stage) => stage in run.stages).map((stage) =>
    el(
      "li",
      {
        class:
          run.stages[stage] === "finished" ? "finished" : run.holder ? "running" : "interrupted",
      },
      stage,
    ),
  );
  const sweeps = [...run.sweeps].sort((a, b) => b.started - a.started);
  return el(
    "article",
    { class: "card run" },
    el(
      "header",
      {},
      el("h2", {}, run.name),
      el("ul", { class: "stages" }, ...stages),
      run.holder ? el("span", { class: "note" }, `in use by ${run.holder}`) : null,
    ),
    sweeps.length > 0
      ? el("div", { class: "sweeps" }, ...sweeps.map(sweepRow))
      : el("p", { class: "note" }, "no sweep"),
  );
}

function sweepRow(sweep) {
  const done = Object.entries(sweep.counts).reduce(
    (sum, [state, n]) => sum + (state === "running" || state === "interrupted" ? 0 : n),
    0,
  );
  const share = `${Math.round(100 * sweep.progress)}%`;
  const best = sweep.best === null ? DASH : number(sweep.best.value, 5);
  return el(
    "a",
    { class: "sweep", href: sweepLink(sweep) },
    el("span", { class: `pill ${sweep.state}` }, stateOf(sweep)),
    el(
      "span",
      { class: "what" },
      el(
        "b",
        {},
        Object.keys(sweep.space)
          .map((key) => key.split(".").at(-1))
          .join(", "),
      ),
      el(
        "small",
        {},
        `${sweep.task} · ${sweep.search}, ${sweep.scheduler} · ${clock(sweep.started)}`,
      ),
    ),
    el("span", { class: "bar", title: share }, el("i", { style: `width:${share}` })),
    el(
      "span",
      { class: "cell" },
      el("b", {}, `${done} of ${sweep.trials * sweep.repeats}`),
      el("small", {}, "trials"),
    ),
    el("span", { class: "cell" }, el("b", {}, best), el("small", {}, `best ${sweep.metric}`)),
    el(
      "span",
      { class: "cell" },
      el("b", {}, sweep.live ? duration(sweep.eta) : duration(sweep.elapsed)),
      el("small", {}, sweep.live ? "left" : "took"),
    ),
    el(
      "span",
      { class: "cell" },
      el("b", {}, sweep.live ? plural(sweep.resources.cpus, "CPU") : DASH),
      el("small", {}, sweep.resources.gpus ? plural(sweep.resources.gpus, "GPU") : "in use"),
    ),
  );
}
