// A small chart of some whole curves, as the drawer and the comparison show them.

import { el, fillSelect } from "./dom.js";
import { css } from "./palette.js";
import { Plane } from "./plane.js";
import { lastBefore, diamond } from "./curves.js";

/** `lines` are `{curve, colour, exploits}`, the curves as the server has them: columns by name. */
export class Series {
  constructor(root, metric) {
    this.isOwn = true;
    this.metric = metric;
    this.lines = [];
    this.choice = el("select", {
      "aria-label": "metric",
      onchange: (event) => {
        this.metric = event.target.value;
        this.plane.draw();
      },
    });
    this.log = el("input", { type: "checkbox", onchange: () => this.plane.draw() });
    const box = el("div", { class: "plane low" });
    root.replaceChildren(
      el("div", { class: "toolbar" }, this.choice, el("label", {}, this.log, " log y")),
      box,
    );
    this.plane = new Plane(box, this);
  }

  show(lines) {
    this.lines = lines;
    const names = new Set(lines.flatMap(({ curve }) => Object.keys(curve)));
    names.delete("step");
    fillSelect(
      this.choice,
      [...names].map((name) => [name, name]),
      this.metric,
    );
    this.metric = this.choice.value || this.metric;
    this.plane.draw();
  }

  axes() {
    const log = this.log.checked;
    const span = { x: [Infinity, -Infinity], y: [Infinity, -Infinity] };
    this.eachPoint((x, y) => {
      if (log && y <= 0) return;
      span.x = [Math.min(span.x[0], x), Math.max(span.x[1], x)];
      span.y = [Math.min(span.y[0], y), Math.max(span.y[1], y)];
    });
    const known = ([low, high]) => (low <= high ? { low, high } : { low: log ? 1 : 0, high: 10 });
    return {
      x: { title: "step", ...known(span.x) },
      y: { title: this.metric, ...known(span.y), log },
      key: `${this.metric} ${log}`,
    };
  }

  eachPoint(visit) {
    for (const { curve } of this.lines) {
      curve[this.metric]?.forEach((y, at) => {
        if (y !== null && curve.step[at] !== null) visit(curve.step[at], y);
      });
    }
  }

  paint(context, map) {
    context.lineJoin = "round";
    context.lineWidth = 1.8;
    for (const { curve, colour, exploits } of this.lines) {
      const ys = curve[this.metric] ?? [];
      context.strokeStyle = colour;
      context.beginPath();
      let open = false;
      ys.forEach((value, at) => {
        const [x, y] = [map.x(curve.step[at]), value === null ? NaN : map.y(value)];
        if (!Number.isFinite(y)) open = false;
        else if (open) context.lineTo(x, y);
        else {
          context.moveTo(x, y);
          open = true;
        }
      });
      context.stroke();
      for (const { step } of exploits) {
        const at = lastBefore(curve.step, step);
        if (at >= 0 && ys[at] !== null) {
          diamond(
            context,
            map.x(curve.step[at]),
            map.y(ys[at]),
            5,
            css("--exploit"),
            css("--panel"),
          );
        }
      }
    }
  }

  overlay() {
    // nothing stands out: each line here was chosen
  }

  find() {
    return null;
  }

  close() {
    this.plane.close();
  }
}
