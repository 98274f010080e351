// The frame: title, tabs, keys, and the pane that the state asks for.
//
// A pane is { name, title, wanted(index), draw(content, index), called() }: whether there is anything for it, how it fills its
// element, and optionally what it shows now, for the window's title. It declares its part of the state (state.js), its keys
// (keys.js), and redraws itself where only that changes.
import { empty, h, link } from "./base/dom.js";
import { help, key } from "./base/keys.js";
import { rove } from "./base/tip.js";
import { abilitiesAre, ask } from "./base/transport.js";
import { on, readHash, set, state } from "./base/state.js";
import { themeButton } from "./base/theme.js";
import { overview } from "./run/overview.js";
import { training } from "./run/training.js";
import { latents } from "./latents/latents.js";
import { prompt } from "./prompt/prompt.js";
import { circuit } from "./circuit/circuit.js";
import { circuits } from "./circuit/circuits.js";
import { compare } from "./compare/compare.js";
import { diff } from "./diff/diff.js";
import { audit } from "./audit/audit.js";
import { map } from "./map/map.js";

const PANES = [overview, latents, prompt, circuit, circuits, compare, diff, audit, map, training];
const SLOW = 250;   // ms after which a pane that is not there yet is said to load
const pane = document.getElementById("pane");
const tabs = document.getElementById("tabs");

// The pane of the state; where there is none of that name, the first one becomes it.
function chosen(open) {
  const found = open.find(({ name }) => name === state.pane);
  if (!found) set({ pane: open[0].name });
  return found ?? open[0];
}

function drawTabs(open) {
  tabs.replaceChildren(...open.map(({ name, title }, place) => link({ pane: name }, { role: "tab", id: `tab-${name}`, "data-testid": `tab-${name}`, "aria-controls": "pane",
    title: `${title} (${(place + 1) % 10})`, onkeydown: (event) => { if (event.key === " ") { event.preventDefault(); event.currentTarget.click(); } } }, title)));
  rove(tabs, "a");
}

function markTab({ name }) {
  for (const tab of tabs.children) {
    tab.setAttribute("aria-selected", String(tab.id === `tab-${name}`));
    tab.tabIndex = tab.id === `tab-${name}` ? 0 : -1;
  }
  const tab = document.getElementById(`tab-${name}`);
  tabs.scrollLeft = tab.offsetLeft + tab.offsetWidth / 2 - tabs.offsetLeft - tabs.clientWidth / 2;
  pane.setAttribute("aria-labelledby", tab.id);
}

function nameWindow(open, index) {
  const { title, called } = chosen(open);
  document.title = [called?.(index), title, index.title].filter(Boolean).join(" · ");
}

// A sign of work in the pane's place, for what is slow alone. It stands empty for a moment: only what changes in a live region is announced.
function loading() {
  const told = h("p", { class: "view quiet", role: "status", "data-testid": "loading" });
  const timer = setTimeout(() => {
    pane.replaceChildren(told);
    setTimeout(() => { told.textContent = "Loading…"; }, 50);
  }, SLOW);
  return () => clearTimeout(timer);
}

let loaded = loading();   // ends the sign of the newest drawing; at first, of the page itself

// Of several drawings under way only the newest is shown.
async function drawPane(open, index) {
  const { name, draw } = chosen(open);
  const content = h("div", { class: `view ${name}`, "data-testid": `view-${name}` });
  loaded();
  const mine = loaded = loading();
  try {
    await draw(content, index);
  } catch (error) {
    content.replaceChildren(h("h1", {}, "Something is amiss"), empty(`This view could not be drawn: ${error.message}`));
  }
  if (mine !== loaded) return;
  mine();
  pane.replaceChildren(content);
}

// Another pane begins at its top; one that is come back to, where it was left.
async function change(open, index) {
  const back = history.state?.scrolled ?? 0;
  markTab(chosen(open));
  if (!back) window.scrollTo(0, 0);
  await drawPane(open, index);
  if (back) requestAnimationFrame(() => window.scrollTo(0, back));
}

async function start() {
  readHash();
  themeButton(document.getElementById("theme-button"));
  const index = await ask("index");
  abilitiesAre(index.can ?? []);
  const open = PANES.filter(({ wanted }) => wanted(index));
  document.getElementById("title").textContent = index.title;
  drawTabs(open);
  markTab(chosen(open));
  nameWindow(open, index);
  on(["pane"], () => change(open, index));
  on(["pane", "store", "latent", "graph", "diff", "audit", "run", "prompt"], () => nameWindow(open, index));
  open.forEach(({ name, title }, place) => key(String((place + 1) % 10), title, () => set({ pane: name }, { push: true })));
  key("?", "these keys", () => help(document.getElementById("help")));
  document.getElementById("help-button").addEventListener("click", () => help(document.getElementById("help")));
  await drawPane(open, index);
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  loaded();
  pane.replaceChildren(empty(`The page could not be drawn: ${error.message}`));
});
