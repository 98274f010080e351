// One state object; each key has a list of functions to run again when it changes. The URL's hash is the state.
//
// A pane declares the keys that it needs: `declare({ query: "" }, { latent: null })`, texts first, then whole numbers.

const DEFAULTS = {};
const NUMBERS = new Set();
const listeners = {};

export const state = {};

export function declare(texts, numbers = {}) {
  for (const name of Object.keys(numbers)) NUMBERS.add(name);
  for (const [name, value] of Object.entries({ ...texts, ...numbers })) if (!Object.hasOwn(DEFAULTS, name)) DEFAULTS[name] = state[name] = value;
}

declare({ pane: document.documentElement.dataset.pane }, { run: 0, store: 0, latent: null, graph: 0, node: null });

export function on(keys, run) {
  for (const key of keys) (listeners[key] ??= new Set()).add(run);
}

export function set(changes, { push = false } = {}) {
  const changed = Object.keys(changes).filter((key) => Object.hasOwn(DEFAULTS, key) && state[key] !== changes[key]);
  if (!changed.length) return;
  for (const key of changed) state[key] = changes[key];
  writeHash(push);
  notify(changed);
}

function notify(changed) {
  const runs = new Set(changed.flatMap((key) => [...(listeners[key] ?? [])]));
  for (const run of runs) run(changed);
}

export function hashOf(changes) {
  const next = { ...state, ...changes };
  const parts = Object.keys(DEFAULTS).filter((key) => next[key] !== DEFAULTS[key] && next[key] !== null)
    .map((key) => `${key}=${encodeURIComponent(String(next[key]).toWellFormed())}`);
  return "#" + parts.join("&");
}

function writeHash(push) {
  // A page inside a notebook's frame has no address of its own to write to.
  if (location.protocol === "about:") return;
  if (push) history.replaceState({ scrolled: window.scrollY }, "");   // for whoever comes back
  history[push ? "pushState" : "replaceState"](null, "", hashOf({}) === "#" ? location.pathname + location.search : hashOf({}));
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";  // a hand-written address with a broken escape
  }
}

function parsed(hash) {
  const next = { ...DEFAULTS };
  for (const part of hash.slice(1).split("&")) {
    const [key, text = ""] = part.split("=");
    if (!Object.hasOwn(DEFAULTS, key)) continue;
    const value = decoded(text);
    if (!NUMBERS.has(key)) next[key] = value;
    else if (/^\d{1,9}$/.test(value)) next[key] = Number(value);
  }
  return next;
}

export function readHash() {
  const next = parsed(location.hash);
  const changed = Object.keys(next).filter((key) => next[key] !== state[key]);
  Object.assign(state, next);
  notify(changed);
}

window.addEventListener("hashchange", readHash);
window.addEventListener("popstate", readHash);
