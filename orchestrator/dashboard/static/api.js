// Asking the server, and asking it again once a second while somebody looks.

const PAUSE = 1_000;
const PAUSE_AFTER_TROUBLE = 4_000;

export async function get(path) {
  return ask(path, { headers: { accept: "application/json" } });
}

export async function post(path, content = null) {
  // The first header tells the server that this is no form of another site's page.
  const headers = { "x-orchestrator": "1", "content-type": "application/json" };
  return ask(path, { method: "POST", headers, body: content && JSON.stringify(content) });
}

async function ask(path, options) {
  let response = null;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("no connection to the dashboard: is it still running?");
  }
  let body = null;
  try {
    body = await response.json();
  } catch {
    throw new Error(`the server answered with ${response.status}`);
  }
  if (!response.ok) throw new Error(body.error ?? `the server answered with ${response.status}`);
  return body;
}

export const sweepPath = (run, sweep) =>
  `/api/runs/${encodeURIComponent(run)}/sweeps/${encodeURIComponent(sweep)}`;

/** Calls `look` again and again. It returns true where there is more to come at once. */
export class Poll {
  constructor(look, pause = PAUSE) {
    this.look = look;
    this.pause = pause;
    this.stopped = false;
    this.timer = null;
    this.waiting = false; // for an answer
    this.wake = () => document.hidden || this.now();
    document.addEventListener("visibilitychange", this.wake);
    this.now();
  }

  /** Ask at once; after an answer that is under way, once more. */
  async now() {
    clearTimeout(this.timer);
    if (this.waiting) {
      this.again = true;
      return;
    }
    this.waiting = true;
    this.again = false;
    let pause = this.pause;
    try {
      if (await this.look()) pause = 0;
      trouble(null);
    } catch (error) {
      pause = PAUSE_AFTER_TROUBLE;
      if (!this.stopped) trouble(error);
    }
    this.waiting = false;
    if (this.stopped || document.hidden) return; // a hidden page asks nothing
    this.timer = setTimeout(() => this.now(), this.again ? 0 : pause);
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.wake);
  }
}

function trouble(error) {
  const line = document.getElementById("trouble");
  line.hidden = error === null;
  line.textContent = error?.message ?? "";
}
