// All open circuits at once: a table of their numbers, a figure, and the features that recur in several.
import { empty, h, link, number } from "../base/dom.js";
import { exports } from "../base/export.js";
import { plot } from "../base/plots.js";
import { anew } from "./circuitState.js";
import { orderKey, sortable, tableData } from "../base/sortable.js";
import { ask, frozen } from "../base/transport.js";

const [ORDER, RECURRING] = [orderKey("circuits_sort"), orderKey("recurring_sort")];
const LEAVES = ["token", "error", "rest", "first", "bias", "position"];

function shares(row) {
  const known = LEAVES.filter((kind) => row.leaf_shares[kind]);
  return h("span", { class: "shares", role: "img", "aria-label": known.map((kind) => `${kind} ${number(row.leaf_shares[kind])}`).join(", "), title: known.map((kind) => `${kind} ${number(row.leaf_shares[kind])}`).join("\n") },
    known.map((kind) => h("i", { class: kind, style: { width: `${row.leaf_shares[kind] * 100}%` } })));
}

function validated({ validation }) {
  if (!validation) return h("span", { class: "quiet" }, "no");
  return [number(validation.spearman), validation.warnings ? h("small", {}, ` ${validation.warnings} warnings`) : ""];
}

function table() {
  return [
    { title: "prompt", value: ({ prompt, name }) => prompt || name, show: ({ prompt, name, place }) => link({ pane: "circuit", ...anew(place) }, { class: "prompt-link" }, prompt || name) },
    { title: "target", value: ({ target }) => target, show: ({ target }) => h("span", { class: "token" }, target ?? "–") },
    { title: "weight", value: ({ weight }) => weight, note: "of the heaviest target: its probability, unless targets were given" },
    { title: "features", value: ({ features }) => features },
    { title: "nodes", value: ({ nodes }) => nodes },
    { title: "edges", value: ({ edges }) => edges },
    { title: "residual", value: ({ residual }) => residual, note: "worst |value − sum| / sum of |weights|: 0 when the ledger closes" },
    { title: "replacement", value: ({ replacement }) => replacement, note: "the tokens' share of all influence on leaves (strict)" },
    { title: "completeness", value: ({ completeness }) => completeness, note: "share of inputs that come from features and tokens (strict)" },
    { title: "influence ends in", value: ({ leaf_shares }) => leaf_shares.token ?? 0, show: shares, note: "tokens, errors, rest, first position, biases, positions; sorted by tokens" },
    { title: "validated", value: ({ validation }) => validation?.spearman ?? null, show: validated, note: "rank correlation of single ablations, where the file keeps a report" },
    { title: "replacement, compatible", value: ({ replacement_compatible }) => replacement_compatible, note: "as circuit-tracer computes it" },
    { title: "completeness, compatible", value: ({ completeness_compatible }) => completeness_compatible, note: "as circuit-tracer computes it" },
  ];
}

function recurring(answer) {
  const columns = [
    { title: "feature", value: ({ label }) => label },
    { title: "layer", value: ({ layer }) => layer },
    { title: "circuits", value: ({ graphs }) => graphs.length },
    { title: "influence", value: ({ graphs }) => graphs.reduce((sum, [, , share]) => sum + (share ?? 0), 0), note: "summed over the circuits" },
    { title: "in", value: ({ graphs }) => graphs.map(([place]) => place + 1).join(" "), show: ({ graphs }) => graphs.map(([place, node, share]) =>
      link({ pane: "circuit", ...anew(place), node }, { class: "bit", title: `${answer.graphs[place].prompt}: influence ${number(share)}` }, place + 1)) },
  ];
  return h("section", {}, h("div", { class: "head" }, h("h2", {}, "Features that recur"), exports("recurring features", { table: () => tableData(columns, answer.recurring) })),
    h("p", { class: "quiet" }, "Latents of one dictionary, or neurons of one model, that are among the most influential of at least two of these circuits."),
    answer.recurring.length ? sortable(columns, answer.recurring, { key: RECURRING, name: "Features that recur", testid: "recurring" }) : empty("No feature is in two of these circuits."));
}

async function pane(content) {
  const answer = await ask("graphs");
  if (!answer) return content.replaceChildren(h("h1", {}, "Circuits"), empty("This page carries no table of its circuits."));
  const rows = answer.graphs.map((row, place) => ({ ...row, place }));
  const columns = table();
  const figure = frozen && !window.Plotly ? null : await ask("graphs/figures/dashboard");
  const box = figure?.data ? h("div", { class: "plot", "data-testid": "figure-dashboard" }) : null;
  content.replaceChildren(...[h("div", { class: "head" }, h("h1", {}, `${number(rows.length)} circuits`), exports("circuits", { table: () => tableData(columns, rows), json: () => answer.graphs })),
    sortable(columns, rows, { key: ORDER, name: "Circuits", testid: "circuits" }), h("ul", { class: "legend shares-legend" }, LEAVES.filter((kind) => rows.some((row) => row.leaf_shares[kind])).map((kind) => h("li", {}, h("i", { class: `swatch ${kind}` }), kind))), box, recurring(answer)].filter(Boolean));
  if (box) requestAnimationFrame(() => plot(box, figure, "Scores of all circuits, and where their influence ends").catch((error) => box.replaceChildren(empty(error.message))));
  return undefined;
}

export const circuits = { name: "circuits", title: "Circuits", wanted: (index) => index.graphs.length > 1, draw: pane };
