// The frame: title, tabs, keys, and the pane that the state asks for.
//
// A pane is { name, title, wanted(index), draw(content, index) }: whether there is anything for it, and how it fills its
// element. It declares its part of the state (state.js), its keys (keys.js), and redraws itself where only that changes.
import { empty, h, link } from "./base/dom.js";
import { help, key } from "./base/keys.js";
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
import { map } from "./map/map.js";

const PANES = [overview, latents, prompt, circuit, circuits, compare, map, training];
const pane = document.getElementById("pane");
const tabs = document.getElementById("tabs");

function chosen(open) {
  return open.find(({ name }) => name === state.pane) ?? open[0];
}

function drawTabs(open) {
  tabs.replaceChildren(...open.map(({ name, title }) => link({ pane: name }, { role: "tab", "data-testid": `tab-${name}`,
    "aria-selected": String(name === chosen(open).name), "aria-controls": "pane" }, title)));
}

async function drawPane(open, index) {
  const { name, draw } = chosen(open);
  const content = h("div", { class: `view ${name}`, "data-testid": `view-${name}` });
  try {
    await draw(content, index);
  } catch (error) {
    content.replaceChildren(empty(`This view could not be drawn: ${error.message}`));
  }
  if (chosen(open).name === name) pane.replaceChildren(content);
}

async function start() {
  readHash();
  themeButton(document.getElementById("theme-button"));
  const index = await ask("index");
  abilitiesAre(index.can ?? []);
  const open = PANES.filter(({ wanted }) => wanted(index));
  document.title = index.title;
  document.getElementById("title").textContent = index.title;
  on(["pane"], () => { drawTabs(open); window.scrollTo(0, 0); return drawPane(open, index); });
  open.forEach(({ name, title }, place) => key(String((place + 1) % 10), title, () => set({ pane: name }, { push: true })));
  key("?", "these keys", () => help(document.getElementById("help")));
  document.getElementById("help-button").addEventListener("click", () => help(document.getElementById("help")));
  drawTabs(open);
  await drawPane(open, index);
  document.body.dataset.ready = "yes";
}

start().catch((error) => pane.replaceChildren(empty(`The page could not be drawn: ${error.message}`)));
