// The map: every latent a point, near to those that write a similar direction.
import { card } from "../latents/card.js";
import { choice, empty, h, number, words } from "../base/dom.js";
import { exports } from "../base/export.js";
import { key } from "../base/keys.js";
import { colouring, legend, rangeOf } from "./mapColour.js";
import { mapCanvas } from "./mapCanvas.js";
import { noMap } from "./mapMake.js";
import { foundPlaces, latentWords, mapTable, textOf } from "./mapTable.js";
import { onTheme } from "../base/theme.js";
import { ask, column, frozen } from "../base/transport.js";
import { declare, on, set, state } from "../base/state.js";

const WIDE = "(min-width: 900px)";
const WAIT = 60;    // ms on a point before its example is asked for: a pointer crosses many on its way
const MOST_LISTED = 2000;   // latents of a selection that the list is asked to show: they stand in the address
declare({ mapcolour: "density", mapscale: "auto", mapview: "", mapquery: "" });
const shown = { map: null, table: null, range: null, values: null, steps: [], at: -1, draw: null };

on(["store"], () => state.pane === "map" && shown.draw?.());
on(["mapcolour", "mapscale"], () => recolour());
on(["mapquery"], () => search());
on(["latent"], () => state.pane === "map" && choose());
on(["mapview"], () => { if (shown.map?.box.isConnected) { shown.map.lens.read(); shown.map.frame(); } });
onTheme(() => shown.map?.box.isConnected && recolour());

async function recolour() {
  const { map, table, parts } = shown;
  if (!map) return;
  const name = table.names.includes(state.mapcolour) ? state.mapcolour : null;
  const values = name ? await column(table.store, name) : null;
  if (shown.map !== map) return;
  shown.values = values;
  shown.range = values ? rangeOf(values, state.mapscale) : null;
  Object.assign(map.look, colouring(values, table.x.length, shown.range));
  parts.legend.replaceChildren(legend(name, shown.range ?? {}, table.notes[name]));
  parts.scale.hidden = !shown.range?.canLog;
  parts.scale.textContent = shown.range?.log ? "log" : "linear";
  parts.scale.setAttribute("aria-pressed", String(Boolean(shown.range?.log)));
  map.frame();
}

let searching = null;
async function search() {
  const { map, table, parts } = shown;
  if (!map) return;
  searching?.abort();
  const mine = searching = new AbortController();
  try {
    const found = await foundPlaces(table, state.mapquery, mine.signal);
    if (mine !== searching || shown.map !== map) return;
    emphasise(found?.places ?? null, found ? `${number(found.total)} found: ${found.why}` : "");
  } catch (error) {
    if (mine === searching) parts.found.textContent = error.name === "AbortError" ? "" : error.message;
  }
}

// Bring some places out; null brings all back.
function emphasise(places, said) {
  const { map, table, parts } = shown;
  map.look.found = places ? Uint32Array.from(places) : null;
  parts.found.textContent = said;
  parts.list.hidden = !places?.length;
  parts.clear.hidden = !places;
  shown.steps = [];
  parts.list.onclick = () => {
    const latents = places.slice(0, MOST_LISTED).map(table.ids);
    set({ pane: "latents", filter: `among:${latents.join(",")}`, query: "", latent: null }, { push: true });
  };
  parts.list.textContent = places?.length > MOST_LISTED ? `First ${number(MOST_LISTED)} of ${number(places.length)} as a list` : `${number(places?.length ?? 0)} as a list`;
  map.frame();
}

async function say(place) {
  const { table, parts } = shown;
  if (place === null) return parts.tip.toggleAttribute("hidden", true);
  const latent = table.ids(place);
  const value = shown.values && table.names.includes(state.mapcolour) ? { name: state.mapcolour, value: shown.values[place] } : null;
  const put = (row) => parts.tip.replaceChildren(...latentWords(table, latent, row, value).filter(Boolean));
  put(null);
  parts.tip.hidden = false;
  placeTip(place);
  await new Promise((resolve) => { setTimeout(resolve, WAIT); });
  if (shown.map?.look.focus !== place) return undefined;
  const row = await textOf(table, latent);
  if (shown.map?.look.focus !== place) return undefined;
  put(row);
  return placeTip(place);
}

function placeTip(place) {
  const { map, parts } = shown;
  const [x, y] = map.at(place);
  const [wide, tall] = [map.box.clientWidth, map.box.clientHeight];
  parts.tip.style.left = `${Math.max(Math.min(x + 14, wide - parts.tip.offsetWidth - 6), 6)}px`;
  parts.tip.style.top = `${y + 18 + parts.tip.offsetHeight > tall ? Math.max(y - parts.tip.offsetHeight - 14, 6) : y + 18}px`;
}

