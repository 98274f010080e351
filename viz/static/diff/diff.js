// What changed between two models: how many latents differ, each of them, and whether they make the models behave differently.
import { choice, details, empty, facts, flat, h, number, percent, refill, tile } from "../base/dom.js";
import { key } from "../base/keys.js";
import { causalOf } from "./diffCausal.js";
import { opened } from "./diffData.js";
import { filtersOf } from "./diffFilters.js";
import { plotOf } from "./diffPlot.js";
import { rowBox } from "./diffRow.js";
import { tableOf } from "./diffTable.js";
import { on, set, state } from "../base/state.js";

const METHODS = { __proto__: null,
  crosscoder: "One dictionary reads both models and writes each by a decoder of its own; latents rank by how much more, or other, B writes by them.",
  mean: "One dictionary read on the same texts in both models; latents rank by the change of their mean activation.",
  stagewise: "A dictionary of A is trained on with B's activations, and as a control with A's; latents rank by how far B lies beyond A along the way that they turned.",
  lens: "The mean difference of the activations at the first tokens of any text, read off B's unembedding: the tokens that it raises and lowers most." };
const AGAIN = { diff_row: null, diff_class: "", diff_query: "", diff_filter: "", diff_sort: "", diff_x: "", diff_y: "", diff_show: "all" };
const shown = {};
const here = (run) => () => state.pane === "diff" && run();

on(["diff"], here(() => shown.draw?.()));
on(["diff_show", "diff_class", "diff_query", "diff_filter", "diff_sort"], here(() => { shown.filters?.refresh(); shown.view?.refresh(); }));
on(["diff_row"], here(() => select()));
on(["diff_x", "diff_y"], here(() => shown.plot?.draw()));

function select() {
  if (!shown.table) return;
  shown.view.reveal();
  shown.plot.mark();
  rowBox(shown.row, shown.table, shown.index);
}

function behaviour({ causal }) {
  const first = causal[0]?.patched;
  if (!first || first.share === null) return null;
  return tile(percent(first.share), `of the change of behaviour by patching ${causal[0].latents.length === 1 ? "the first" : `the first ${causal[0].latents.length}`}${first.p === null ? "" : `, p ${number(first.p)}`}`);
}

function header(index, { about, isWords }) {
  return [h("div", { class: "head" }, h("h1", {}, "What changed ", h("small", {}, about.a, " → ", about.b)), h("div", { class: "tools" }, choice("Diff", index.diffs.map(({ name, method }) => (name === method ? name : `${name} (${method})`)), state.diff, (diff) => set({ ...AGAIN, diff }, { push: true })))),
    h("p", { class: "quiet", "data-testid": "diff-about" }, h("b", {}, "A"), ` ${about.a}, `, h("b", {}, "B"), ` ${about.b}${about.site ? `, both at ${about.site}` : ""}. Method: ${about.method}. ${METHODS[about.method] ?? ""}`),
    about.warnings.length ? h("ul", { class: "warnings", "data-testid": "diff-warnings" }, about.warnings.map((text) => h("li", {}, text))) : null,
    h("div", { class: "tiles diff-tiles" }, tile(`${number(about.found)} of ${number(about.total)}`, `${isWords ? "tokens" : "latents"} found${about.fdr === null ? "" : ` at a false-discovery rate of ${number(about.fdr)}`}`),
      tile(number(about.documents), "documents measured"), tile(number(about.text_tokens), "tokens of text"), behaviour(about))];
}

function howMade({ about }) {
  return details("How it was made", facts([["method", about.method], ["tokenizers", about.is_aligned ? "aligned by a table" : "one and the same"], ...Object.entries(about.about).flatMap(([part, data]) => flat(data, `${part} `))], "diff-made"));
}

async function draw(content, index) {
  shown.draw = () => draw(content, index);
  Object.assign(shown, { table: null, view: null, plot: null, filters: null, row: null, index });
  const place = Math.min(state.diff, index.diffs.length - 1);
  if (place !== state.diff) Object.assign(state, { diff: place });
  const table = await opened(place);
  if (state.diff !== place) return undefined;
  if (!table) return content.replaceChildren(h("h1", {}, "What changed"), empty("This page carries no such Diff."));
  const view = tableOf(table);
  const plot = plotOf(table, view.step);
  Object.assign(shown, { table, view, plot, filters: filtersOf(table), row: h("section", { class: "diff-one", "aria-label": "The chosen row", "data-testid": "diff-one" }) });
  const causal = causalOf(table);
  refill(content, header(index, table), h("div", { class: causal ? "diff-figures" : "diff-figures alone" }, plot.element, causal),
    h("h2", {}, table.isWords ? "Tokens" : "Latents"), shown.filters.element, h("div", { class: "diff-split" }, view.element, shown.row), howMade(table));
  shown.filters.refresh();
  rowBox(shown.row, table, index);
  requestAnimationFrame(() => shown.view === view && view.refresh());
  return undefined;
}

key("j", "next row of the table", () => shown.view?.step(1), "diff");
key("k", "previous row of the table", () => shown.view?.step(-1), "diff");
key("f", "only what is found, or all", () => set({ diff_show: state.diff_show === "found" ? "all" : "found" }), "diff");
key("r", "by rank again", () => set({ diff_sort: "" }), "diff");
key("o", "open the latent's own page", () => shown.row?.querySelector("a")?.click(), "diff");
key("/", "find a latent or a token", () => document.getElementById("diff-search")?.focus(), "diff");
key("Escape", "choose no row", () => set({ diff_row: null }), "diff");

export const diff = { name: "diff", title: "Diff", wanted: (index) => index.diffs.length > 0, called: (index) => index.diffs[Math.min(state.diff, index.diffs.length - 1)]?.name, draw };
