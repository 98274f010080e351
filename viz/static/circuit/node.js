// One node of a circuit in words: its numbers, what goes in, what goes out; and the strongest paths.
import { h, link, number, signed } from "../base/dom.js";
import { between } from "./circuitPicture.js";
import { frozen } from "../base/transport.js";
import { set } from "../base/state.js";

// Add nodes that another answer described to those that the circuit's answer has.
export function known(graph, nodes) {
  for (const [id, one] of Object.entries(nodes ?? {})) graph.nodes[id] = { ...one, ...graph.nodes[id], ...(one.incoming ? { incoming: one.incoming, outgoing: one.outgoing } : {}) };
}

// What a node is called: a person's label where there is one.
export function called(graph, id) {
  const one = graph.nodes[id];
  return one ? one.said ?? one.label : `node ${id}`;
}

export function name(graph, id) {
  const one = graph.nodes[id];
  if (!one) return h("span", {}, `node ${id}`);
  const text = [h("i", { class: `dot ${one.kind}` }), one.said ? [h("b", {}, one.said), " "] : "", one.said ? h("small", {}, one.label) : one.label, h("small", {}, place(graph, one))];
  return "x" in one || !frozen ? link({ node: Number(id) }, {}, text) : h("span", {}, text);
}

export function place(graph, one) {
  if (one.kind === "token") return "";
  const token = graph.columns.find((column) => column.position === one.position && one.position >= 0)?.token;
  const says = /^L\d/.test(one.label) || one.layer < 0 || one.kind === "logit";
  return [says ? "" : ` layer ${one.layer}`, token ? ` at ${token}` : ""].join("");
}

// The words of a node for its button and its tip.
export function describe(graph, id, chosen = null) {
  const one = graph.nodes[id];
  const lines = [`${called(graph, id)}${place(graph, one)}`, `${graph.kinds[one.kind] ?? one.kind}, value ${number(one.value)}, influence ${number(one.influence)}`];
  const edge = chosen === null || Number(chosen) === Number(id) ? null : between(graph, chosen, id);
  if (edge) lines.push(`${signed(edge.weight)} ${edge.source === Number(id) ? "to" : "from"} ${called(graph, chosen)}`);
  return lines;
}

function edges(graph, title, rows, testid) {
  if (!rows.length) return [];
  const most = Math.max(...rows.map(([, weight]) => Math.abs(weight ?? 0)), 1e-12);
  return [h("h3", {}, title), h("table", { class: "edges", "data-testid": testid }, h("tbody", {}, rows.map(([id, weight]) =>
    h("tr", { class: weight > 0 ? "raises" : "lowers" }, h("td", {}, name(graph, id)),
      h("td", { class: "num" }, h("i", { class: "bar", style: { width: `${(Math.abs(weight ?? 0) / most) * 40}px` } }), signed(weight))))))];
}

// `act`: { isPinned, pin() }.
export function nodeDetails(graph, id, act) {
  const one = graph.nodes[id];
  return [h("div", { class: "head", "data-testid": "node-details", "data-node": id }, h("h2", {}, called(graph, id)),
    h("div", { class: "tools" }, h("button", { type: "button", "data-testid": "pin-node", "aria-pressed": String(act.isPinned), onclick: act.pin }, act.isPinned ? "Unpin" : "Pin"),
      h("button", { type: "button", "aria-label": "Close", onclick: () => set({ node: null }) }, "×"))),
  h("p", { class: "quiet" }, `${one.said ? `${one.label}, ` : ""}${graph.kinds[one.kind] ?? one.kind}${place(graph, one)}${"x" in one ? "" : "; not in the picture"}`),
  h("dl", { class: "pairs" }, [["value", one.value], ["share of influence", one.influence], ["signed attribution", one.attribution]]
    .map(([key, value]) => [h("dt", {}, key), h("dd", {}, number(value))])),
  one.store === undefined ? null : h("p", {}, link({ pane: "latents", store: one.store, latent: one.index, query: "" }, { "data-testid": "to-card" }, `Feature card of latent ${one.index} →`)),
  ...edges(graph, "Comes from", one.incoming ?? [], "incoming"), ...edges(graph, "Goes to", one.outgoing ?? [], "outgoing")].filter(Boolean);
}

function arrow(weight) {
  return h("span", { class: weight > 0 ? "arrow raises" : "arrow lowers", title: `weight ${number(weight)}` }, " → ");
}

// The targets, the likeliest first.
export function targetList(graph) {
  if (!graph.targets.length) return [];
  const most = Math.max(...graph.targets.map(([, weight]) => Math.abs(weight ?? 0)), 1e-12);
  const rows = [...graph.targets].sort((a, b) => (b[1] ?? 0) - (a[1] ?? 0));
  return [h("h2", {}, "Targets"), h("table", { class: "edges", "data-testid": "targets" }, h("tbody", {}, rows.map(([id, weight]) => h("tr", { class: "target" }, h("td", {}, name(graph, id)),
    h("td", { class: "num" }, h("i", { class: "bar", style: { width: `${(Math.abs(weight ?? 0) / most) * 40}px` } }), number(weight))))))];
}

export function pathList(graph) {
  if (!graph.paths.length) return [h("p", { class: "empty" }, "No path leads from a token to a target.")];
  return [h("p", { class: "quiet" }, "From tokens to the heaviest target; a path's strength is the product of its edges' shares."), h("ol", { class: "paths", "data-testid": "paths" }, graph.paths.map((path) =>
    h("li", {}, path.nodes.map((id, step) => [step ? arrow(path.weights[step - 1]) : null, name(graph, id)]),
      h("span", { class: "num", title: "product of the edges' shares" }, number(path.strength)))))];
}
