// Where answers come from. One interface, three hosts, named by <html data-host>:
//
//   page    elements of this file, frozen; nothing can be done, only looked at
//   server  the local server, over HTTP
//   frame   a notebook: messages to the widget that holds this frame, which hands them to Python
//
// `ask(path)` remembers its answer, `fresh(path)` asks again; `act(name, body)` does something, `stream(…)` hears it being done.
import { overFrame } from "./frame.js";
import { Recent } from "./recent.js";

const host = document.documentElement.dataset.host;
const answers = new Recent(400);   // a card is some 20 kB
export const frozen = host === "page";

// A host: get(path, kind) → answer or null where there is none, post(path, body) → answer, lines(path, body, each, signal).
const page = {
  async get(path) {
    const element = document.querySelector(`script[data-path="${CSS.escape(path)}"]`);
    return element ? JSON.parse(element.textContent) : null;
  },
  post() { throw new Error("a saved page cannot do this; open the live browser: unweave show"); },
  lines() { throw new Error("a saved page cannot do this; open the live browser: unweave show"); },
};

async function checked(reply) {
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => null);
  throw new Error(told?.error ?? `the server answered ${reply.status}`);
}

const post = (body, signal) => ({ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });

const server = {
  async get(path, kind) {
    const reply = await fetch(`api/${path}`);
    if (reply.status === 404) return reply.text().then(() => null);   // read, or its connection stays taken
    return kind === "bytes" ? (await checked(reply)).arrayBuffer() : (await checked(reply)).json();
  },
  async post(path, body, signal) {
    return (await checked(await fetch(`api/${path}`, post(body, signal)))).json();
  },
  async lines(path, body, each, signal) {
    const reply = await checked(await fetch(`api/${path}`, post(body, signal)));
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      const parts = (rest + (value ?? "")).split("\n");
      rest = parts.pop();
      for (const part of parts) if (part) each(JSON.parse(part));
      if (done) return;
    }
  },
};

const source = host === "page" ? page : host === "frame" ? overFrame() : server;

// How many answers are remembered.
export function remembered() {
  return answers.size;
}

// What `make` promises, remembered under a path unless it fails.
function once(path, make) {
  const known = answers.get(path);
  if (known) return known;
  const answer = make();
  answer.catch(() => answers.delete(path));
  answers.set(path, answer);
  return answer;
}

// The answer to a path, or null where there is none; asked for once as long as it is remembered.
export function ask(path) {
  return once(path, () => fresh(path));
}

export function fresh(path) {
  return source.get(path, "json");
}

// Forget what was remembered of paths that begin so; the next `ask` asks again.
export function forget(start) {
  for (const path of [...answers.keys()]) if (path.startsWith(start)) answers.delete(path);
}

// One statistic of a store as a Float32Array: of all latents, or in a page of those that it carries, in the order of `stores/S`.
export function column(store, name) {
  return floats(`stores/${store}/columns/${name}`);
}

// The numbers of a path as a Float32Array, NaN where there is none.
export function floats(path) {
  return once(path, () => source.get(path, "bytes").then((data) => (data === null ? null
    : Array.isArray(data) ? Float32Array.from(data, (value) => value ?? NaN) : new Float32Array(data))));
}

// What the list shows of some latents, by latent.
export async function rows(store, latents) {
  return (await ask(frozen ? `stores/${store}/rows` : `stores/${store}/rows/${latents.join(",")}`)) ?? {};
}

let abilities = new Set();

export function abilitiesAre(names) {
  abilities = new Set(frozen ? [] : names);
}

// Whether this host can do an action.
export function can(name) {
  return abilities.has(name);
}

export function act(name, body, signal) {
  return source.post(`act/${name}`, body, signal);
}

// Do something that tells its progress: `each` gets one object at a time; ends when it is done or `signal` is aborted.
export function stream(name, body, each, signal) {
  return source.lines(`stream/${name}`, body, each, signal);
}

async function plotlyScript() {
  const script = document.createElement("script");
  if (host === "frame") {
    script.textContent = await source.get("plotly", "json");   // runs because its hash stands in the frame's policy
    document.head.append(script);
    return;
  }
  script.src = "static/plotly.js";
  await new Promise((resolve, reject) => {
    script.onload = resolve;
    script.onerror = () => reject(new Error("plotly could not be loaded"));
    document.head.append(script);
  });
}

let loading = null;

export async function plotly() {
  if (!window.Plotly) await (loading ??= plotlyScript());
  return window.Plotly;
}
