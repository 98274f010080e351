// The picture of a circuit: tokens across, layers up, edges red where they raise their target and blue where they lower it.
import { h } from "../base/dom.js";

const [UNIT, BOTTOM, LABELS] = [16, 30, 62];   // px: least width of a cell, margin below, width of the layers' names
const [TALLEST, LEAST, MOST] = [860, 26, 42];   // px: wished height of all rows, of one row at least and at most

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
  const unit = Math.max(UNIT, (width - 8) / Math.max(total, 1));
  const row = Math.min(Math.max(TALLEST / graph.rows.length, LEAST), MOST);
  const top = Object.values(graph.nodes).some((one) => one.kind === "logit" && "x" in one) ? 84 : 30;
  const height = top + BOTTOM + graph.rows.length * row;
  return { unit, row, top, width: Math.max(total * unit, 40), height, x: (x) => x * unit, y: (y) => height - BOTTOM - (y + 0.5) * row };
}

// Node numbers that stay above the threshold: the fewest of largest influence that carry `keep` per cent; targets and tokens always.
export function above(graph, keep) {
  const drawn = Object.keys(graph.nodes).filter((id) => "x" in graph.nodes[id]);
  const fixed = new Set(drawn.filter((id) => ["token", "logit", "direction"].includes(graph.nodes[id].kind)));
  const counted = drawn.filter((id) => !fixed.has(id)).sort((a, b) => (graph.nodes[b].influence ?? 0) - (graph.nodes[a].influence ?? 0));
  const total = counted.reduce((sum, id) => sum + (graph.nodes[id].influence ?? 0), 0);
  let carried = 0;
  for (const id of counted) {
    if (keep < 100 && carried >= (keep / 100) * total) break;
    carried += graph.nodes[id].influence ?? 0;
    fixed.add(id);
  }
  return fixed;
}

function edgePath([target, source, weight, strength], graph, at) {
  const [from, to] = [graph.nodes[source], graph.nodes[target]];
  const [x0, y0, x1, y1] = [at.x(from.x), at.y(from.y), at.x(to.x), at.y(to.y)];
  const middle = (y0 + y1) / 2;
  const share = Math.sqrt(strength);
  return h("path", { d: `M${x0},${y0}C${x0},${middle} ${x1},${middle} ${x1},${y1}`, class: weight > 0 ? "edge raises" : "edge lowers",
    "data-source": source, "data-target": target, "data-weight": weight, "stroke-width": (0.5 + 3.5 * share).toFixed(2),
    style: { "--strength": (0.15 + 0.5 * share).toFixed(2) } });
}

function node(id, graph, at, marks) {
  const one = graph.nodes[id];
  const size = 3.5 + 5 * Math.sqrt(Math.min(one.influence ?? 0, 1));
  const text = marks.describe(id);
  return h("g", { class: `node ${one.kind}`, transform: `translate(${at.x(one.x)},${at.y(one.y)})`, tabindex: id === marks.entry ? 0 : -1, role: "button",
    "data-testid": "node", "data-node": id, "aria-label": text, "aria-pressed": String(marks.pinned.has(Number(id))) },
  h("circle", { r: 11, class: "reach" }), shape(one.kind, size),
  marks.pinned.has(Number(id)) ? h("circle", { r: size + 3.5, class: "pin" }) : null,
  one.kind === "logit" ? h("text", { x: 3, y: -10, "text-anchor": "start", transform: "rotate(-52)" }, clip(one.label, 84)) : null);
}

// `text` cut to about `width` px of the 12 px monospaced font.
export function clip(text, width) {
  const fits = Math.max(Math.floor(width / 7.4), 1);
  const letters = [...text];
  return letters.length <= fits ? text : letters.slice(0, fits - 1).join("") + "…";
}

