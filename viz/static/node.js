// One node of a circuit in words: its numbers, what goes in, what goes out; and the strongest paths.
import { h, link, number } from "./dom.js";
import { set } from "./state.js";

function name(graph, id) {
  const one = graph.nodes[id];
  const text = [h("i", { class: `dot ${one.kind}` }), one.label, h("small", {}, place(graph, one))];
  return "x" in one ? link({ node: Number(id) }, {}, text) : h("span", {}, text);
}

function place(graph, one) {
  if (one.kind === "token") return "";
  const token = graph.columns.find((column) => column.position === one.position && one.position >= 0)?.token;
  return [one.layer >= 0 && one.kind !== "logit" ? ` layer ${one.layer}` : "", token ? ` at ${token}` : ""].join("");
}

function edges(graph, title, rows, testid) {
  if (!rows.length) return [];
  const most = Math.max(...rows.map(([, weight]) => Math.abs(weight)), 1e-12);
  return [h("h3", {}, title), h("table", { class: "edges", "data-testid": testid }, h("tbody", {}, rows.map(([id, weight]) =>
    h("tr", { class: weight > 0 ? "raises" : "lowers" }, h("td", {}, name(graph, id)),
      h("td", { class: "num" }, h("i", { class: "bar", style: { width: `${(Math.abs(weight) / most) * 40}px` } }), number(weight))))))];
}

export function nodeDetails(graph, id) {
  const one = graph.nodes[id];
  const store = one.kind === "latent" ? graph.stores[String(one.layer)] : undefined;
  return [h("div", { class: "head", "data-testid": "node-details", "data-node": id }, h("h2", {}, one.label),
    h("button", { type: "button", "aria-label": "Close", onclick: () => set({ node: null }) }, "×")),
  h("p", { class: "quiet" }, `${graph.kinds[one.kind] ?? one.kind}${place(graph, one)}`),
  h("dl", { class: "pairs" }, [["value", one.value], ["share of influence", one.influence], ["signed attribution", one.attribution]]
    .map(([key, value]) => [h("dt", {}, key), h("dd", {}, number(value))])),
  store === undefined ? null : h("p", {}, link({ pane: "latents", store, latent: one.index, query: "" }, { "data-testid": "to-card" }, `Feature card of latent ${one.index} →`)),
  ...edges(graph, "Comes from", one.incoming ?? [], "incoming"), ...edges(graph, "Goes to", one.outgoing ?? [], "outgoing")].filter(Boolean);
}

function arrow(weight) {
  return h("span", { class: weight > 0 ? "arrow raises" : "arrow lowers", title: `weight ${number(weight)}` }, " → ");
}

export function pathList(graph) {
  if (!graph.paths.length) return [];
  return [h("h3", {}, "Strongest paths"), h("ol", { class: "paths", "data-testid": "paths" }, graph.paths.map((path) =>
    h("li", {}, path.nodes.map((id, step) => [step ? arrow(path.weights[step - 1]) : null, name(graph, id)]),
      h("span", { class: "num", title: "product of the edges' shares" }, number(path.strength)))))];
}
