// The circuit page: the picture, what is chosen in it, what is pinned, and sheets of tables, experiments and figures.
import { choice, empty, facts, flat, h, number, tile, words } from "../base/dom.js";
import { exports } from "../base/export.js";
import { key } from "../base/keys.js";
import { above, highlight, layerNames, legend, picture } from "./circuitPicture.js";
import { anew, isUntouched, pinned, show, toggle } from "./circuitState.js";
import { figuresSheet } from "./circuitFigures.js";
import { finder } from "./circuitFind.js";
import { take } from "./circuitTake.js";
import { headsSheet, nodeHeads } from "./heads.js";
import { describe, known, nodeDetails, pathList, targetList } from "./node.js";
import { nodeCard } from "./nodeCard.js";
import { pinnedPart } from "./pinned.js";
import { qkSheet } from "./qk.js";
import { validationSheet } from "./validation.js";
import { walk } from "./circuitWalk.js";
import { ask, fresh, frozen } from "../base/transport.js";
import { rove } from "../base/tip.js";
import { on, set, state } from "../base/state.js";

const SHEETS = [["paths", "Paths", (box, graph) => box.replaceChildren(...pathList(graph))], ["heads", "Heads", headsSheet], ["qk", "Attention scores", qkSheet],
  ["validation", "Validation", validationSheet], ["figures", "Figures", figuresSheet],
  ["traced", "How it was traced", (box, graph) => box.replaceChildren(facts(flat(graph.metadata).filter(([name]) => !/^(tokens|token_strings|prompt)$/.test(name))))]];
const AMOUNTS = [60, 120, 250, 500, 1000];
const page = { shown: new Set(), opened: new Set() };   // what is drawn now; circuits whose saved view was looked for

on(["node"], () => page.select?.());
on(["pins", "groups", "joined"], () => page.pin?.());
on(["keep", "strongest"], () => page.paint?.());
on(["graph", "drawn"], () => page.reload?.());
on(["sheet", "ledger"], () => page.sheet?.());

const HERE = [["p", "pin or unpin the chosen node", () => state.node !== null && toggle(state.node)], ["g", "group the pins", () => document.querySelector("[data-testid=group]")?.click()],
  ["f", "find a node", () => document.querySelector("[data-testid=find-node]")?.focus()], ["n", "go to the picture's nodes", () => document.querySelector(".stage [data-testid=node][tabindex='0']")?.focus()],
  ["Escape", "choose no node", () => set({ node: null })], ["←→↑↓", "in the picture: to the next node", () => {}], ["Shift ↑↓", "in the picture: along the strongest edge", () => {}]];
for (const [name, meaning, run] of HERE) key(name, meaning, run, "circuit");

function scores(graph) {
  return h("div", { class: "tiles", "data-testid": "scores" },
    [["residual", graph.residual], ...Object.entries(graph.scores)].map(([name, value]) => tile(number(value), words(name))),
    tile(number(graph.counts.nodes), `nodes, ${number(graph.counts.drawn)} drawn`), tile(number(graph.counts.edges), "edges"));
}

function slider(label, testid, range, value, change, told) {
  const output = h("output", {}, told(value));
  return h("label", { class: "choice" }, h("span", {}, label), h("input", { type: "range", ...range, value, "data-testid": testid, oninput: (event) => {
    output.textContent = told(Number(event.target.value));
    change(Number(event.target.value));
  } }), output);
}

function controls(graph, place, list, mark) {
  const most = Math.min(graph.edges.length, 2000);
  return h("div", { class: "tools controls" },
    slider("Influence shown", "keep-slider", { min: 10, max: 100 }, state.keep, (keep) => set({ keep }), (value) => `${value} %`),
    slider("Strongest edges", "edge-slider", { min: Math.min(10, most), max: most }, Math.min(state.strongest, most), (strongest) => set({ strongest }), number),
    frozen ? null : h("label", { class: "choice" }, "Nodes", h("select", { "aria-label": "Nodes in the picture", "data-testid": "drawn", onchange: (event) => set({ drawn: Number(event.target.value) }) },
      [...new Set([...AMOUNTS, state.drawn])].sort((a, b) => a - b).map((count) => h("option", { value: count, selected: count === state.drawn }, count)))),
    finder(graph, place, list, mark));
}

