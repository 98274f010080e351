// Two stores side by side: two dictionaries, two checkpoints of one run, or two models on one text.
import { choice, empty, h, number, refill, segments } from "../base/dom.js";
import { job } from "../base/job.js";
import { key } from "../base/keys.js";
import { pairBox } from "./comparePair.js";
import { summary } from "./compareSummary.js";
import { compareTable, entry, METHODS, SHOWS, tableOf } from "./compareTable.js";
import { bothOnText } from "./compareText.js";
import { can, ask, forget, frozen, stream } from "../base/transport.js";
import { declare, on, set, state } from "../base/state.js";

const LEVELS = [0.3, 0.5, 0.7, 0.9];
declare({ compare_by: "", compare_show: "all", compare_level: "0.7", compare_sort: "-score" }, { compare_with: 1, compare_partner: null });
const shown = { draw: null, table: null, view: null, pair: null, answer: null };
const here = (run) => () => state.pane === "compare" && run();

on(["store", "compare_with", "compare_by"], here(() => shown.draw?.()));
on(["compare_show", "compare_sort", "compare_level"], here(() => { controls(); shown.view?.refresh(level()); retell(); }));
on(["latent", "compare_partner"], here(() => { shown.view?.reveal(); pairUp(); }));

function level() {
  return LEVELS.includes(Number(state.compare_level)) ? Number(state.compare_level) : 0.7;
}

// The two stores of the state, never one twice.
function chosen(index) {
  const last = index.stores.length - 1;
  const a = Math.min(state.store, last);
  const b = Math.min(state.compare_with, last);
  return { a, b: a === b ? (a ? 0 : 1) : b };
}

function methodOf(answer) {
  if (Object.hasOwn(METHODS, state.compare_by)) return state.compare_by;
  return answer.methods.cosine.found || !answer.methods.correlation.found ? "cosine" : "correlation";
}

function swap() {
  const { a, b } = shown.ends ?? {};
  if (a === undefined) return;
  const partner = state.compare_partner ?? (state.latent === null || !shown.table ? null : partnerOf(state.latent));
  set({ store: b, compare_with: a, latent: partner, compare_partner: partner === null ? null : state.latent }, { push: true });
}

function partnerOf(latent) {
  const { table } = shown;
  const place = table?.of.a.place(latent) ?? -1;
  return place < 0 ? null : entry(table, place).partner;
}

function pairUp() {
  if (shown.pair) pairBox(shown.pair, { ...shown.ends, answer: shown.answer, method: shown.method, partnerOf });
}

// Why the directions of A and B may not lie in one space, or null where they do.
function apart({ is_site: isSite, is_model: isModel }) {
  if (isSite && isModel) return null;
  const what = isModel ? "write different places" : isSite ? "are of different models" : "write different places of different models";
  const bound = isModel ? "the model's residual stream is one" : "the residual streams of the two models agree";
  return h("p", { class: "quiet", "data-testid": "compare-apart" }, `A and B ${what}: their directions lie in one space only as far as ${bound}.`);
}

function header(index, { a, b }, answer, method) {
  const names = index.stores.map((store) => store.name);
  const both = (letter, { latents, site, model, tokens }) => h("p", { class: "quiet compare-about" }, h("i", { class: `dot side-${letter}`, "aria-hidden": "true" }), h("b", {}, letter.toUpperCase()), ` ${number(latents)} latents, ${site}, ${model}, ${number(tokens)} tokens`);
  return [h("div", { class: "head" }, h("h1", {}, "Compare"), h("div", { class: "tools" }, choice("A", names, a, (store) => set({ store, compare_with: store === b ? a : b, latent: null, compare_partner: null }, { push: true })),
    h("button", { type: "button", "data-testid": "compare-swap", title: "swap A and B (x)", "aria-label": "Swap A and B", onclick: swap }, "⇄"),
    choice("B", names, b, (store) => set({ compare_with: store, store: store === a ? b : a, latent: null, compare_partner: null }, { push: true })),
    h("span", { class: "choice" }, h("span", {}, "Match by")), segments("Match by", METHODS, method, (name) => set({ compare_by: name }), "compare-by"))),
  h("div", { class: "compare-ends" }, both("a", answer.a), both("b", answer.b)),
  method === "cosine" && answer.methods.cosine.found ? apart(answer) : null];
}

