// The metric over two parameters: heights between the trials, and the trials upon them.

import { $, fillSelect } from "./dom.js";
import { shortNames } from "./format.js";
import { shades } from "./palette.js";
import { axisOf } from "./axes.js";
import { Plane, nearest } from "./plane.js";
import { scaleOf } from "./scales.js";
import { store } from "./store.js";
import { jitter, overlayPoints, paintPoints, shownPoints } from "./slices.js";

const GRID = 36; // points along each axis
const WIDTH = 0.09; // of the weights, as a share of an axis
const FEWEST = 4; // trials between which heights mean something
const MOST = 800; // trials that heights are made of

export class Contour {
  constructor(root) {
    this.root = root;
    this.chosen = [null, null];
    this.plane = new Plane($(".plane", root), this);
    ["contour-x", "contour-y"].forEach((id, place) => {
      $(`#${id}`, root).addEventListener("change", (event) => {
        this.chosen[place] = event.target.value;
        this.plane.draw();
      });
    });
  }

  draw(kinds) {
    if (kinds.has("trials") || kinds.has("style")) this.controls();
    this.root.hidden = store.differing.length < 2;
    if (this.root.hidden || (kinds.size === 1 && kinds.has("summary"))) return;
    this.plane.draw(kinds);
  }

  /** The two most important parameters, until others are chosen. */
  controls() {
    const { shares } = store.importance;
    const keys = [...store.differing].sort((a, b) => (shares[b] ?? 0) - (shares[a] ?? 0));
    const names = shortNames(keys);
    this.keys = this.chosen.map((key, place) => (keys.includes(key) ? key : keys[place]));
    if (this.keys[0] === this.keys[1]) this.keys[1] = keys.find((key) => key !== this.keys[0]);
    const options = store.differing.map((key) => [key, names[key]]);
    fillSelect($("#contour-x", this.root), options, this.keys[0]);
    fillSelect($("#contour-y", this.root), options, this.keys[1]);
  }

  axes() {
    this.controls();
    const names = shortNames(store.parameters);
    [this.x, this.y] = this.keys.map(scaleOf);
    const [x, y] = [axisOf(this.x, names[this.keys[0]]), axisOf(this.y, names[this.keys[1]])];
    const known = store.list.filter((t) => t.passes && t.value !== null && t.state !== "failed");
    return {
      x,
      y,
      key: this.keys.join(" "),
      content: known.map((t) => [t.number, t.value, t.rank]),
      traces: () => [this.surface(known)].filter(Boolean),
    };
  }

  /** Means of the trials' ranks, weighted by nearness: a diverged trial tilts no mean of ranks. */
  surface(trials) {
    if (trials.length < FEWEST) return null;
    const some =
      trials.length > MOST
        ? trials.filter((_, n) => n % Math.ceil(trials.length / MOST) === 0)
        : trials;
    const points = some
      .map((t) => [this.x.share(this.x.at(t)), this.y.share(this.y.at(t)), t.rank])
      .filter(([x, y]) => x !== null && y !== null);
    const shares = Array.from({ length: GRID }, (_, n) => n / (GRID - 1));
    const heights = shares.map((y) => shares.map((x) => heightAt(points, x, y)));
    const colours = shades();
    return {
      type: "contour",
      x: shares.map(this.x.from),
      y: shares.map(this.y.from),
      z: heights,
      zmin: 0,
      zmax: 1,
      ncontours: 12,
      showscale: false,
      hoverinfo: "skip",
      opacity: 0.55,
      colorscale: colours.map((colour, n) => [n / (colours.length - 1), colour]),
      line: { width: 0.4 },
      contours: { coloring: "fill" },
    };
  }

  place(map) {
    return (trial) => {
      const [x, y] = [this.x.at(trial), this.y.at(trial)];
      if (x === null || y === null) return [NaN, NaN];
      const spread = jitter(trial);
      return [
        map.x(x + (this.x.categories ? spread : 0)),
        map.y(y + (this.y.categories ? spread : 0)),
      ];
    };
  }

  paint(context, map) {
    paintPoints(context, this.place(map));
  }

  overlay(context, map) {
    overlayPoints(context, this.place(map));
  }

  find(map, x, y) {
    return nearest(shownPoints(this.place(map)), x, y);
  }

  close() {
    this.plane.close();
  }
}

function heightAt(points, x, y) {
  let sum = 0;
  let weights = 1e-9;
  for (const [px, py, height] of points) {
    const weight = Math.exp(-((px - x) ** 2 + (py - y) ** 2) / (2 * WIDTH * WIDTH)) + 1e-7;
    sum += weight * height;
    weights += weight;
  }
  return sum / weights;
}