// The picture inside its frame: pointer, keyboard, tip.
function framed(graph) {
  const [stage, names, tip] = [h("div", { class: "stage" }), h("div", { class: "layer-names" }), h("div", { class: "tip", role: "status", hidden: true })];
  const frame = h("div", { class: "canvas" }, names, stage, tip);
  const drawing = {};
  const tell = (element, lines) => {
    tip.hidden = !lines;
    if (!lines) return;
    tip.replaceChildren(...lines.map((line, row) => h("div", { class: row ? "" : "first" }, line)));
    const [at, base] = [element.getBoundingClientRect(), frame.getBoundingClientRect()];
    tip.style.left = `${Math.max(Math.min(at.left - base.left + 14, base.width - tip.offsetWidth - 6), 2)}px`;
    tip.style.top = `${Math.max(at.top - base.top - tip.offsetHeight - 8, 2)}px`;
  };
  const near = (id) => highlight(drawing.now, graph, id ?? state.node, page.shown);
  frame.onpointerover = (event) => {
    const [node, edge] = [event.target.closest?.(".node"), event.target.closest?.(".edge")];
    if (node) { near(node.dataset.node); tell(node, describe(graph, node.dataset.node, state.node)); }
    else if (edge) tell(edge, [`${describe(graph, edge.dataset.source)[0]} → ${describe(graph, edge.dataset.target)[0]}`, `weight ${number(Number(edge.dataset.weight))}`]);
    else { near(null); tell(null, null); }
  };
  frame.onpointerleave = () => { near(null); tell(null, null); };
  stage.onclick = (event) => {
    const id = event.target.closest?.(".node")?.dataset.node;
    if (id === undefined) return;
    if (event.shiftKey) toggle(Number(id));
    else set({ node: Number(id) }, { push: true });
  };
  stage.onfocusin = (event) => { const node = event.target.closest(".node"); if (node) tell(node, describe(graph, node.dataset.node, state.node)); };
  stage.onfocusout = () => tell(null, null);
  stage.onkeydown = (event) => {
    const id = event.target.closest?.(".node")?.dataset.node;
    if (id === undefined) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); set({ node: Number(id) }, { push: true }); return; }
    if (event.key === "p") { event.stopPropagation(); toggle(Number(id)); return; }
    const next = walk(graph, [...page.shown], id, event);
    if (next === null) return;
    event.preventDefault();
    event.stopPropagation();
    focus(next);
  };
  const focus = (id) => {
    const node = stage.querySelector(`[data-node="${id}"]`);
    if (!node) return;
    stage.querySelector(".node[tabindex='0']")?.setAttribute("tabindex", "-1");
    node.setAttribute("tabindex", "0");
    node.focus();
  };
  const paint = () => {
    const held = stage.contains(document.activeElement) ? document.activeElement.closest(".node")?.dataset.node : undefined;
    page.shown = above(graph, state.keep);
    if (state.node !== null && "x" in (graph.nodes[state.node] ?? {})) page.shown.add(String(state.node));
    for (const id of pinned()) if ("x" in (graph.nodes[id] ?? {})) page.shown.add(String(id));
    const first = graph.targets.map(([id]) => String(id)).find((id) => page.shown.has(id)) ?? [...page.shown][0];
    const entry = held && page.shown.has(held) ? held : page.shown.has(String(state.node)) ? String(state.node) : first;
    drawing.now = picture(graph, stage.clientWidth, { shown: page.shown, strongest: state.strongest, pinned: pinned(), entry, describe: (id) => describe(graph, id).join(", ") });
    names.replaceChildren(layerNames(graph, stage.clientWidth));
    stage.replaceChildren(drawing.now.svg);
    for (const node of stage.querySelectorAll(".node")) node.classList.toggle("chosen", node.dataset.node === String(state.node));
    near(null);
    if (held !== undefined) stage.querySelector(`[data-node="${held}"]`)?.focus({ preventScroll: true });
  };
  const mark = (ids) => { for (const node of stage.querySelectorAll(".node")) node.classList.toggle("found", ids.has(node.dataset.node)); };
  // On a narrow screen: the chosen node, or else the heaviest target, in the middle.
  const centre = () => {
    const middle = graph.nodes[state.node]?.x ?? graph.nodes[[...graph.targets].sort((a, b) => (b[1] ?? 0) - (a[1] ?? 0))[0]?.[0]]?.x;
    if (middle !== undefined) stage.scrollLeft = drawing.now.at.x(middle) - stage.clientWidth / 2;
  };
  return { frame, stage, paint, mark, centre };
}

// What is told of the chosen node: its numbers and edges, its heads, its feature card.
async function chosenPart(box, graph, place) {
  const id = state.node;
  if (id !== null && !graph.nodes[id]?.incoming && !frozen) known(graph, (await ask(`graphs/${place}/nodes/${id}`).catch(() => null))?.nodes);
  const one = graph.nodes[id];
  if (id !== state.node) return;
  box.classList.toggle("some", Boolean(one));
  if (!one) { box.replaceChildren(h("p", { class: "quiet" }, "Choose a node to see what goes into it and out of it. Shift and a click pin it."), ...targetList(graph)); return; }
  const [heads, card] = [h("div", {}), h("div", { class: "node-card" })];
  box.replaceChildren(...nodeDetails(graph, id, { isPinned: pinned().has(id), pin: () => toggle(id) }), heads);
  box.querySelector(".pairs").after(card);
  nodeHeads(heads, graph, place, id).catch(() => {});
  if (one.store !== undefined) await nodeCard(card, one, (node, label) => {
    for (const each of Object.values(graph.nodes)) if (each.store === node.store && each.index === node.index) each.said = label || undefined;
    page.pin();
  });
}

