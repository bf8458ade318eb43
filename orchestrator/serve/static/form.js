// Forms that ask the endpoint: their buttons, their errors, and the field for the API key.

import { asCurl } from "./api.js";

export const $ = (selector, root = document) => root.querySelector(selector);

/** An element with a class. Its content is set as text, never as HTML. */
export function element(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return made;
}

/** Asks on each submit of a form. `work` gets a signal, which the Stop button or Esc aborts, and
 * returns what the status line says. */
export function connect(form, work) {
  const [go, stop, status] = [".go", ".stop", ".status"].map((selector) => $(selector, form));
  let running = null;

  async function run() {
    running = new AbortController();
    trouble(null);
    status.textContent = "";
    swap(go, stop);
    try {
      status.textContent = await work(running.signal);
    } catch (error) {
      if (error.name === "AbortError") status.textContent = "stopped";
      else report(error);
    }
    running = null;
    swap(stop, go);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running === null) run();
  });
  form.addEventListener("keydown", (event) => {
    const isMeant = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (isMeant && !event.isComposing) form.requestSubmit();
  });
  stop.addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
}

/** Show the request that is about to be sent. */
export function showRequest(path, body) {
  $("#request").hidden = false;
  $("#request pre").textContent = asCurl(path, body);
}

/** One line above the page; null takes it away. */
export function trouble(message) {
  $("#trouble").textContent = message ?? "";
  $("#trouble").hidden = message === null;
}

export function report(error) {
  trouble(error.message);
  if (error.status === 401) askForKey();
}

export function askForKey() {
  $("#key-form").hidden = false;
  $("#forget").hidden = true;
  $("#key").focus();
}

/** Hide one button and show the other, which takes over the focus. */
function swap(from, to) {
  const isFocused = document.activeElement === from;
  to.hidden = false;
  if (isFocused) to.focus();
  from.hidden = true;
}
