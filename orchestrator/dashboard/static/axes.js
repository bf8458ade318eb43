// Axes as Plotly draws them, and the way from data to pixels on them.

import { el } from "./dom.js";
import { css } from "./palette.js";

const TOUCH = matchMedia("(pointer: coarse)").matches;
const MARGIN = { l: 48, r: 10, t: 6, b: 34 };
const SPARE = 0.05; // of an axis beyond its data, about as much as Plotly leaves

let library = null;

/** Plotly, asked for once the first trials are on screen: to take it in takes half a second. */
export function plotly() {
  library ??= new Promise((resolve) => {
    const script = el("script", { src: "/plotly.js", onload: () => resolve(window.Plotly) });
    requestAnimationFrame(() => setTimeout(() => document.head.append(script), 0));
  });
  return library;
}

/** Let the browser fetch Plotly, but not run it yet. */
export function fetchPlotly() {
  if (library !== null || document.querySelector("link[rel=preload]")) return;
  document.head.append(el("link", { rel: "preload", as: "script", href: "/plotly.js" }));
}

/** The map of axes that Plotly has drawn. */
export function mapOf({ xaxis, yaxis }) {
  return mapOver(
    { range: xaxis.range, log: xaxis.type === "log", start: xaxis._offset, length: xaxis._length },
    { range: yaxis.range, log: yaxis.type === "log", start: yaxis._offset, length: yaxis._length },
  );
}

/** The map of axes that are not drawn yet. */
export function roughMap({ x, y }, width, height) {
  const inner = [width - MARGIN.l - MARGIN.r, height - MARGIN.t - MARGIN.b];
  return mapOver(
    { range: roughRange(x), log: x.log, start: MARGIN.l, length: inner[0] },
    { range: roughRange(y), log: y.log, start: MARGIN.t, length: inner[1] },
  );
}

function roughRange({ low, high, log }) {
  const [from, to] = log ? [Math.log10(low), Math.log10(high)] : [low, high];
  const spare = (to - from) * SPARE || 1;
  return [from - spare, to + spare];
}

function mapOver(across, up) {
  const [x, dataX] = along(across.range, across.log, across.start, across.length);
  const [y] = along(up.range, up.log, up.start + up.length, -up.length);
  const [left, top, width, height] = [across.start, up.start, across.length, up.length];
  return { x, y, dataX, left, top, width, height };
}

/** The ways from data to pixels and back; not a number where a log axis has no place for it. */
function along(range, isLog, start, length) {
  const [low, high] = range.map(Number);
  const scale = length / (high - low);
  if (isLog) {
    return [
      (v) => start + (Math.log10(v) - low) * scale,
      (px) => 10 ** (low + (px - start) / scale),
    ];
  }
  return [(v) => start + (v - low) * scale, (px) => low + (px - start) / scale];
}

/** An invisible trace that spans the data, by which Plotly finds the range of its axes. */
export function corners({ x, y }) {
  return {
    type: "scatter",
    mode: "markers",
    hoverinfo: "skip",
    marker: { opacity: 0, size: 8 },
    x: [x.low, x.high],
    y: [y.low, y.high],
  };
}

export function layout({ x, y, key }) {
  return {
    autosize: true,
    margin: MARGIN,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 11, color: css("--muted") },
    showlegend: false,
    hovermode: false,
    dragmode: TOUCH ? false : "zoom",
    uirevision: key ?? "same", // a zoom outlives new data
    xaxis: axis(x),
    yaxis: axis(y),
  };
}

function axis({ title, low, high, log, ticks, hidden }) {
  const line = css("--line");
  const decades = log ? Math.log10(high / low) : 0;
  return {
    type: log ? "log" : "linear",
    title: { text: escaped(title ?? ""), standoff: 6, font: { size: 11 } },
    autorange: true,
    automargin: true,
    visible: !hidden,
    zeroline: false,
    showline: true,
    linecolor: line,
    gridcolor: line,
    gridwidth: 0.5,
    tickcolor: line,
    ticks: "outside",
    ticklen: 3,
    nticks: 7,
    exponentformat: "power",
    ...(decades > 1.5 ? { dtick: Math.ceil(decades / 6) } : {}),
    ...(ticks
      ? {
          tickmode: "array",
          tickvals: ticks.map(([v]) => v),
          ticktext: ticks.map(([, t]) => escaped(t)),
        }
      : {}),
  };
}

/** Plotly reads some tags in its texts: a name with brackets in it is to be shown as it is. */
const escaped = (text) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** An axis over the values of a scale. */
export function axisOf(scale, title) {
  if (scale.categories) {
    const ticks = scale.categories.map((text, place) => [
      place,
      text.length > 14 ? `${text.slice(0, 13)}…` : text,
    ]);
    return { title, low: -0.4, high: scale.high + 0.4, log: false, ticks };
  }
  const { low, high, log } = scale;
  const known = Number.isFinite(low) && Number.isFinite(high) && (!log || low > 0);
  return known ? { title, low, high, log } : { title, low: log ? 1 : 0, high: log ? 10 : 1, log };
}