function controls() {
  if (!shown.controls) return;
  const names = { ...SHOWS, unmatched: `only in A (≤ ${level()})` };
  shown.controls.replaceChildren(segments("Show", names, state.compare_show, (name) => set({ compare_show: name, compare_sort: name === "unmatched" ? "-density" : "-score" }), "compare-show"),
    choice("Unmatched at most", LEVELS.map(String), LEVELS.indexOf(level()), (place) => set({ compare_level: String(LEVELS[place]) })));
}

function retell() {
  shown.summary?.replaceChildren(summary(shown.answer, shown.method, level()));
}

// What to do where this matching is not known: why not, or the button that makes it.
function unknown({ a, b }, answer, method) {
  const { why } = answer.methods[method];
  if (why) return h("p", { class: "empty", "data-testid": "compare-why" }, `These two cannot be compared by ${method}: ${why}`);
  if (!can("match")) return empty(frozen ? "This page carries no such matching." : "This host cannot match them; the live browser can: unweave show.");
  const work = job("match-job");
  const bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Progress" });
  const make = () => work.run("starting …", async (signal) => {
    bar.hidden = false;
    await stream("match", { a, b, method }, (line) => {
      if (line.error) throw new Error(line.error);
      if (line.share === undefined) return;
      bar.value = line.share;
      work.say(`${line.stage}: ${Math.round(100 * line.share)} %`);
    }, signal).finally(() => { bar.hidden = true; });
    forget("compare/");
    for (const place of [a, b]) forget(`stores/${place}/columns/${method}_`);
    await shown.draw();
    return "";
  });
  return h("div", { class: "empty", "data-testid": "compare-make" }, h("p", {}, `${number(answer.a.latents)} × ${number(answer.b.latents)} latents: matching them by ${method} takes a while and is kept.`),
    h("div", { class: "tools compare-making" }, h("button", { type: "button", "data-testid": "match-make", onclick: make }, "Match them"), bar, work.element));
}

async function draw(content, index) {
  shown.draw = () => draw(content, index);
  Object.assign(shown, { table: null, view: null, pair: null, controls: null, summary: null });
  const ends = chosen(index);
  if (state.store !== ends.a || state.compare_with !== ends.b) Object.assign(state, { store: ends.a, compare_with: ends.b });
  const answer = await ask(`compare/${ends.a}/${ends.b}`);
  if (!answer) return content.replaceChildren(h("h1", {}, "Compare"), empty("This page carries no comparison of these two."));
  const method = methodOf(answer);
  const table = await compareTable(ends.a, ends.b, method, answer);
  if (ends.a !== state.store || ends.b !== state.compare_with) return undefined;
  Object.assign(shown, { ends, answer, method, table });
  const text = bothOnText(ends, answer, (latent) => partnerOf(latent));
  if (!table) return refill(content, header(index, ends, answer, method), unknown(ends, answer, method), text);
  shown.view = tableOf(table, `${answer.a.name} beside ${answer.b.name}`);
  Object.assign(shown, { summary: h("div"), controls: h("div", { class: "tools compare-controls" }), pair: h("section", { class: "compare-pair", "aria-label": "The pair", "data-testid": "compare-pair" }) });
  controls();
  retell();
  refill(content, header(index, ends, answer, method), shown.summary, text, shown.controls, h("div", { class: "compare-split" }, shown.view.element, shown.pair));
  requestAnimationFrame(() => { shown.view?.refresh(level()); pairUp(); });
  return undefined;
}

key("j", "next latent of the table", () => shown.view?.step(1), "compare");
key("k", "previous latent of the table", () => shown.view?.step(-1), "compare");
key("x", "swap A and B", swap, "compare");
key("m", "match by the other measure", () => shown.answer && set({ compare_by: shown.method === "cosine" ? "correlation" : "cosine" }), "compare");
key("u", "only what is in A, or all", () => set({ compare_show: state.compare_show === "unmatched" ? "all" : "unmatched", compare_sort: state.compare_show === "unmatched" ? "-score" : "-density" }), "compare");

export const compare = { name: "compare", title: "Compare", wanted: (index) => index.stores.length > 1 && (!frozen || Boolean(index.compared)), draw };
