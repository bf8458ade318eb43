// Elements, made without markup: whatever a run wrote is text and never HTML.

export const $ = (selector, root = document) => root.querySelector(selector);

/** An element with attributes (`on...`: listeners) and children, without those that are null. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

export const button = (text, onclick, kind = null) => el("button", { class: kind, onclick }, text);

export const closer = (onclick) =>
  el("button", { class: "close quiet", "aria-label": "close", onclick }, "×");

/** Set an element's text, and touch it only where that changes something. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Rows of a `dl`: pairs of a name and a text or an element. */
export function fillList(list, pairs) {
  list.replaceChildren(
    ...pairs
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
  );
}

/** Options of a select, by value; what is selected stays where it can. */
export function fillSelect(select, options, value = select.value) {
  const key = JSON.stringify(options);
  if (select.dataset.options !== key) {
    select.dataset.options = key;
    select.replaceChildren(...options.map(([v, text]) => el("option", { value: v }, text)));
  }
  if (options.some(([v]) => v === value)) select.value = value;
}

/** A note that goes away by itself; `actions` are buttons upon it. */
export function toast(text, isError = false, ...actions) {
  const note = el("p", { class: isError ? "toast error" : "toast" }, el("span", {}, text), actions);
  note.append(closer(() => note.remove()));
  $("#toasts").append(note);
  setTimeout(() => note.remove(), isError ? 15_000 : 4_000);
}

/** Copy a text; where the browser forbids it, as on plain http, the old way. */
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { class: "offscreen" });
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) {
      toast("the browser allows no copying: mark the text instead", true);
      return;
    }
  }
  toast(`${what} copied`);
}

/** A button that asks once more before it does what cannot be undone. */
export function confirmed(button, action) {
  let asked = null;
  const reset = () => {
    if (asked === null) return;
    button.textContent = asked.text;
    clearTimeout(asked.timer);
    asked = null;
  };
  button.addEventListener("click", () => {
    if (asked !== null) {
      reset();
      action();
      return;
    }
    asked = { text: button.textContent, timer: setTimeout(reset, 4_000) };
    button.textContent = "Sure?";
  });
}
