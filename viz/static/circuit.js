// The circuit: tokens across, layers up, edges red where they raise their target and blue where they lower it.
import { choice, details, empty, facts, flat, h, number, words } from "./dom.js";
import { nodeDetails, pathList } from "./node.js";
import { ask } from "./transport.js";
import { on, set, state } from "./state.js";

const [ROW, UNIT, TOP, BOTTOM] = [42, 22, 40, 30];   // px: height of a row, least width of a cell, margins
const view = { strongest: 150 };

on(["node"], () => view.select?.());
on(["graph"], () => view.reload?.());

function shape(kind, size) {
  if (kind === "logit" || kind === "token") return h("rect", { x: -size, y: -size, width: 2 * size, height: 2 * size, rx: 2 });
  if (kind === "neuron") return h("polygon", { points: `0,${-1.25 * size} ${1.25 * size},0 0,${1.25 * size} ${-1.25 * size},0` });
  if (kind === "latent" || kind === "rest") return h("circle", { r: size });
  if (kind === "error") return h("path", { d: `M${-size},${-size}L${size},${size}M${-size},${size}L${size},${-size}` });
  const down = kind === "bias" ? -1 : 1;
  return h("polygon", { points: `0,${-size * down} ${size},${size * down} ${-size},${size * down}` });
}

function geometry(graph, width) {
  const total = graph.columns.reduce((sum, column) => sum + column.width, 0);
  const unit = Math.max(UNIT, (width - 8) / total);
  const height = TOP + BOTTOM + graph.rows.length * ROW;
  return { unit, width: total * unit, height, x: (x) => x * unit, y: (y) => height - BOTTOM - (y + 0.5) * ROW };
}

function edge([target, source, weight, strength], graph, at) {
  const [from, to] = [graph.nodes[source], graph.nodes[target]];
  const [x0, y0, x1, y1] = [at.x(from.x), at.y(from.y), at.x(to.x), at.y(to.y)];
  const middle = (y0 + y1) / 2;
  const share = Math.sqrt(strength);
  return h("path", { d: `M${x0},${y0}C${x0},${middle} ${x1},${middle} ${x1},${y1}`, class: weight > 0 ? "edge raises" : "edge lowers",
    "data-source": source, "data-target": target, "stroke-width": (0.5 + 3.5 * share).toFixed(2), style: { "--strength": (0.15 + 0.5 * share).toFixed(2) } });
}

function node(id, graph, at) {
  const one = graph.nodes[id];
  const size = 3.5 + 5 * Math.sqrt(Math.min(one.influence ?? 0, 1));
  const text = `${graph.kinds[one.kind] ?? one.kind} ${one.label}`;
  const choose = () => set({ node: Number(id) }, { push: true });
  return h("g", { class: `node ${one.kind}`, transform: `translate(${at.x(one.x)},${at.y(one.y)})`, tabindex: 0, role: "button", "data-testid": "node",
    "data-node": id, "aria-label": text, onclick: choose, onkeydown: (event) => { if (event.key === "Enter") choose(); } },
  h("circle", { r: 11, class: "reach" }), shape(one.kind, size), h("title", {}, `${text}\nvalue ${number(one.value)}`),
  one.kind === "logit" ? h("text", { y: -12, "text-anchor": "start", transform: "rotate(-28)" }, clip(one.label, 90)) : null);
}

// `text` cut to about `width` px of the 12 px monospaced font.
function clip(text, width) {
  const fits = Math.max(Math.floor(width / 7.4), 1);
  const letters = [...text];
  return letters.length <= fits ? text : letters.slice(0, fits - 1).join("") + "…";
}

function axes(graph, at) {
  return [graph.rows.map(({ y }, place) => (place % 2 ? null : h("rect", { class: "band", x: 0, width: at.width, y: at.y(y) - ROW / 2, height: ROW }))),
    graph.columns.map(({ x, width }) => h("line", { class: "rule", x1: at.x(x + width / 2), x2: at.x(x + width / 2), y1: TOP, y2: at.height - BOTTOM })),
    graph.columns.map(({ x, width, token }) => h("text", { class: "token", x: at.x(x), y: at.height - 10, "text-anchor": "middle" },
      clip(token, width * at.unit), h("title", {}, token)))];
}

// The chosen node's own edges to drawn nodes, however weak.
function own(graph) {
  const one = graph.nodes[state.node];
  if (!one?.incoming) return [];
  const drawn = (rows, ends) => {
    const most = Math.max(...rows.map(([, weight]) => Math.abs(weight)), 1e-12);
    return rows.map(([id, weight]) => [...ends(id), weight, Math.abs(weight) / most]);
  };
  return [...drawn(one.incoming, (id) => [state.node, id]), ...drawn(one.outgoing, (id) => [id, state.node])]
    .filter(([target, source]) => "x" in graph.nodes[target] && "x" in graph.nodes[source]);
}

