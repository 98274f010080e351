// The frame: title, tabs, keys, and the pane that the state asks for.
import { empty, h, link } from "./dom.js";
import { help, key } from "./keys.js";
import { ask } from "./transport.js";
import { on, readHash, set, state } from "./state.js";
import { overview } from "./overview.js";
import { training } from "./training.js";
import { latents, step } from "./latents.js";
import { circuit } from "./circuit.js";

const PANES = [["overview", "Overview", overview, () => true], ["training", "Training", training, (index) => index.runs.length],
  ["latents", "Latents", latents, (index) => index.stores.length], ["circuit", "Circuit", circuit, (index) => index.graphs.length]];
const pane = document.getElementById("pane");
const tabs = document.getElementById("tabs");

function drawTabs(open) {
  tabs.replaceChildren(...open.map(([name, text]) => link({ pane: name }, { role: "tab", "data-testid": `tab-${name}`,
    "aria-selected": String(name === state.pane) }, text)));
}

async function drawPane(open, index) {
  const [name, , draw] = open.find(([candidate]) => candidate === state.pane) ?? open[0];
  const content = h("div", { class: `view ${name}`, "data-testid": `view-${name}` });
  try {
    await draw(content, index);
  } catch (error) {
    content.replaceChildren(empty(`This view could not be drawn: ${error.message}`));
  }
  if ((open.find(([candidate]) => candidate === state.pane) ?? open[0])[0] === name) pane.replaceChildren(content);
}

async function start() {
  readHash();
  const index = await ask("index");
  const open = PANES.filter(([, , , wanted]) => wanted(index));
  document.title = index.title;
  document.getElementById("title").textContent = index.title;
  const redraw = () => { drawTabs(open); return drawPane(open, index); };
  on(["pane"], () => { redraw(); window.scrollTo(0, 0); });
  key("j", "next latent", () => step(1));
  key("k", "previous latent", () => step(-1));
  key("/", "search latents", () => {
    set({ pane: "latents" });
    requestAnimationFrame(() => document.querySelector("#search")?.focus());
  });
  open.forEach(([name, text], place) => key(String(place + 1), text, () => set({ pane: name }, { push: true })));
  key("?", "these keys", () => help(document.getElementById("help")));
  document.getElementById("help-button").addEventListener("click", () => help(document.getElementById("help")));
  await redraw();
  document.body.dataset.ready = "yes";
}

start().catch((error) => pane.replaceChildren(empty(`The page could not be drawn: ${error.message}`)));
