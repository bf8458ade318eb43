// The page of one sweep: asks for what changed, and hands it to table and charts.

import { $, button, closer, confirmed, copy, el, setText, toast } from "./dom.js";
import { Poll, get, post, sweepPath } from "./api.js";
import { fetchPlotly } from "./axes.js";
import { Comparison } from "./compare.js";
import { saveCsv } from "./csv.js";
import { Contour } from "./contour.js";
import { makeCurves } from "./curves.js";
import { Drawer } from "./drawer.js";
import { fillFacts, fillHead } from "./facts.js";
import { History } from "./history.js";
import { Importance } from "./importance.js";
import { Parallel } from "./parallel.js";
import { Selection } from "./selection.js";
import { Slices } from "./slices.js";
import { splitPanes } from "./panes.js";
import { Table, stateChips } from "./table.js";
import { Timeline } from "./timeline.js";
import { changed, reset, select, store, subscribe, take } from "./store.js";

export class SweepPage {
  constructor(main, run, sweep) {
    fetchPlotly();
    main.replaceChildren($("#sweep-page").content.cloneNode(true));
    reset();
    this.path = sweepPath(run, sweep);
    this.cursor = 0;
    setText($("#here"), `${run} / ${sweep.replace("tune-", "")}`);
    document.title = `${run} – orchestrator`;
    this.parts = this.makeParts();
    subscribe((kinds) => this.draw(kinds));
    splitPanes($("#splitter"), $(".panes"));
    this.listen();
    this.poll = new Poll(() => this.look());
  }

  makeParts() {
    this.drawer = new Drawer($("#drawer"), this.path);
    this.comparison = new Comparison($("#comparison"), this.path);
    const compare = () => this.comparison.open(store.compared);
    $("#compare").addEventListener("click", compare);
    const open = (number) => this.drawer.open(number);
    return [
      this.drawer,
      new Table($(".table-pane"), open),
      makeCurves($("#curves"), (metric) => this.chooseMetric(metric)),
      new Parallel($("#parallel")),
      new Importance($("#importance"), this.path),
      new History($("#history")),
      new Slices($("#slices")),
      new Contour($("#contour")),
      new Timeline($("#timeline")),
      new Selection($("#selection"), open, compare),
    ];
  }

  async look() {
    const [cursor, metric] = [this.cursor, store.metric];
    const query = new URLSearchParams({ since: cursor });
    if (metric !== null) query.set("metric", metric);
    const answer = await get(`${this.path}?${query}`);
    if (this.closed || store.metric !== metric) return true; // the answer to a question of before
    store.metric ??= answer.summary.metric;
    this.cursor = answer.cursor;
    take(answer);
    return !answer.complete;
  }

  /** Curves of another metric are other curves: all are asked for anew. */
  chooseMetric(metric) {
    store.metric = metric;
    this.cursor = 0;
    this.poll.now();
  }

  draw(kinds) {
    if (this.closed || store.summary === null) return;
    fillHead(store.summary);
    fillFacts(store.summary);
    stateChips($("#states"));
    const compare = $("#compare");
    compare.disabled = store.compared.length < 2;
    setText(compare, store.compared.length > 0 ? `Compare ${store.compared.length}` : "Compare");
    for (const part of this.parts) part.draw(kinds);
  }

  listen() {
    const best = () => store.summary?.best;
    this.off = new AbortController();
    const on = (id, action) => $(id).addEventListener("click", action, { signal: this.off.signal });
    on("#copy-overrides", () => best() && copy(best().overrides_text, "overrides"));
    on("#copy-command", () => best() && copy(best().command, "command"));
    on("#best-trial", () => best() && select(best().number));
    on("#save-csv", () => saveCsv(`${store.summary.run}.csv`));
    on("#resume", () => this.agree());
    const stop = $("#stop-sweep");
    const fresh = stop.cloneNode(true); // without the listeners of the page before
    stop.replaceWith(fresh);
    confirmed(fresh, () => this.ask("stop"));
    window.addEventListener("themechange", () => changed("style"), { signal: this.off.signal });
    document.addEventListener("keydown", (event) => this.pressed(event), {
      signal: this.off.signal,
    });
  }

  pressed(event) {
    const typing = event.target.closest("input, select, textarea, dialog");
    if (event.key === "Escape") {
      if (!$("#drawer").hidden) this.drawer.close();
      else if (!typing) select(null);
    } else if (event.key === "/" && !typing) {
      event.preventDefault();
      $("#filter").focus();
    }
  }

  /** Show what would be started, and where, before it is: the storage's word is not the viewer's. */
  agree() {
    const { start } = store.summary;
    if (start === null) {
      this.ask("resume"); // the server says why it cannot
      return;
    }
    const box = $("#asked");
    const { command, directory } = start;
    const yes = () => {
      box.close();
      this.ask("resume", { command, directory });
    };
    box.replaceChildren(
      el("header", {}, el("h2", {}, "Resume"), closer(() => box.close())),
      el("p", {}, "This command will be started on this dashboard's machine, as its user:"),
      el("pre", {}, command),
      el("p", {}, "in ", el("code", {}, directory)),
      button("Start it", yes, "primary"),
    );
    box.showModal();
  }

  async ask(what, content = null) {
    const pressed = $(what === "stop" ? "#stop-sweep" : "#resume");
    pressed.disabled = true;
    try {
      toast((await post(`${this.path}/${what}`, content)).done);
    } catch (error) {
      const { start } = store.summary;
      const byHand = what === "resume" && start !== null;
      const command = () => copy(start.command, "command");
      toast(error.message, true, ...(byHand ? [button("Copy command", command)] : []));
    }
    pressed.disabled = false;
    this.poll.now();
  }

  close() {
    this.closed = true;
    this.poll.stop();
    this.off.abort();
    for (const part of this.parts) part.close?.();
    for (const id of ["#status", "#stop-sweep", "#resume"]) $(id).hidden = true;
    document.title = "orchestrator";
  }
}