function picture(graph, width) {
  const at = geometry(graph, width);
  const shown = graph.edges.slice(0, view.strongest);
  const chosen = own(graph).map((one) => edge(one, graph, at));
  const drawn = Object.keys(graph.nodes).filter((id) => "x" in graph.nodes[id]);
  return h("svg", { width: at.width, height: at.height, "data-testid": "circuit", role: "group", "aria-label": "Circuit" }, axes(graph, at),
    h("g", { class: "edges-drawn" }, shown.map((one) => edge(one, graph, at)).reverse()), h("g", { class: "edges-chosen" }, chosen), h("g", {}, drawn.map((id) => node(id, graph, at))));
}

function labels(graph) {
  const at = geometry(graph, 0);
  return h("svg", { class: "labels", width: 62, height: at.height, "aria-hidden": "true" },
    graph.rows.map(({ y, label }) => h("text", { x: 56, y: at.y(y) + 4, "text-anchor": "end" }, label)));
}

function highlight(svg) {
  const chosen = state.node === null ? null : String(state.node);
  svg.classList.toggle("some", chosen !== null);
  const near = new Set([chosen]);
  for (const path of svg.querySelectorAll(".edges-chosen .edge")) near.add(path.dataset.source).add(path.dataset.target);
  for (const group of svg.querySelectorAll(".node")) {
    group.classList.toggle("on", near.has(group.dataset.node));
    group.classList.toggle("chosen", group.dataset.node === chosen);
  }
}

function scores(graph) {
  return h("div", { class: "tiles", "data-testid": "scores" },
    [["residual", graph.residual], ...Object.entries(graph.scores)].map(([name, value]) =>
      h("div", { class: "tile" }, h("b", {}, name === "residual" && value ? value.toExponential(1) : number(value)), h("span", {}, words(name)))),
    h("div", { class: "tile" }, h("b", {}, number(graph.counts.nodes)), h("span", {}, "nodes")),
    h("div", { class: "tile" }, h("b", {}, number(graph.counts.edges)), h("span", {}, "edges")));
}

function legend(graph) {
  const kinds = [...new Set(Object.values(graph.nodes).filter((one) => "x" in one).map((one) => one.kind))];
  return h("ul", { class: "legend" }, kinds.map((kind) => h("li", {}, h("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16" },
    h("g", { class: `node ${kind}` }, shape(kind, 5))), graph.kinds[kind] ?? kind)),
  h("li", { class: "raises" }, "— raises"), h("li", { class: "lowers" }, "— lowers"));
}

async function draw(content, index) {
  const place = Math.min(state.graph, index.graphs.length - 1);
  const graph = await ask(`graphs/${place}`);
  const [stage, side] = [h("div", { class: "stage" }), h("aside", { class: "side", "aria-live": "polite" })];
  const paint = () => {
    const svg = picture(graph, stage.clientWidth);
    stage.replaceChildren(svg);
    highlight(svg);
  };
  const most = graph.edges.length;
  const slider = h("input", { type: "range", min: Math.min(10, most), max: most, value: Math.min(view.strongest, most), "data-testid": "edge-slider",
    oninput: (event) => { view.strongest = Number(event.target.value); paint(); } });
  content.replaceChildren(h("div", { class: "head" }, h("h1", { class: "prompt", "data-testid": "prompt" }, graph.prompt || index.graphs[place].name),
    choice("Circuit", index.graphs.map((each) => each.name), place, (graph) => set({ graph, node: null }))), scores(graph),
  h("div", { class: "tools" }, legend(graph), h("label", { class: "choice" }, h("span", {}, "Strongest edges"), slider)),
  h("div", { class: "split" }, h("div", { class: "canvas" }, labels(graph), stage), side));
  view.select = () => {
    const focused = stage.contains(document.activeElement);
    if (stage.isConnected) paint();
    if (focused) stage.querySelector(`[data-node="${state.node}"]`)?.focus({ preventScroll: true });
    side.replaceChildren(...(graph.nodes[state.node] ? nodeDetails(graph, state.node)
      : [h("p", { class: "quiet" }, "Choose a node to see what goes into it and out of it."), ...pathList(graph)]),
    details("How it was traced", facts(flat(graph.metadata).filter(([name]) => !/^(tokens|token_strings|prompt)$/.test(name)))));
  };
  view.select();
  requestAnimationFrame(() => {
    paint();
    stage.scrollLeft = stage.scrollWidth;
    new ResizeObserver(() => stage.isConnected && paint()).observe(stage);
  });
}

async function pane(content, index) {
  view.reload = () => content.isConnected && draw(content, index);
  if (!index.graphs.length) return content.replaceChildren(empty("No circuit."));
  return draw(content, index);
}

export const circuit = { name: "circuit", title: "Circuit", wanted: (index) => index.graphs.length > 0, draw: pane };
