// Is it real? The pinned features are ablated in the model, and what the graph predicts stands beside what was measured.
import { empty, h, number, pressed, signed } from "../base/dom.js";
import { exports } from "../base/export.js";
import { pinned } from "./circuitState.js";
import { name, called } from "./node.js";
import { act, can } from "../base/transport.js";
import { set } from "../base/state.js";
import { rove } from "../base/tip.js";

const [SIDE, EDGE, SUGGESTED] = [320, 42, 24];   // px: the picture and its margin; features that are tested when none is pinned
const last = new Map();   // circuit → its latest report, so that leaving the sheet loses nothing

function features(graph) {
  return Object.keys(graph.nodes).map(Number).filter((id) => ["latent", "neuron"].includes(graph.nodes[id].kind));
}

function selection(graph) {
  const chosen = [...pinned()].filter((id) => ["latent", "neuron"].includes(graph.nodes[id]?.kind));
  if (chosen.length) return { nodes: chosen, words: `the ${chosen.length} pinned features` };
  const drawn = features(graph).filter((id) => "x" in graph.nodes[id]).sort((a, b) => Math.abs(graph.nodes[b].attribution ?? 0) - Math.abs(graph.nodes[a].attribution ?? 0)).slice(0, SUGGESTED);
  return { nodes: drawn, words: `the ${drawn.length} drawn features of largest attribution` };
}

function scatter(graph, report) {
  const controls = report.nodes.flatMap((_, place) => (report.node_controls?.[place] ?? []).map((value) => [report.predicted[place], value]));
  const all = [...report.predicted, ...report.measured, ...controls.map(([, value]) => value), 0].filter((value) => value !== null);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const pad = (high - low || 1) * 0.06;
  const at = (value) => EDGE + ((value - low + pad) / (high - low + 2 * pad)) * (SIDE - EDGE - 8);
  const up = (value) => SIDE - at(value);
  const says = (id, place) => `${called(graph, id)}: predicted ${signed(report.predicted[place])}, measured ${signed(report.measured[place])}`;
  return rove(h("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, class: "effects-picture", "data-testid": "scatter", role: "group", "aria-label": `Predicted against measured changes of ${report.nodes.length} features; arrow keys move between them` },
    h("line", { x1: at(low), y1: up(low), x2: at(high), y2: up(high), class: "diagonal" }),
    h("line", { x1: at(0), x2: at(0), y1: 8, y2: SIDE - EDGE, class: "zero" }), h("line", { x1: EDGE, x2: SIDE - 8, y1: up(0), y2: up(0), class: "zero" }),
    [low, 0, high].filter((value, place) => place !== 1 || (value > low + 2 * pad && value < high - 2 * pad)).map((tick) => [h("text", { x: at(tick), y: SIDE - EDGE + 16, "text-anchor": "middle" }, number(tick)), h("text", { x: EDGE - 5, y: up(tick) + 4, "text-anchor": "end" }, number(tick))]),
    controls.map(([x, y]) => (x === null || y === null ? null : h("circle", { cx: at(x), cy: up(y), r: 2, class: "effect control" }))),
    report.nodes.map((id, place) => (report.predicted[place] === null || report.measured[place] === null ? null
      : h("circle", { cx: at(report.predicted[place]), cy: up(report.measured[place]), r: 4.5, class: `effect ${graph.nodes[id]?.kind ?? ""}`, "aria-label": says(id, place), ...pressed(() => set({ node: id }, { push: true })) },
        h("title", {}, says(id, place))))),
    h("text", { x: (SIDE + EDGE) / 2, y: SIDE - 6, "text-anchor": "middle" }, "predicted change of the target"),
    h("text", { x: 10, y: (SIDE - EDGE) / 2, "text-anchor": "middle", transform: `rotate(-90 10 ${(SIDE - EDGE) / 2})` }, "measured")), "[role=button]");
}

function together(report) {
  const controls = report.control_measured ?? [];
  const bars = [["predicted", report.top_predicted, "predicted"], ["measured", report.top_measured, "measured"], ...controls.map((value, place) => [`matched control ${place + 1}`, value, "control"])];
  const most = Math.max(...bars.map(([, value]) => Math.abs(value ?? 0)), 1e-9);
  return h("table", { class: "edges together", "data-testid": "together" }, h("tbody", {}, bars.map(([words, value, kind]) => h("tr", { class: kind }, h("td", {}, words),
    h("td", { class: "num" }, h("i", { class: "bar", style: { width: `${(Math.abs(value ?? 0) / most) * 90}px` } }), signed(value))))));
}

function shown(graph, report) {
  const rows = report.nodes.map((id, place) => [called(graph, id), report.predicted[place], report.measured[place]]);
  const interval = (report.interval ?? []).length ? ` (95 %: ${number(report.interval[0])} to ${number(report.interval[1])})` : "";
  return [(report.warnings ?? []).length ? h("ul", { class: "warnings", "data-testid": "validation-warnings" }, report.warnings.map((text) => h("li", {}, text))) : null,
    h("div", { class: "tested" }, h("figure", {}, scatter(graph, report), h("figcaption", {}, `One at a time: rank correlation ${number(report.spearman)}${interval}${(report.node_controls ?? []).some((list) => list.length) ? "; small dots: matched others instead" : ""}`)),
      h("div", {}, h("h3", {}, "All together"), together(report), h("p", { class: "quiet" }, (report.control_measured ?? []).length ? "A control ablates other active features of the same layers, positions and sizes." : "There were no other active features to match as controls."))),
    h("details", {}, h("summary", {}, "Numbers"), h("table", { class: "edges" }, h("tbody", {}, report.nodes.map((id, place) => h("tr", {}, h("td", {}, name(graph, id)), h("td", { class: "num" }, signed(report.predicted[place])), h("td", { class: "num" }, signed(report.measured[place]))))))),
    exports("validation", { svg: () => document.querySelector(".effects-picture"), table: () => ({ columns: ["feature", "predicted", "measured"], rows }), json: () => report })];
}

export function validationSheet(box, graph, at) {
  const kept = graph.metadata.validation ? h("p", { class: "quiet" }, "This circuit's file keeps a validation; see “How it was traced”.") : null;
  if (!can("validate")) return box.replaceChildren(empty("Experiments are done in the model: open this circuit with unweave show where the model is."), ...(kept ? [kept] : []));
  const { nodes, words } = selection(graph);
  const [out, told] = [h("div", { "data-testid": "validation" }, last.has(at) ? shown(graph, last.get(at)).filter(Boolean) : []), h("span", { class: "quiet", role: "status" })];
  const test = async (event) => {
    const button = event.currentTarget;
    button.disabled = true;
    told.textContent = "ablating in the model…";
    try {
      const report = await act("validate", { graph: at, nodes });
      last.set(at, report);
      out.replaceChildren(...shown(graph, report).filter(Boolean));
      told.textContent = "";
    } catch (error) {
      told.textContent = error.message;
    }
    button.disabled = false;
  };
  return box.replaceChildren(h("p", { class: "quiet" }, "Each feature is set to zero in the real model, where attention patterns, norms and MLPs respond; the graph predicts with all of them held."),
    h("div", { class: "tools" }, h("button", { type: "button", "data-testid": "validate", onclick: test }, `Test ${words} in the model`), told), out);
}
