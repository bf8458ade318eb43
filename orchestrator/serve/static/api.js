// The endpoint's API: requests with the key, errors in one line, and streamed answers.

const STORE = `playground key ${location.pathname}`;
let key = read();

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => key !== "";

/** Keep the key until the tab is closed; "" forgets it. */
export function setKey(given) {
  key = given.trim();
  try {
    if (key) sessionStorage.setItem(STORE, key);
    else sessionStorage.removeItem(STORE);
  } catch {
    // storage may be forbidden: the key is kept until the page is left
  }
}

/** The answer to a GET, or to a POST if there is a body. Paths are relative to the page's. */
export async function ask(path, body = null, signal = null) {
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (key && !/^[\x21-\x7e]+$/.test(key)) throw new Refused("the API key has a character that no key has", 401);
  if (body !== null) headers["content-type"] = "application/json";
  const options = { method: body === null ? "GET" : "POST", headers, signal, cache: "no-store" };
  if (body !== null) options.body = JSON.stringify(body);
  let response = null;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("no connection to the endpoint: is it still running?", 0);
  }
  if (!response.ok) throw new Refused(await reason(response), response.status);
  return response;
}

export const askJson = async (...request) => (await ask(...request)).json();

/** Asks for a stream and passes on each event's first choice. Returns the usage and the times. */
export async function stream(path, body, signal, take) {
  const begin = performance.now();
  const told = { first: null, seconds: 0, usage: null, reason: null };
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await ask(path, asked, signal);
  for await (const event of events(response)) {
    if (event.error) throw new Refused(event.error.message, 500);
    if (event.usage) told.usage = event.usage;
    for (const choice of event.choices.slice(0, 1)) {
      told.reason = choice.finish_reason ?? told.reason;
      if (take(choice)) told.first ??= (performance.now() - begin) / 1000;
    }
  }
  told.seconds = (performance.now() - begin) / 1000;
  return told;
}

/** The same request on a command line. */
export function asCurl(path, body) {
  const lines = [`curl ${new URL(path, document.baseURI)}`, "-H 'content-type: application/json'"];
  if (key) lines.push('-H "Authorization: Bearer $KEY"');
  lines.push(`-d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`);
  return lines.join(" \\\n  ");
}

/** The contents of server-sent events, up to `[DONE]`. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: ?/, "");
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof SyntaxError) throw error;
    // A connection that breaks ends here too.
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new Refused("the connection ended before the answer did: ask again", 0);
}

/** An error's message on one line. Proxies in front of the endpoint may answer in another form. */
async function reason(response) {
  let message = null;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not the endpoint's own answer
  }
  const wait = response.headers.get("retry-after");
  const again = wait ? ` (try again in ${wait} s)` : "";
  return `${message ?? `the endpoint answered with status ${response.status}`}${again}`;
}

function read() {
  try {
    return sessionStorage.getItem(STORE) ?? "";
  } catch {
    return "";
  }
}
