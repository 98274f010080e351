// Light, dark, or as the system has it.
import { h } from "./dom.js";

const NAMES = ["auto", "light", "dark"];
const SIGNS = { auto: "◐", light: "○", dark: "●" };
const listeners = new Set();

// Called after the colours have changed, until it answers false.
export function onTheme(run) {
  listeners.add(run);
}

function remembered() {
  try {
    return localStorage.getItem("unweave-theme");
  } catch {
    return null;   // a frame without an origin has no storage
  }
}

function apply(name) {
  document.documentElement.dataset.theme = name;
  for (const run of listeners) if (run() === false) listeners.delete(run);
}

export function themeButton(button) {
  let name = NAMES.includes(remembered()) ? remembered() : "auto";
  const show = () => {
    apply(name);
    button.replaceChildren(h("span", { "aria-hidden": "true" }, SIGNS[name]));
    button.setAttribute("aria-label", `Colours: ${name}`);
    button.title = `Colours: ${name}`;
  };
  button.addEventListener("click", () => {
    name = NAMES[(NAMES.indexOf(name) + 1) % NAMES.length];
    try {
      localStorage.setItem("unweave-theme", name);
    } catch { /* shown all the same */ }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(name));
  show();
}
