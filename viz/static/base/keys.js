// The keyboard: one table of keys, which is also the help.
import { h } from "./dom.js";
import { state } from "./state.js";

const KEYS = [];
const SIGNS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", PageUp: "Page ↑", PageDown: "Page ↓", Escape: "Esc" };

// `run` is called when `name` (as in KeyboardEvent.key) is pressed; with `pane`, only while that pane is shown; never where `isThere` says no.
export function key(name, meaning, run, pane = null, isThere = () => true) {
  KEYS.push({ name, meaning, run, pane, isThere });
}

// The keys that are for every pane and do something in this one.
function everywhere() {
  const own = new Set(KEYS.filter(({ pane }) => pane === state.pane).map(({ name }) => name));
  return KEYS.filter(({ name, pane, isThere }) => pane === null && !own.has(name) && isThere());
}

// Keys that do the same stand together.
function listed(title, keys) {
  const groups = new Map();
  for (const { name, meaning } of keys) groups.set(meaning, [...(groups.get(meaning) ?? []), SIGNS[name] ?? name]);
  return keys.length ? [h("h3", {}, title), h("dl", { class: "keys" },
    [...groups].map(([meaning, names]) => [h("dt", {}, names.map((name) => h("kbd", {}, name))), h("dd", {}, meaning)]))] : [];
}

// What the keys of a pane do.
export function keysOf(pane) {
  return KEYS.filter((each) => each.pane === pane).map(({ meaning }) => meaning);
}

export function help(dialog) {
  dialog.replaceChildren(h("h2", {}, "Keys"), ...listed("Here", KEYS.filter(({ pane }) => pane === state.pane)),
    ...listed("Everywhere", everywhere()),
    h("button", { type: "button", onclick: () => dialog.close() }, "Close"));
  dialog.showModal();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest?.("input:not([type=range], [type=checkbox], [type=radio]), select, textarea");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if ((event.key === "Enter" || event.key === " ") && event.target.closest?.("a, button, summary, [role=button]")) return;
  const found = KEYS.find(({ name, pane }) => name === event.key && pane === state.pane) ?? everywhere().find(({ name }) => name === event.key);
  if (!found || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  found.run();
});
