// Through which attention heads the edges of a circuit go: a table of heads, and the parts of one node's edges.
import { empty, h, number, signed } from "../base/dom.js";
import { exports } from "../base/export.js";
import { called, known, name } from "./node.js";
import { orderKey, sortable, tableData } from "../base/sortable.js";
import { ask } from "../base/transport.js";

const ORDER = orderKey("heads_sort");
const EDGES = 12;   // of one node

function columns(graph) {
  return [
    { title: "head", value: ({ layer, head }) => layer * 1000 + head, show: ({ layer, head }) => `L${layer} H${head}` },
    { title: "sum", value: ({ sum }) => sum, show: ({ sum }) => h("span", { class: sum > 0 ? "raises" : "lowers" }, signed(sum)), note: "sum of its parts over the listed edges" },
    { title: "|sum|", value: ({ absolute }) => absolute, note: "sum of the sizes of its parts" },
    { title: "edges", value: ({ edges }) => edges },
    { title: "largest part", value: ({ weight }) => weight, show: ({ weight }) => signed(weight) },
    { title: "from", value: ({ source }) => called(graph, source), show: ({ source }) => name(graph, source) },
    { title: "to", value: ({ target }) => called(graph, target), show: ({ target }) => name(graph, target) },
  ];
}

export async function headsSheet(box, graph, at) {
  const answer = graph.has_heads ? await ask(`graphs/${at}/heads`) : null;
  if (!answer?.heads.length) return box.replaceChildren(empty("This circuit's file holds no split over heads: attach_heads(graph, split_heads(graph, model)) adds it."));
  known(graph, answer.nodes);
  const table = columns(graph);
  const first = answer.heads.slice(0, 200);
  return box.replaceChildren(h("div", { class: "head" }, h("p", { class: "quiet" }, `${number(answer.total)} splits of an edge over the heads of one layer. Each sum over heads and bypass is exact for its layer; layers are not to be added up.`),
    exports("attention heads", { table: () => tableData(table, answer.heads) })), sortable(table, first, { key: ORDER, name: "Attention heads", testid: "heads", by: "-|sum|" }));
}

// The parts through heads of the edges into one node.
export async function nodeHeads(box, graph, at, id) {
  if (!graph.has_heads) return;
  const answer = await ask(`graphs/${at}/heads`);
  const mine = answer?.edges.filter(({ target }) => target === id).slice(0, EDGES) ?? [];
  if (!mine.length) return;
  known(graph, answer.nodes);
  box.replaceChildren(h("h3", {}, "Through heads"), h("table", { class: "edges", "data-testid": "node-heads" }, h("tbody", {}, mine.map(({ source, layer, parts, bypass }) =>
    h("tr", {}, h("td", {}, name(graph, source), h("small", {}, ` through layer ${layer}`)),
      h("td", {}, parts.slice(0, 3).map(([head, weight]) => h("span", { class: weight > 0 ? "bit raises" : "bit lowers" }, `H${head} ${signed(weight)}`)), h("small", {}, ` past it ${signed(bypass)}`)))))));
}
