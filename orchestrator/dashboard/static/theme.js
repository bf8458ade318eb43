// Light, dark, or as the system has it. Runs before anything is drawn, so that nothing flashes.
"use strict";
{
  const THEMES = ["system", "light", "dark"];
  const read = () => {
    try {
      return localStorage.getItem("theme") ?? "system";
    } catch {
      return "system"; // storage may be forbidden
    }
  };
  const apply = (theme) => {
    document.documentElement.dataset.theme = THEMES.includes(theme) ? theme : "system";
  };
  apply(read());
  window.nextTheme = () => {
    const shown = document.documentElement.dataset.theme;
    const theme = THEMES[(THEMES.indexOf(shown) + 1) % THEMES.length];
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // it holds until the page is left
    }
    apply(theme);
    window.dispatchEvent(new Event("themechange"));
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    window.dispatchEvent(new Event("themechange"));
  });
}
