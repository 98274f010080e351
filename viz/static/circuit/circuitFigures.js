// Plotly figures of a circuit: scores, strongest paths as flows, ledgers.
import { empty, h } from "../base/dom.js";
import { exports } from "../base/export.js";
import { plot } from "../base/plots.js";
import { called } from "./node.js";
import { ask, frozen } from "../base/transport.js";
import { set, state } from "../base/state.js";

const NAMES = [["ledger", "What sums to a target"], ["paths", "Strongest paths"], ["scores", "Scores"]];

async function figure(path, title, tools = null) {
  const answer = await ask(path);
  if (!answer) return null;
  if (!answer.data) return h("section", { class: "figure" }, h("div", { class: "head" }, h("h3", {}, title), tools), empty(answer.why ?? "There is no such figure."));
  const box = h("div", { class: "plot", "data-testid": `figure-${path.split("/")[3]}` });
  requestAnimationFrame(() => plot(box, answer, title).catch((error) => box.replaceChildren(empty(error.message))));
  return h("section", { class: "figure" }, h("div", { class: "head" }, h("h3", {}, title), h("div", { class: "tools" }, tools, exports(title, { figure: () => ({ data: box.data, layout: box.layout }) }))), box);
}

// Which target's ledger is drawn: those of the graph, and the chosen node if it has a row.
function targets(graph, chosen) {
  const known = graph.targets.map(([id]) => id);
  if (state.node !== null && graph.nodes[state.node]?.incoming?.length && !known.includes(state.node)) known.push(state.node);
  return known.length < 2 ? null : h("select", { "aria-label": "Target of the ledger", "data-testid": "ledger-target", onchange: (event) => set({ ledger: Number(event.target.value) }) },
    known.map((id) => h("option", { value: id, selected: id === chosen }, called(graph, id))));
}

export async function figuresSheet(box, graph, at) {
  if (frozen && !window.Plotly) return box.replaceChildren(empty("This page carries no plotly; the live browser (unweave show) draws figures of scores, paths and ledgers."));
  const heaviest = [...graph.targets].sort((a, b) => (b[1] ?? 0) - (a[1] ?? 0))[0]?.[0] ?? null;
  const chosen = state.ledger ?? heaviest;
  const drawn = await Promise.all(NAMES.map(([name, title]) => {
    const own = name === "ledger" && chosen !== heaviest && !frozen;
    return figure(`graphs/${at}/figures/${name}${own ? `/${chosen}` : ""}`, title, name === "ledger" && !frozen ? targets(graph, chosen) : null);
  }));
  return box.replaceChildren(...drawn.filter(Boolean));
}