function pick(place) {
  const latent = shown.table.ids(place);
  if (matchMedia(WIDE).matches) set({ latent }, { push: true });
  else set({ pane: "latents", latent, query: "", filter: "", only: "" }, { push: true });
}

async function choose() {
  const { map, table, parts, place } = shown;
  if (!map) return;
  const at = state.latent === null ? -1 : table.rank(state.latent);
  map.look.chosen = at >= 0 ? at : null;
  map.frame();
  const isOpen = at >= 0 && matchMedia(WIDE).matches;
  parts.body.classList.toggle("with-card", isOpen);
  parts.card.hidden = !isOpen;
  if (!isOpen) parts.card.replaceChildren();
  else await card(parts.card, place, state.latent, () => table.about, ask(`stores/${place.store}`), () => {});
}

// The next point in sight, nearest to the middle first; found ones only, while there are some.
function step(by) {
  const { map } = shown;
  if (!map) return;
  if (!shown.steps.length || map.look.focus === null || shown.steps[shown.at] !== map.look.focus) {
    const wanted = map.look.found ? new Set(map.look.found) : null;
    shown.steps = map.sight().filter((place) => !wanted || wanted.has(place));
    shown.at = -1;
  }
  if (!shown.steps.length) return;
  shown.at = (shown.at + by + shown.steps.length) % shown.steps.length;
  map.focusOn(shown.steps[shown.at]);
}

// The buttons of a map that is being replaced are still there, and do nothing.
function selectMode(isOn = !shown.map?.look.selecting) {
  if (!shown.map) return;
  shown.map.look.selecting = isOn;
  shown.map.box.classList.toggle("selecting", isOn);
  shown.parts.select.setAttribute("aria-pressed", String(isOn));
}

// The whole picture as SVG: the points as an image in it, the rest of the page knows how to save that.
function picture() {
  const { map } = shown;
  const [wide, tall] = [map.box.clientWidth, map.box.clientHeight];
  const made = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const svg = made("svg", { viewBox: `0 0 ${wide} ${tall}`, class: "map-picture", width: wide, height: tall });
  for (const canvas of [map.base, map.over]) svg.append(made("image", { href: canvas.toDataURL("image/png"), x: 0, y: 0, width: wide, height: tall }));
  shown.parts.picture.replaceChildren(svg);
  return svg;
}

function tableOut() {
  const { table, values } = shown;
  return { columns: ["latent", "x", "y", ...(values ? [state.mapcolour] : [])],
    rows: Array.from(table.x, (x, place) => [table.ids(place), x, table.y[place], ...(values ? [values[place]] : [])]) };
}

function about({ method, settings }) {
  if (method === "pca") return `PCA of the decoder directions: the plane with the largest variance, ${number(100 * settings.variance)} % of it.${settings.because ? ` Not UMAP: ${settings.because}.` : ""}`;
  return `UMAP of the decoder directions (cosine, ${settings.neighbours} neighbours, seed ${settings.seed}). Near means similar; how far groups lie apart and how dense they are means little.`;
}

