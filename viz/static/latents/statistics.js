// The numbers of a card: statistics with their meaning, histograms, logits, tokens.
import { exports } from "../base/export.js";
import { h, number, percent, refill, segments, tile, words } from "../base/dom.js";
import { histogram } from "../base/histogram.js";
import { rove, tipped } from "../base/tip.js";
import { ask } from "../base/transport.js";
import { set, state } from "../base/state.js";

const FIRST = ["density", "count", "max_value", "mean_value", "token_entropy", "encoder_cosine"];

function statistic(name, statistics, notes) {
  const made = tile(number(statistics[name]), words(name));
  made.dataset.statistic = name;
  return notes[name] ? tipped(made, () => `${words(name)}: ${notes[name]}`) : made;
}

function group(names, label, testid, statistics, notes) {
  return rove(h("div", { class: "tiles statistics", role: "group", "aria-label": `${label}; arrow keys move between them`, "data-testid": testid },
    names.map((name) => statistic(name, statistics, notes))), ".tile");
}

// The numbers that are looked at first.
export function tiles(statistics, notes) {
  return group(FIRST.filter((name) => name in statistics), "Statistics", "statistics", statistics, notes);
}

// All the others, behind one line.
export function moreTiles(statistics, notes) {
  const others = Object.keys(statistics).filter((name) => !FIRST.includes(name));
  return others.length ? h("details", {}, h("summary", {}, `${others.length} more statistics`), group(others, "More statistics", "more-statistics", statistics, notes)) : null;
}

function bins({ edges, counts }) {
  return { columns: ["from", "to", "count"], rows: counts.map((count, place) => [edges[place], edges[place + 1], count]) };
}

function figure(drawn, caption, name, data) {
  return h("figure", { class: "histogram" }, drawn, h("figcaption", {}, caption, drawn.nodeName === "svg" ? exports(name, { svg: () => drawn, table: () => bins(data) }) : null));
}

// The activations on the log or the equal-width scale; `draw()` draws what the state asks for.
export function activations(answer, store, latent) {
  const body = h("div");
  const head = h("div", { class: "head" });
  const draw = async () => {
    refill(head, h("h2", {}, "Activations"), segments("Scale of the histogram", { log: "log", width: "equal width" }, state.bins === "width" ? "width" : "log", (bins) => set({ bins }), "bins"));
    const most = (counts) => `${number(counts.reduce((sum, count) => sum + count, 0))} firings`;
    if (state.bins !== "width") return body.replaceChildren(figure(histogram(answer.histogram, "Histogram of activations, log scale"), `activation, log scale; ${most(answer.histogram.counts)}`, `latent ${latent} activations`, answer.histogram));
    const found = await ask(`stores/${store}/latents/${latent}/histogram`).catch(() => null);
    if (state.bins !== "width") return undefined;
    if (!found) return body.replaceChildren(h("p", { class: "quiet" }, "This page carries no such histogram of this latent; the live browser (unweave show) has it."));
    return body.replaceChildren(figure(histogram(found, "Histogram of activations in bins of equal width"),
      `activation; ${most(found.counts)}${found.is_exact ? "" : "; spread from the log-spaced bins, so only near enough"}`, `latent ${latent} activations equal width`, found));
  };
  return { section: h("section", { "aria-label": "Histogram of activations" }, head, body), draw };
}

function bars(title, pairs, side) {
  const most = Math.max(...pairs.map(([, value]) => Math.abs(value ?? 0)), 1e-9);
  return h("div", { class: `logits ${side}`, "data-testid": `logits-${side}` }, h("h3", {}, title),
    h("ol", {}, pairs.map(([token, value]) => h("li", {}, h("span", { class: "token", title: token }, token),
      h("span", { class: "bar", style: { width: `${(Math.abs(value ?? 0) / most) * 100}%` } }), h("span", { class: "num" }, number(value))))));
}

export function logits(answer, latent) {
  if (!answer.top_logits.length && !answer.bottom_logits.length) return null;
  const pairs = () => ({ columns: ["side", "token", "direct effect"], rows: [...answer.top_logits.map((pair) => ["raises", ...pair]), ...answer.bottom_logits.map((pair) => ["lowers", ...pair])] });
  return h("section", { "aria-label": "Effect on the next token" }, h("div", { class: "head" }, h("h2", {}, "Effect on the next token"), exports(`latent ${latent} logits`, { table: pairs })),
    h("div", { class: "two" }, bars("raises", answer.top_logits, "top"), bars("lowers", answer.bottom_logits, "bottom")));
}

// The direct effects on the logits of the whole vocabulary.
export function logitEffects(answer, latent) {
  return answer.logit_histogram ? figure(histogram(answer.logit_histogram, "Histogram of direct effects on the logits", { signed: true, testid: "logit-histogram" }),
    "direct effect on the logit of every token", `latent ${latent} logit effects`, answer.logit_histogram) : null;
}

export function tokens(answer, latent) {
  if (!answer.tokens.length) return null;
  const table = () => ({ columns: ["token", "count", "share of firings", "lift"], rows: answer.tokens.map((one) => [one.token, one.count, one.share, one.lift]) });
  return h("section", { "aria-label": "Tokens it fires on" }, h("div", { class: "head" }, h("h2", {}, "Tokens it fires on"), exports(`latent ${latent} tokens`, { table })),
    h("table", { class: "grid firing", "data-testid": "tokens" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "token"), h("th", { scope: "col" }, "firings"),
      h("th", { scope: "col", title: "share of all its firings" }, "share"), h("th", { scope: "col", title: "how many times likelier the token is where it fires than anywhere" }, "lift"))),
    h("tbody", {}, answer.tokens.map((one) => h("tr", {}, h("th", { scope: "row" }, h("span", { class: "token" }, one.token), h("span", { class: "bar", style: { width: `${100 * (one.share ?? 0)}%` } })),
      h("td", {}, number(one.count)), h("td", {}, percent(one.share ?? 0)), h("td", {}, `× ${number(one.lift)}`))))));
}
