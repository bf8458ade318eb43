// Completions and chats of a model that generates text.

import { stream } from "./api.js";
import { $, connect, element, showRequest, trouble } from "./form.js";

const NUMBERS = ["max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed"];
const REASONS = { length: "ended at the limit of tokens", stop: "ended by the model or a stop text" };

export function startText(told) {
  $("#prompt").value = told.prompt;
  $("#max_tokens").value = told.max_tokens;
  $("#context").textContent = `Prompt and answer have at most ${told.context} tokens.`;
  $("#settings").hidden = false;
  $("#settings details").open = matchMedia("(min-width: 801px)").matches;
  $("#settings").addEventListener("submit", (event) => event.preventDefault());
  startCompletion();
  $("#completion").hidden = false;
  if (!told.chat) return;
  startChat();
  $("#modes").hidden = false;
  $("#modes").addEventListener("change", (event) => {
    trouble(null);
    for (const mode of ["completion", "chat"]) $(`#${mode}`).hidden = mode !== event.target.value;
  });
}

function startCompletion() {
  const answer = $("#completion .answer");
  let prompt = "";

  connect($("#completion"), async (signal) => {
    const body = { prompt: $("#prompt").value, ...settings() };
    prompt = body.prompt;
    $("#given").textContent = prompt;
    $("#generated").textContent = "";
    answer.hidden = false;
    $("#continue").hidden = true;
    const take = (choice) => choice.text;
    try {
      return await write("v1/completions", body, signal, answer, $("#generated"), take);
    } finally {
      $("#continue").hidden = $("#generated").textContent === "";
    }
  });
  $("#continue").addEventListener("click", () => {
    $("#prompt").value = prompt + $("#generated").textContent;
    $("#continue").hidden = true;
    $("#prompt").focus();
  });
}

function startChat() {
  const conversation = []; // of messages, as the API has them
  const list = $("#messages");

  async function send(signal) {
    const system = $("#system").value.trim();
    const opening = system ? [{ role: "system", content: system }] : [];
    const question = { role: "user", content: $("#message").value };
    const body = { messages: [...opening, ...conversation, question], ...settings() };
    const asked = add(question);
    const { item, text } = add({ role: "assistant", content: "" });
    $("#message").value = "";
    $("#clear").hidden = true;
    const answered = () => {
      conversation.push(question, { role: "assistant", content: text.textContent });
    };
    try {
      const take = (choice) => choice.delta.content;
      const status = await write("v1/chat/completions", body, signal, list, text, take);
      answered();
      return status;
    } catch (error) {
      if (error.name === "AbortError") {
        answered(); // what was written until then belongs to the conversation
      } else {
        asked.item.remove();
        item.remove();
        if (!$("#message").value) $("#message").value = question.content;
      }
      throw error;
    } finally {
      $("#clear").hidden = conversation.length === 0;
    }
  }

  function add({ role, content }) {
    const [item, text] = [element("li", "", role), element("p", content, "text")];
    item.append(element("b", role === "user" ? "You" : "Model"), text);
    list.append(item);
    list.scrollTop = list.scrollHeight;
    return { item, text };
  }

  connect($("#chat"), send);
  $("#message").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.isComposing) return;
    event.preventDefault();
    $("#chat").requestSubmit();
  });
  $("#clear").addEventListener("click", () => {
    conversation.length = 0;
    list.replaceChildren();
    $("#chat .status").textContent = "";
    $("#clear").hidden = true;
    $("#message").focus();
  });
}

/** Streams an answer into an element of a box; whatever the model writes is text, never HTML. */
async function write(path, body, signal, box, target, textOf) {
  showRequest(path, body);
  const node = target.appendChild(document.createTextNode(""));
  let [waiting, frame] = ["", 0];

  function flush() {
    frame = 0;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    node.appendData(waiting);
    waiting = "";
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }

  target.classList.add("writing");
  box.setAttribute("aria-busy", "true"); // screen readers wait until it is whole
  try {
    const told = await stream(path, body, signal, (choice) => {
      const text = textOf(choice) ?? "";
      waiting += text;
      frame ||= requestAnimationFrame(flush); // tokens may come faster than a page is laid out
      return text !== "";
    });
    return summary(told);
  } finally {
    cancelAnimationFrame(frame);
    flush();
    target.classList.remove("writing");
    box.setAttribute("aria-busy", "false");
  }
}

function summary({ usage, seconds, first, reason }) {
  const tokens = usage?.completion_tokens ?? 0;
  const parts = [`${tokens} token${tokens === 1 ? "" : "s"} in ${seconds.toFixed(2)} s`];
  if (first !== null) parts.push(`first text after ${first.toFixed(2)} s`);
  if (tokens > 0) parts.push(`${(tokens / seconds).toFixed(0)} tokens/s`);
  if (reason in REASONS) parts.push(REASONS[reason]);
  return parts.join(" · ");
}

/** The fields of a request that the form of settings fills in. Empty ones are left to the API. */
function settings() {
  const form = $("#settings");
  if (!form.checkValidity()) {
    form.querySelector("details").open = true; // else the browser cannot point at the field
    const wrong = form.querySelector(":invalid");
    wrong.focus();
    throw new Error(`${form.querySelector(`[for=${wrong.id}]`).textContent}: ${wrong.validationMessage}`);
  }
  const filled = NUMBERS.filter((name) => $(`#${name}`).value !== "");
  const fields = Object.fromEntries(filled.map((name) => [name, Number($(`#${name}`).value)]));
  const lines = $("#stops").value.split("\n").filter((line) => line !== "");
  const escapes = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };
  const stops = lines.map((line) => line.replace(/\\[nt\\]/g, (found) => escapes[found]));
  return stops.length > 0 ? { ...fields, stop: stops } : fields;
}
