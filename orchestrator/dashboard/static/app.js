// The dashboard: which page is shown, by the part of the address behind the `#`.

import { $ } from "./dom.js";
import { Overview } from "./overview.js";
import { SweepPage } from "./page.js";
import { forgetColours } from "./palette.js";

let page = null;
let first = true; // the page was just opened, and nothing chosen

function show() {
  page?.close();
  const parts = location.hash
    .replace(/^#\//, "")
    .split("/")
    .filter(Boolean)
    .map(decodeURIComponent);
  if (parts.length === 2) page = new SweepPage($("#main"), ...parts);
  else page = new Overview($("#main"), first && parts.length === 0);
  first = false;
}

function nameTheme() {
  const names = { system: "◐", light: "☀", dark: "☾" };
  $("#theme").textContent = names[document.documentElement.dataset.theme];
  $("#theme").setAttribute("aria-label", `theme: ${document.documentElement.dataset.theme}`);
}

// Before any page listens: colours are read anew by those who draw.
window.addEventListener("themechange", () => {
  forgetColours();
  nameTheme();
});
$("#theme").addEventListener("click", () => window.nextTheme());
window.addEventListener("hashchange", show);
nameTheme();
show();
