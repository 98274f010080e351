// One row of a Diff: what it is called, every number of it with its meaning, what patching it alone does, and its own page.
import { h, link, number, words } from "../base/dom.js";
import { causalWords } from "./diffCausal.js";
import { classOf, isFound, noteOf, tokensOf, valueOf } from "./diffData.js";
import { tokenList } from "./diffTable.js";
import { state } from "../base/state.js";

const HIDDEN = new Set(["class", "is_found", "d_low", "d_high", "token", "position"]);

function numbers(table, at) {
  const { columns } = table.about;
  const interval = columns.includes("d_low") && valueOf(table, "d_low", at) !== null ? ` (95 %: ${number(valueOf(table, "d_low", at))} to ${number(valueOf(table, "d_high", at))})` : "";
  return h("table", { class: "facts", "data-testid": "diff-facts" }, h("tbody", {}, columns.filter((name) => !HIDDEN.has(name)).map((name) =>
    h("tr", {}, h("th", { scope: "row" }, words(name), noteOf(table, name) ? h("small", {}, ` ${noteOf(table, name)}`) : null), h("td", {}, number(valueOf(table, name, at)), name === "d" ? interval : "")))));
}

// The latent's own page: in each open store whose latents these are.
function pages(table, at, index) {
  return table.about.stores.map((store) => link({ pane: "latents", store, latent: table.id(at), query: "", filter: "" }, { "data-testid": "diff-open" }, `Its page in ${index.stores[store].name}`));
}

export function rowBox(box, table, index) {
  const at = table.at(state.diff_row);
  if (at < 0) return box.replaceChildren(h("p", { class: "empty" }, state.diff_row === null ? "Choose a row to see all of its numbers." : `There is no row ${state.diff_row} here.`));
  const tokens = tokensOf(table, at);
  const alone = table.about.causal.find(({ latents }) => latents.length === 1 && latents[0] === table.id(at));
  const kind = classOf(table, at);
  const label = Object.hasOwn(table.labels, table.id(at)) ? table.labels[table.id(at)] : null;
  const title = table.isWords ? [`Position ${number(valueOf(table, "position", at))} `, h("bdi", { class: "diff-token" }, tokens[0] ?? "–")] : `Latent ${table.id(at)}`;
  return box.replaceChildren(...[h("h2", {}, title), label ? h("p", { class: "labelled" }, label) : null,
    h("div", { class: "tools" }, h("span", { class: "chip" }, isFound(table, at) ? "found" : "not found"), kind ? h("span", { class: "chip" }, kind) : null, pages(table, at, index)),
    !table.isWords && tokens.length ? h("p", { class: "diff-tokens" }, h("span", { class: "quiet" }, "Fires most on "), tokenList(tokens)) : null,
    alone ? h("p", { class: "quiet", "data-testid": "diff-alone" }, `${causalWords("patched", alone.patched)}. ${causalWords("removed", alone.removed)}.`.replace(/^p/, "P").replace(". r", ". R")) : null,
    numbers(table, at)].filter(Boolean));
}