function axes(graph, at) {
  return [graph.rows.map(({ y }, place) => (place % 2 ? null : h("rect", { class: "band", x: 0, width: at.width, y: at.y(y) - at.row / 2, height: at.row }))),
    graph.columns.slice(0, -1).map(({ x, width }) => h("line", { class: "rule", x1: at.x(x + width / 2), x2: at.x(x + width / 2), y1: at.top, y2: at.height - BOTTOM })),
    graph.columns.map(({ x, width, token }) => h("text", { class: "token", x: at.x(x), y: at.height - 10, "text-anchor": "middle" },
      clip(token, width * at.unit), h("title", {}, token)))];
}

// A node's own edges to drawn nodes, however weak; strength relative to its strongest.
export function own(graph, id) {
  const one = graph.nodes[id];
  if (!one?.incoming) return [];
  const drawn = (rows, ends) => {
    const most = Math.max(...rows.map(([, weight]) => Math.abs(weight ?? 0)), 1e-12);
    return rows.map(([other, weight]) => [...ends(other), weight, Math.abs(weight ?? 0) / most]);
  };
  return [...drawn(one.incoming, (other) => [Number(id), other]), ...drawn(one.outgoing, (other) => [other, Number(id)])]
    .filter(([target, source]) => "x" in (graph.nodes[target] ?? {}) && "x" in (graph.nodes[source] ?? {}));
}

// `marks`: { shown: Set of ids, strongest, chosen, pinned: Set, entry: the id that Tab reaches, describe(id) → words }.
export function picture(graph, width, marks) {
  const at = geometry(graph, width);
  const inside = graph.edges.filter(([target, source]) => marks.shown.has(String(target)) && marks.shown.has(String(source))).slice(0, marks.strongest);
  const drawn = Object.keys(graph.nodes).filter((id) => marks.shown.has(id));
  const svg = h("svg", { width: at.width, height: at.height, "data-testid": "circuit", role: "group",
    "aria-label": `Circuit of ${drawn.length} nodes; arrow keys walk over them` }, axes(graph, at),
  h("g", { class: "edges-drawn" }, inside.map((one) => edgePath(one, graph, at)).reverse()), h("g", { class: "edges-chosen" }),
  h("g", {}, drawn.map((id) => node(id, graph, at, marks))));
  return { svg, at };
}

export function layerNames(graph, width) {
  const at = geometry(graph, width);
  return h("svg", { class: "labels", width: LABELS, height: at.height, "aria-hidden": "true" },
    graph.rows.map(({ y, label }) => h("text", { x: LABELS - 6, y: at.y(y) + 4, "text-anchor": "end" }, label)));
}

// Show the edges of one node, and dim what is not near it.
export function highlight({ svg, at }, graph, id, shown) {
  svg.classList.toggle("some", id !== null && "x" in (graph.nodes[id] ?? {}));
  const edges = id === null ? [] : own(graph, id).filter(([target, source]) => shown.has(String(target)) && shown.has(String(source)));
  svg.querySelector(".edges-chosen").replaceChildren(...edges.map((one) => edgePath(one, graph, at)));
  const near = new Set([String(id), ...edges.flatMap(([target, source]) => [String(target), String(source)])]);
  for (const group of svg.querySelectorAll(".node")) group.classList.toggle("on", near.has(group.dataset.node));
}

export function legend(graph) {
  const kinds = [...new Set(Object.values(graph.nodes).filter((one) => "x" in one).map((one) => one.kind))];
  return h("ul", { class: "legend" }, kinds.map((kind) => h("li", {}, h("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" },
    h("g", { class: `node ${kind}` }, shape(kind, 5))), graph.kinds[kind] ?? kind)),
  h("li", { class: "raises" }, "— raises"), h("li", { class: "lowers" }, "— lowers"));
}

// The weight of the edge between two nodes, either way round; null where none is known.
export function between(graph, a, b) {
  for (const [one, other] of [[a, b], [b, a]]) {
    const found = graph.nodes[one]?.incoming?.find(([id]) => id === Number(other)) ?? null;
    if (found) return { source: Number(other), target: Number(one), weight: found[1] };
    const edge = graph.nodes[other]?.outgoing?.find(([id]) => id === Number(one)) ?? null;
    if (edge) return { source: Number(other), target: Number(one), weight: edge[1] };
  }
  return null;
}
