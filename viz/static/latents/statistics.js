// The numbers of a card: statistics with their meaning, histograms, logits, tokens.
import { exports } from "../base/export.js";
import { h, number, words } from "../base/dom.js";
import { histogram } from "../base/histogram.js";
import { rove, tipped } from "../base/tip.js";
import { ask } from "../base/transport.js";
import { set, state } from "../base/state.js";

const FIRST = ["density", "count", "max_value", "mean_value", "token_entropy", "encoder_cosine"];

function tile(name, statistics, notes) {
  const made = h("div", { class: "tile", "data-statistic": name }, h("b", {}, number(statistics[name])), h("span", {}, words(name)));
  return notes[name] ? tipped(made, () => `${words(name)}: ${notes[name]}`) : made;
}

// The numbers that are looked at first, and all the others behind one line.
export function tiles(statistics, notes) {
  const group = (names, label, testid) => rove(h("div", { class: "tiles statistics", role: "group", "aria-label": `${label}; arrow keys move between them`, "data-testid": testid },
    names.map((name) => tile(name, statistics, notes))), ".tile");
  const [first, others] = [FIRST.filter((name) => name in statistics), Object.keys(statistics).filter((name) => !FIRST.includes(name))];
  return [group(first, "Statistics", "statistics"), others.length ? h("details", { class: "more-statistics" }, h("summary", {}, `${others.length} more statistics`), group(others, "More statistics", "more-statistics")) : null];
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
  const pick = (name, text) => h("button", { type: "button", "aria-pressed": String((state.bins === "width") === (name === "width")), "data-testid": `bins-${name}`, onclick: () => set({ bins: name }) }, text);
  const head = h("div", { class: "head" });
  const draw = async () => {
    head.replaceChildren(h("h2", {}, "Activations"), h("div", { class: "segments", role: "group", "aria-label": "Scale of the histogram" }, pick("log", "log"), pick("width", "equal width")));
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
    h("div", { class: "two" }, bars("raises", answer.top_logits, "top"), bars("lowers", answer.bottom_logits, "bottom")),
    answer.logit_histogram ? figure(histogram(answer.logit_histogram, "Histogram of direct effects on the logits", { signed: true, testid: "logit-histogram" }),
      "direct effect on each token's logit, over the whole vocabulary", `latent ${latent} logit effects`, answer.logit_histogram) : null);
}

export function tokens(answer, latent) {
  if (!answer.tokens.length) return null;
  const table = () => ({ columns: ["token", "count", "share of firings", "lift"], rows: answer.tokens.map((one) => [one.token, one.count, one.share, one.lift]) });
  return h("section", { "aria-label": "Tokens it fires on" }, h("div", { class: "head" }, h("h2", {}, "Tokens it fires on"), exports(`latent ${latent} tokens`, { table })),
    h("table", { class: "grid firing", "data-testid": "tokens" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "token"), h("th", { scope: "col" }, "firings"),
      h("th", { scope: "col", title: "share of all its firings" }, "share"), h("th", { scope: "col", title: "how many times likelier the token is where it fires than anywhere" }, "lift"))),
    h("tbody", {}, answer.tokens.map((one) => h("tr", {}, h("th", { scope: "row" }, h("span", { class: "token" }, one.token), h("span", { class: "bar", style: { width: `${100 * (one.share ?? 0)}%` } })),
      h("td", {}, number(one.count)), h("td", {}, `${number(100 * (one.share ?? 0))} %`), h("td", {}, `× ${number(one.lift)}`))))));
}
