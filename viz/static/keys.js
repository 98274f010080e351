// The keyboard: one table of keys, which is also the help.
import { h } from "./dom.js";

const KEYS = [];

export function key(name, meaning, run) {
  KEYS.push({ name, meaning, run });
}

export function help(dialog) {
  dialog.replaceChildren(h("h2", {}, "Keys"),
    h("dl", { class: "keys" }, KEYS.map(({ name, meaning }) => [h("dt", {}, h("kbd", {}, name)), h("dd", {}, meaning)])),
    h("button", { type: "button", onclick: () => dialog.close() }, "Close"));
  dialog.showModal();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest?.("input, select, textarea");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const found = KEYS.find(({ name }) => name === event.key);
  if (!found || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  found.run();
});
