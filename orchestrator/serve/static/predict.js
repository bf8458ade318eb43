// Predictions: a field for each input of the task, and the answer by its form.

import { askJson } from "./api.js";
import { $, connect, element, showRequest } from "./form.js";

const MOST = 20; // labels that are listed
const LONG = 60; // characters of an answer that is a text rather than a label
const VERBS = {
  text_classification: "Classify",
  text_regression: "Estimate",
  translation: "Translate",
  question_answering: "Answer",
  extractive_question_answering: "Answer",
  masked_language_modelling: "Score",
};

export function startPredict(told) {
  const form = $("#predict");
  const answer = form.querySelector(".answer");
  $("#inputs").append(...told.inputs.flatMap(field));
  form.querySelector(".go").textContent = VERBS[told.task] ?? "Predict";
  form.hidden = false;

  connect(form, async (signal) => {
    const given = told.inputs.map(({ name, optional }) => [name, optional, inputOf(name).value]);
    const row = given.filter(([, optional, text]) => text || !optional);
    const body = { inputs: [Object.fromEntries(row.map(([name, , text]) => [name, text]))] };
    const begin = performance.now();
    showRequest("v1/predict", body);
    answer.hidden = true;
    const { outputs } = await askJson("v1/predict", body, signal);
    answer.replaceChildren(...shown(outputs[0]));
    answer.hidden = false;
    return `answered in ${((performance.now() - begin) / 1000).toFixed(2)} s`;
  });
}

const inputOf = (name) => document.getElementById(`input-${name}`);

function field({ name, optional }) {
  const label = element("label", name.replaceAll("_", " "));
  label.htmlFor = `input-${name}`;
  if (optional) label.append(" ", element("span", "(optional)", "note"));
  const area = element("textarea");
  area.id = label.htmlFor;
  area.rows = name === "question" ? 2 : 4;
  area.required = !optional;
  return [label, area];
}

/** The elements of an answer: a text, label or number first, then probabilities, then the rest. */
function shown({ truncated, ...values }) {
  const entries = Object.entries(values);
  const main = entries.find(([, value]) => ["string", "number"].includes(typeof value));
  const shares = entries.find(([name, value]) => name === "probabilities" && areShares(value));
  const others = entries.filter((entry) => entry !== main && entry !== shares);
  const elements = [];
  if (main) {
    const text = textOf(main[1]) || "(empty)";
    elements.push(element("p", text, text.length > LONG ? "text main" : "text main big"));
  }
  if (shares) elements.push(bars(shares[1]));
  if (others.length > 0) elements.push(facts(others));
  if (truncated) {
    const note = "The input was longer than the model's context, and was cut.";
    elements.push(element("p", note, "note"));
  }
  return elements;
}

const areShares = (value) =>
  value?.constructor === Object && Object.values(value).every((share) => typeof share === "number");

function bars(probabilities) {
  const list = element("ul", "", "bars");
  const sorted = Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
  for (const [label, share] of sorted.slice(0, MOST)) {
    const [row, bar, filled] = [element("li"), element("div", "", "bar"), element("i")];
    filled.style.width = `${100 * share}%`;
    bar.append(filled);
    row.append(element("span", label), bar, element("span", `${(100 * share).toFixed(1)} %`));
    list.append(row);
  }
  const hidden = sorted.length - MOST;
  if (hidden > 0) list.append(element("li", `and ${hidden} more labels`, "note"));
  return list;
}

function facts(entries) {
  const list = element("dl", "", "facts");
  for (const [name, value] of entries) {
    list.append(element("dt", name.replaceAll("_", " ")), element("dd", textOf(value)));
  }
  return list;
}

function textOf(value) {
  if (typeof value === "string") return value;
  if (typeof value === "number") return String(Number(value.toPrecision(5)));
  return JSON.stringify(value);
}
