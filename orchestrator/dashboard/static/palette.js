// Colours: of the theme, of states, and of trials by what they are to be told apart by.

import { scaleOf } from "./scales.js";

const SHADES = 24; // of the gradient: as many as can be told apart
const HUES = [0, 1, 2, 3, 4, 5, 6, 7].map((n) => `--hue-${n}`);

let known = new Map();

/** A colour variable of the style sheet as the theme has it now. */
export function css(name) {
  if (!known.has(name)) {
    // A variable is text; what it means in this theme only a property tells.
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    known.set(name, getComputedStyle(probe).color);
    probe.remove();
  }
  return known.get(name);
}

export function forgetColours() {
  known = new Map();
}

export const stateColour = (state) => css(`--${state.replaceAll(" ", "-")}`);
export const markColour = (mark) => css(`--${mark}`);

/** The shades from best to worst. */
export function shades() {
  if (!known.has("shades")) {
    const stops = [0, 1, 2, 3].map((n) => channels(css(`--shade-${n}`)));
    known.set(
      "shades",
      Array.from({ length: SHADES }, (_, n) => {
        const at = (n / (SHADES - 1)) * (stops.length - 1);
        const left = Math.min(Math.floor(at), stops.length - 2);
        const mixed = stops[left].map((c, i) =>
          Math.round(c + (stops[left + 1][i] - c) * (at - left)),
        );
        return `rgb(${mixed.join(",")})`;
      }),
    );
  }
  return known.get("shades");
}

export const shade = (share) =>
  shades()[Math.max(0, Math.min(SHADES - 1, Math.round(share * (SHADES - 1))))];

const channels = (colour) =>
  colour
    .match(/[\d.]+/g)
    .slice(0, 3)
    .map(Number);

/** The same colour, let through by `alpha`. */
export const faint = (colour, alpha) => `rgba(${channels(colour).join(",")},${alpha})`;

/** Give each trial its colour, and its place from the best (0) to the worst (1). */
export function assignColours(store) {
  const sign = store.summary?.mode === "max" ? -1 : 1;
  const ranked = store.list
    .filter((t) => t.value !== null && t.state !== "failed")
    .sort((a, b) => sign * (a.value - b.value));
  for (const trial of store.list) trial.rank = null;
  ranked.forEach((trial, place) => {
    trial.rank = ranked.length > 1 ? place / (ranked.length - 1) : 0;
  });
  const colour = colouring(store);
  for (const trial of store.list) {
    trial.colour = trial.state === "failed" ? css("--failed") : (colour(trial) ?? css("--unknown"));
  }
}

function colouring(store) {
  const by = store.colourBy;
  if (by === "state") return (trial) => stateColour(trial.shown);
  if (by === "value") return (trial) => (trial.rank === null ? null : shade(trial.rank));
  const scale = scaleOf(by);
  if (scale.categories) return (trial) => hue(scale.categories.indexOf(scale.label(trial)));
  return (trial) => {
    const share = scale.share(scale.at(trial));
    return share === null ? null : shade(1 - share);
  };
}

export const hue = (place) => (place < 0 ? null : css(HUES[place % HUES.length]));
