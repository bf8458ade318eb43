// One trial in full: values, metrics, curves, log, and what it failed with.

import { $, button, closer, confirmed, copy, el, fillList, setText, toast } from "./dom.js";
import { get, post } from "./api.js";
import { clock, duration, number, value } from "./format.js";
import { markColour } from "./palette.js";
import { Series } from "./series.js";
import { changed, store, toggleCompared } from "./store.js";

const PAUSE = 2_000; // between two looks at a trial that runs

export class Drawer {
  constructor(root, path) {
    this.root = root;
    this.path = path;
    this.number = null;
    this.trial = null;
  }

  async open(chosen) {
    this.close();
    this.number = chosen;
    this.build();
    this.root.hidden = false;
    $(".close", this.root).focus({ preventScroll: true });
    await this.load();
  }

  close() {
    clearTimeout(this.later);
    this.series?.close();
    this.series = null;
    this.trial = null;
    this.number = null;
    this.root.hidden = true;
  }

  build() {
    const { number: chosen } = this;
    const part = (title, name, ...children) =>
      el("section", { class: name }, el("h3", {}, title), ...children);
    const stop = el("button", { class: "danger stop", hidden: true }, "Stop trial");
    confirmed(stop, () => this.stop());
    this.root.replaceChildren(
      el(
        "header",
        {},
        el("h2", {}, `Trial ${chosen} `, el("span", { class: "pill state" })),
        closer(() => this.close()),
      ),
      el(
        "div",
        { class: "toolbar" },
        button("Copy overrides", () => copy(this.trial.overrides_text, "overrides")),
        button("Copy command", () => copy(this.trial.command, "command"), "as-command"),
        button("Compare", () => toggleCompared(chosen), "beside"),
        stop,
      ),
      el(
        "section",
        { class: "failure", hidden: true },
        el("h3", {}, "Why it ended"),
        el("p", { class: "reason" }),
        el("pre", { class: "traceback", hidden: true }),
      ),
      el("dl", { class: "facts" }),
      part("Parameters", "parameters", el("dl", {})),
      part("Metrics, at its last validation", "metrics", el("dl", {})),
      part("Curve", "curve", el("div", {})),
      el(
        "section",
        { class: "exploits", hidden: true },
        el("h3", {}, "Went on from other trials"),
        el("ol", {}),
      ),
      part("Log", "log", el("pre", { class: "log" })),
    );
    this.series = new Series($(".curve > div", this.root), store.metric);
  }

  async load() {
    clearTimeout(this.later);
    const asked = this.number;
    try {
      const trial = await get(`${this.path}/trials/${asked}`);
      if (this.number !== asked) return; // another one was opened meanwhile
      this.trial = trial;
      this.fill(trial);
    } catch (error) {
      toast(error.message, true);
    }
    const runs = store.trials.get(asked)?.shown === "running";
    if (this.number === asked && runs) this.later = setTimeout(() => this.load(), PAUSE);
  }

  /** The state comes with every poll; the rest is asked for when it changed. */
  draw(kinds) {
    if (this.number === null) return;
    const seen = store.trials.get(this.number);
    if (kinds.has("trials") && this.trial && seen && seen.state !== this.trial.state) this.load();
    if (this.trial) this.head(this.trial);
    if (this.trial && kinds.has("style")) this.series.plane.draw();
  }

  head(trial) {
    const seen = store.trials.get(trial.number);
    const pill = $(".state", this.root);
    const asked = store.summary.stopping_trials.includes(trial.number);
    setText(pill, asked && seen.shown === "running" ? "stopping" : seen.shown);
    pill.className = `pill state ${seen.shown.replaceAll(" ", "-")}`;
    $(".stop", this.root).hidden = seen.shown !== "running" || asked;
    setText(
      $(".beside", this.root),
      store.compared.includes(trial.number) ? "Do not compare" : "Compare",
    );
  }

  fill(trial) {
    const root = this.root;
    this.head(trial);
    const failure = $(".failure", root);
    failure.hidden = !trial.reason && !trial.traceback;
    failure.classList.toggle("bad", trial.state === "failed");
    setText($(".reason", failure), trial.reason);
    $(".traceback", failure).hidden = !trial.traceback;
    setText($(".traceback", failure), trial.traceback);
    fillList($(".facts", root), [
      ["step", `${trial.step} of ${store.summary.steps}`],
      ["time", duration(trial.seconds)],
      ["started", clock(trial.started)],
      ["ended", trial.ended ? clock(trial.ended) : null],
      ["host", trial.host],
      [
        "configuration",
        store.summary.repeats > 1 ? `${trial.configuration}, repeat ${trial.repeat}` : null,
      ],
    ]);
    fillList(
      $(".parameters dl", root),
      Object.entries(trial.overrides).map(([key, given]) => [key, exact(given)]),
    );
    fillList(
      $(".metrics dl", root),
      Object.entries(trial.metrics).map(([name, v]) => [name, number(v, 6)]),
    );
    $(".as-command", root).disabled = !trial.command;
    this.series.show([
      { curve: trial.curve, colour: markColour("selected"), exploits: trial.exploits },
    ]);
    this.exploits(trial);
    this.log(trial.log);
  }

  exploits(trial) {
    const section = $(".exploits", this.root);
    section.hidden = trial.exploits.length === 0;
    $("ol", section).replaceChildren(
      ...trial.exploits.map(({ step, donor, overrides }) =>
        el(
          "li",
          {},
          `step ${step}: the weights of trial ${donor}, then `,
          Object.entries(overrides)
            .map(([key, v]) => `${key}=${value(v)}`)
            .join(" "),
        ),
      ),
    );
  }

  log(text) {
    const box = $("pre.log", this.root);
    if (box.textContent === text && text !== "") return;
    const atEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
    setText(box, text || "nothing was printed");
    if (atEnd) box.scrollTop = box.scrollHeight;
  }

  async stop() {
    try {
      toast((await post(`${this.path}/trials/${this.number}/stop`)).done);
      store.summary.stopping_trials.push(this.number);
      changed("summary", "trials");
    } catch (error) {
      toast(error.message, true);
    }
  }
}

/** A number as it was, not as it is short. */
const exact = (given) => (typeof given === "number" ? String(given) : value(given));