function sheets(graph, place) {
  const tabs = SHEETS.map(([each, title]) => h("button", { type: "button", role: "tab", id: `sheet-${each}`, "aria-controls": "sheet", "data-testid": `sheet-${each}`, onclick: () => set({ sheet: each }) }, title));
  const bar = rove(h("div", { class: "sheet-tabs", role: "tablist", "aria-label": "Tables and figures" }, tabs), "button");
  const body = h("div", { class: "sheet", id: "sheet", role: "tabpanel", tabindex: 0, "data-testid": "sheet" });
  const draw = async () => {
    const [name, , fill] = SHEETS.find(([each]) => each === state.sheet) ?? SHEETS[0];
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab.id === `sheet-${name}`));
      tab.tabIndex = tab.id === `sheet-${name}` ? 0 : -1;
    }
    body.setAttribute("aria-labelledby", `sheet-${name}`);
    try {
      await fill(body, graph, place);
    } catch (error) {
      body.replaceChildren(empty(error.message));
    }
  };
  return { part: h("section", { class: "sheets" }, bar, body), draw };
}

async function labels(graph, place) {
  const said = await fresh(`graphs/${place}/labels`).catch(() => null);
  for (const [id, label] of Object.entries(said ?? {})) if (graph.nodes[id]) graph.nodes[id].said = label;
}

async function draw(content, index) {
  const place = Math.min(state.graph, index.graphs.length - 1);
  if (!page.opened.has(place) && isUntouched()) {
    page.opened.add(place);
    const saved = await ask(`graphs/${place}/view`).catch(() => null);
    if (saved?.pins && isUntouched()) show(saved);
  }
  const graph = (state.drawn === 120 || frozen ? null : await ask(`graphs/${place}/drawn/${state.drawn}`)) ?? await ask(`graphs/${place}`);
  await labels(graph, place);
  if (place !== Math.min(state.graph, index.graphs.length - 1)) return;
  const { frame, stage, paint, mark, centre } = framed(graph);
  const [list, chosen, pinnedBox] = [h("div", {}), h("div", { class: "chosen-node" }), h("section", { class: "pinned-part", "data-testid": "pinned" })];
  const sheet = sheets(graph, place);
  content.replaceChildren(h("div", { class: "head" }, h("h1", { class: "prompt", "data-testid": "prompt" }, graph.prompt || index.graphs[place].name),
    h("div", { class: "tools" }, choice("Circuit", index.graphs.map((each) => each.prompt || each.name), place, (graph) => set(anew(graph), { push: true })),
      take(graph, place), exports(graph.prompt || "circuit", { svg: () => stage.querySelector("svg") }))), scores(graph),
  legend(graph), controls(graph, place, list, mark),
  h("div", { class: "split" }, frame, h("aside", { class: "side", "aria-live": "polite" }, list, chosen)), pinnedBox, sheet.part);
  const alive = (run) => () => content.isConnected && place === Math.min(state.graph, index.graphs.length - 1) && run();
  page.paint = alive(paint);
  page.select = alive(() => { paint(); return chosenPart(chosen, graph, place); });
  page.pin = alive(() => { paint(); chosenPart(chosen, graph, place); if (state.sheet === "validation") sheet.draw(); return pinnedPart(pinnedBox, graph, place); });
  page.sheet = alive(sheet.draw);
  chosenPart(chosen, graph, place);
  await Promise.all([pinnedPart(pinnedBox, graph, place), sheet.draw()]);
  requestAnimationFrame(() => {
    if (!stage.isConnected) return;
    paint();
    centre();
    let width = stage.clientWidth;
    new ResizeObserver(() => { if (stage.isConnected && Math.abs(stage.clientWidth - width) > 1) { width = stage.clientWidth; paint(); } }).observe(stage);
  });
}

async function pane(content, index) {
  page.reload = () => content.isConnected && draw(content, index);
  if (!index.graphs.length) return content.replaceChildren(empty("No circuit."));
  return draw(content, index);
}

const titled = (index) => { const graph = index.graphs[Math.min(state.graph, index.graphs.length - 1)]; return graph.prompt || graph.name; };

export const circuit = { name: "circuit", title: "Circuit", wanted: (index) => index.graphs.length > 0, draw: pane, called: titled };