function controls(table, index) {
  const names = ["one colour", ...table.names];
  const tool = (name, text, label, run) => h("button", { type: "button", class: "map-tool", "data-testid": `map-${name}`, "aria-label": label, title: label, onclick: run }, text);
  const parts = {
    scale: h("button", { type: "button", "data-testid": "map-log", title: "scale of the colours", onclick: () => set({ mapscale: shown.range.log ? "linear" : "log" }) }, "log"),
    found: h("span", { class: "quiet map-found", role: "status", "data-testid": "map-found" }),
    list: h("button", { type: "button", hidden: true, "data-testid": "map-list" }),
    clear: h("button", { type: "button", hidden: true, "data-testid": "map-clear", onclick: () => { set({ mapquery: "" }); parts.search.value = ""; emphasise(null, ""); } }, "All"),
    select: h("button", { type: "button", class: "map-tool", "aria-pressed": "false", "data-testid": "map-select", title: "draw around latents to select them (s, or hold Shift)", onclick: () => selectMode() }, "Select"),
    search: h("input", { type: "search", id: "map-search", value: state.mapquery, placeholder: "Find on the map", "aria-label": "Find on the map", "data-testid": "map-search",
      onchange: (event) => set({ mapquery: event.target.value }), oninput: (event) => { clearTimeout(shown.typing); shown.typing = setTimeout(() => set({ mapquery: event.target.value }), 250); } }),
    legend: h("div"), tip: h("div", { class: "map-tip", role: "status", hidden: true, "data-testid": "map-tip" }), card: h("section", { class: "map-card cardbox", "aria-label": "Feature card", hidden: true }),
    body: h("div", { class: "map-body" }), picture: h("div", { class: "unseen", "aria-hidden": "true" }),
  };
  const colourChoice = choice("Colour", names.map(words), Math.max(names.indexOf(state.mapcolour), 0), (place) => set({ mapcolour: place ? names[place] : "none", mapscale: "auto" }));
  parts.head = h("div", { class: "tools map-head" }, choice("Store", index.stores.map((store) => store.name), table.store, (store) => set({ store, latent: null, mapview: "" })),
    colourChoice, parts.scale, parts.search, parts.select,
    h("span", { class: "segments", role: "group", "aria-label": "Zoom" }, tool("in", "+", "closer (+)", () => shown.map?.lens.zoomAt(1.6)), tool("out", "−", "further (−)", () => shown.map?.lens.zoomAt(1 / 1.6)), tool("whole", "whole", "the whole map (0)", () => shown.map?.lens.whole())),
    exports(`map of ${index.stores[table.store].name}`, { svg: picture, table: tableOut }));
  parts.told = h("div", { class: "tools map-told" }, parts.found, parts.list, parts.clear);
  return parts;
}

async function draw(content, index) {
  const store = Math.min(state.store, index.stores.length - 1);
  shown.draw = () => draw(content, index);
  shown.map = null;
  const place = { store, total: index.stores[store].latents, name: index.stores[store].name, heading: "h2" };
  const how = await ask(`stores/${store}/map`).catch(() => null);
  const table = how?.map ? await mapTable(store, place.total) : null;
  if (!table) {
    const pick = choice("Store", index.stores.map((one) => one.name), store, (next) => set({ store: next, latent: null, mapview: "" }));
    return content.replaceChildren(h("div", { class: "map-empty" }, pick, frozen ? [h("h1", {}, "Map"), empty("This page carries no map of this store.")] : noMap(store, place.name, how, () => draw(content, index))));
  }
  const parts = controls(table, index);
  const map = mapCanvas(table, { hover: say, pick, selected: (places) => { selectMode(false); emphasise(places, `${number(places.length)} selected`); } });
  map.box.append(parts.tip);
  map.box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || map.look.focus === null) return;
    event.preventDefault();
    pick(map.look.focus);
  });
  Object.assign(shown, { map, table, parts, place, steps: [] });
  parts.body.append(h("div", { class: "map-side" }, map.box, h("div", { class: "map-foot" }, parts.legend, h("p", { class: "quiet", id: "map-how" }, how?.map ? about(how.map) : "",
    frozen && table.x.length < table.total ? ` This page carries ${number(table.x.length)} of ${number(table.total)} latents.` : ""))), parts.card);
  content.replaceChildren(h("h1", { class: "unseen" }, `Map of ${place.name}`), parts.head, parts.told, parts.body, parts.picture);
  await recolour();
  await Promise.all([state.mapquery ? search() : null, choose()]);
  return undefined;
}

const zoomKeys = [["+", 1.4], ["=", 1.4], ["-", 1 / 1.4]];
for (const [name, factor] of zoomKeys) key(name, factor > 1 ? "closer" : "further", () => shown.map?.lens.zoomAt(factor), "map");
for (const [name, dx, dy] of [["ArrowLeft", 80, 0], ["ArrowRight", -80, 0], ["ArrowUp", 0, 80], ["ArrowDown", 0, -80]]) key(name, "move the map", () => shown.map?.lens.pan(dx, dy), "map");
key("0", "the whole map", () => shown.map?.lens.whole(), "map");
key("j", "next latent in sight, from the middle outwards", () => step(1), "map");
key("k", "previous latent in sight", () => step(-1), "map");
key("o", "open the latent that the keys are on", () => shown.map && shown.map.look.focus !== null && pick(shown.map.look.focus), "map");
key("s", "select by drawing around latents", () => shown.map && selectMode(), "map");
key("/", "find on the map", () => document.getElementById("map-search")?.focus(), "map");
key("Escape", "leave the selection, close the card", () => {
  if (!shown.map) return;
  if (shown.map.look.selecting) selectMode(false);
  else if (shown.map.look.found) shown.parts.clear.click();
  else set({ latent: null });
}, "map");

export const map = { name: "map", title: "Map", wanted: (index) => index.stores.some((store) => !frozen || store.map), draw };
