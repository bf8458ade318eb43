// The page: asks the endpoint what its model does, and the reader for a key if there must be one.

import { askJson, hasKey, setKey } from "./api.js";
import { $, askForKey, report, trouble } from "./form.js";
import { startPredict } from "./predict.js";
import { startText } from "./text.js";

let isShown = false;

async function start() {
  trouble(null);
  try {
    const told = await askJson("v1/playground");
    const focused = $("#key-form").contains(document.activeElement);
    $("#key-form").hidden = true;
    $("#forget").hidden = !hasKey();
    if (!isShown) show(told);
    if (focused) $("main textarea:not([hidden] *)")?.focus();
    const card = await askJson(`v2/models/${encodeURIComponent(told.model)}`);
    $("#version").textContent = card.versions.join(", ");
  } catch (error) {
    // Who has not given a key yet has done nothing wrong.
    if (error.status === 401 && !hasKey()) askForKey();
    else report(error);
  }
}

function show(told) {
  isShown = true;
  document.title = `${told.model} · playground`;
  $("#model").textContent = told.model;
  $("#task").textContent = told.task.split(":").pop().replaceAll("_", " ");
  $("#task").hidden = false;
  $("#columns").hidden = false;
  if (told.text) startText(told.text);
  else startPredict(told);
}

$("#key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("#key").value);
  $("#key").value = "";
  start();
});
$("#forget").addEventListener("click", () => {
  setKey("");
  trouble(null);
  askForKey();
});
start();
