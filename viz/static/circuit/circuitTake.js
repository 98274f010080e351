// Keep the view beside the graph, and take the circuit away as Neuronpedia's JSON.
import { h } from "../base/dom.js";
import { saved } from "../base/save.js";
import { groups, pinned, view } from "./circuitState.js";
import { act, can, forget, fresh, frozen } from "../base/transport.js";

// The reader's pins and groups as the viewers' own state; left out where the document counts its nodes differently.
function withState(graph, document) {
  const ids = document.nodes?.map(({ node_id }) => node_id) ?? [];
  const fits = ids.length === graph.counts.nodes && [...pinned()].every((id) => !graph.nodes[id] || graph.nodes[id].position < 0 || document.nodes[id]?.ctx_idx === graph.nodes[id].position);
  if (!fits || !pinned().size) return document;
  const state = { ...document.qParams, pinnedIds: [...pinned()].map((id) => ids[id]) };
  if (groups().length) state.supernodes = groups().map(({ label, nodes }) => [label, ...nodes.map((id) => ids[id])]);
  return { ...document, qParams: state };
}

export function take(graph, place) {
  const told = h("span", { class: "quiet", role: "status", "data-testid": "view-told" });
  const tell = (run) => async (event) => {
    const button = event.currentTarget;
    button.disabled = true;
    try {
      told.textContent = await run();
    } catch (error) {
      told.textContent = error.message;
    }
    button.disabled = false;
  };
  const keep = async () => {
    const { saved: file } = await act("view", { graph: place, view: view() });
    forget(`graphs/${place}/view`);
    return `kept as ${file}`;
  };
  const neuronpedia = async () => {
    const document = await fresh(`graphs/${place}/neuronpedia`);
    if (!document) throw new Error("this page does not carry it; the live browser (unweave show) makes it");
    saved(graph.prompt || "circuit", "json", "application/json", JSON.stringify(withState(graph, document)));
    return "";
  };
  return h("div", { class: "tools" }, can("view") && graph.has_file ? h("button", { type: "button", "data-testid": "keep-view", title: "pins, groups and thresholds, in a file beside the graph", onclick: tell(keep) }, "Keep view") : null,
    frozen ? null : h("button", { type: "button", "data-testid": "neuronpedia", title: "the circuit for Neuronpedia and circuit-tracer's viewer", onclick: tell(neuronpedia) }, "Neuronpedia JSON"),
    can("view") && !graph.has_file ? h("small", { title: "graph.save(path), then show that" }, "from memory: the view is kept in the address only") : null, told);
}
