// The first page: what is open with its main numbers, where to go from here, and what would have to be opened for the rest.
import { details, facts, flat, h, link, number, percent, refill, words } from "../base/dom.js";
import { anew } from "../circuit/circuitState.js";
import { ask, can, frozen } from "../base/transport.js";

const AGAIN = { query: "", filter: "", latent: null };   // the list of latents as it begins
const MANY = 24;   // numbers of the whole that are shown at once; more stand folded, by the part that they are of
const WORDS = new Set(["site", "state", "rule", "target", "models", "method"]);   // columns of words, not of numbers

// A table of things: `columns` are [heading, what it is, cell(row)]; the first names the row.
function table(name, columns, rows, testid) {
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, h("table", { class: "grid", "data-testid": testid },
    h("thead", {}, h("tr", {}, columns.map(([heading, meaning]) => h("th", { scope: "col", class: WORDS.has(heading) ? "said" : null, title: meaning || null }, heading)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, columns.map(([heading, , cell], place) => (place ? h("td", { class: WORDS.has(heading) ? "said" : null }, cell(row)) : h("th", { scope: "row" }, cell(row)))))))));
}

function few(count, one, several) {
  return `${number(count)} ${count === 1 ? one : several}`;
}

function densities({ density }) {
  if (!density) return "–";
  const [low, middle, high] = density.quantiles;
  const most = Math.max(...density.counts, 1);
  const step = 72 / density.counts.length;
  return h("span", { class: "spread", title: `90 % of those that fire: ${number(low)} to ${number(high)} of the tokens` },
    h("svg", { viewBox: "0 0 72 20", role: "img", "aria-label": `Densities from ${number(low)} to ${number(high)}, on a log scale` },
      density.counts.map((count, place) => (count ? h("rect", { x: place * step, width: Math.max(step - 0.6, 0.6), y: 20 - (19 * count) / most, height: (19 * count) / most }) : null))),
    number(middle));
}

function storesTable(stores) {
  const filtered = (place, count, filter) => (count ? link({ pane: "latents", store: place, ...AGAIN, filter }, {}, number(count)) : "0");
  return table("Feature stores", [
    ["store", "", ({ name, place }) => link({ pane: "latents", store: place, ...AGAIN }, {}, name)],
    ["site", "where the dictionary reads, and where it writes if that is elsewhere", ({ site }) => site || "–"],
    ["latents", "", ({ latents }) => number(latents)],
    ["tokens", "kept tokens of the text that it was collected on", ({ tokens }) => number(tokens)],
    ["silent", "share of the latents that never fire in this text", ({ silent, latents, place }) => (silent ? link({ pane: "latents", store: place, ...AGAIN, filter: "dead" }, {}, percent(silent / latents)) : "0")],
    ["dense", "latents that fire on more than a tenth of the tokens", ({ dense, place }) => filtered(place, dense, "dense")],
    ["density, median", "shares of the tokens on which the latents fire, log scale, and their median", densities],
    ["labelled", "", ({ labelled, place }) => filtered(place, labelled, "labelled")],
  ], stores, "stores");
}

const STATES = { finished: "finished", stopped: "stopped", training: "training" };

function runsTable(runs) {
  return table("Dictionaries", [
    ["dictionary", "", ({ name, place }) => link({ pane: "training", run: place }, {}, name)],
    ["state", "", ({ state, share }) => [STATES[state], state === "finished" || share === null ? "" : ` at ${percent(share)}`]],
    ["site", "", ({ site }) => site || "–"],
    ["latents", "", ({ latents }) => number(latents)],
    ["rule", "the activation rule", ({ activation }) => activation || "–"],
    ["fvu", "variance unexplained: of the evaluation where there is one, else of the last logged step", ({ fvu }) => number(fvu)],
    ["l0", "active latents a token", ({ l0 }) => number(l0)],
    ["dead", "share of the latents that no longer fire in training", ({ dead_share }) => percent(dead_share)],
    ["tokens", "seen in training", ({ tokens }) => number(tokens)],
  ], runs, "runs");
}

function diffsTable(diffs) {
  return table("Diffs", [
    ["diff", "", ({ name, place }) => link({ pane: "diff", diff: place, diff_row: null }, {}, name)],
    ["models", "", ({ a, b }) => `${a} → ${b}`],
    ["method", "", ({ method }) => method],
    ["found", "rows found at the stated false-discovery rate, of all", ({ found, total }) => `${number(found)} of ${number(total)}`],
    ["rate", "the false-discovery rate", ({ fdr }) => number(fdr)],
    ["patched", "share of the change of behaviour that the first latents reproduce when they are patched into A; p among random latents", ({ patched, patched_p: p }) => (patched === null ? "–" : [percent(patched), p === null ? "" : h("small", {}, ` p ${number(p)}`)])],
    ["notes", "", ({ notes }) => number(notes)],
  ], diffs, "diffs");
}

function auditsTable(audits) {
  return table("Audits", [
    ["audit", "", ({ name, place }) => link({ pane: "audit", audit: place, audit_call: "" }, {}, name)],
    ["supported", "claims that evidence supports", ({ supported }) => number(supported)],
    ["open", "claims that nothing has decided", ({ open }) => number(open)],
    ["rejected", "claims that evidence speaks against", ({ rejected }) => number(rejected)],
    ["calls", "", ({ calls }) => number(calls)],
    ["state", "", ({ is_finished: isFinished }) => (isFinished ? "finished" : "no report")],
  ], audits, "audits");
}

function circuitsTable(graphs) {
  return table("Circuits", [
    ["prompt", "", ({ prompt, name, place }) => link({ pane: "circuit", ...anew(place) }, { class: "prompt-link" }, prompt || name)],
    ["target", "the heaviest one, and its probability unless targets were given", ({ target, weight }) => [h("span", { class: "token" }, target ?? "–"), weight === null ? "" : ` ${number(weight)}`]],
    ["residual", "worst |value − sum| / sum of |weights|: 0 when the ledger closes", ({ residual }) => number(residual)],
    ["replacement", "the tokens' share of all influence on leaves", ({ replacement }) => number(replacement)],
    ["completeness", "share of inputs that come from features and tokens", ({ completeness }) => number(completeness)],
    ["features", "", ({ features }) => number(features)],
  ], graphs, "graphs");
}

// Where one can go: [pane, title, what for], in the order of the tabs.
function places(index) {
  const latents = index.stores.reduce((sum, store) => sum + store.latents, 0);
  const texts = index.graphs.map((graph) => graph.prompt).filter(Boolean);
  return [
    ["latents", "Browse the latents", `${number(latents)} of ${few(index.stores.length, "store", "stores")}: examples, logits, neighbours; ${can("label") ? "label them, " : ""}search and filter`],
    ["prompt", "Ask a prompt", "which latents fire on a text, what they add to the next token, what ablating or steering them changes"],
    ["circuit", "Read a circuit", texts.length ? `why the model goes on as it does after “${texts[0].slice(0, 60)}”` : "why the model said what it said"],
    ["circuits", "Compare circuits", "all open circuits in numbers, and the features that recur"],
    ["compare", "Compare two stores", "matched latents of two dictionaries, checkpoints or models, on the same texts"],
    ["diff", "See what changed", "latents that differ between a model and its fine-tuned version, tested, and what patching them does"],
    ["audit", "Read the audit", "what it claims, and the results that each claim rests on"],
    ["map", "See the map", "decoder directions on a plane: what lies close writes alike"],
    ["training", "Follow the training", few(index.runs.length, "run: its curves and config", "runs: their curves and configs")],
  ];
}

function ways(index) {
  const open = [...document.querySelectorAll("#tabs [role=tab]")].map((tab) => tab.dataset.testid.slice(4));
  return h("section", { "aria-label": "Where to go" }, h("ul", { class: "ways plain", "data-testid": "ways" }, places(index).filter(([pane]) => open.includes(pane)).map(([pane, title, what]) =>
    h("li", {}, link({ pane }, { class: "way" }, h("b", {}, title), h("kbd", { "aria-hidden": "true" }, (open.indexOf(pane) + 1) % 10), h("span", {}, what))))));
}

// What a saved page carries: [what, where it came from], of each kind that is there.
async function carried(index) {
  const diffs = await Promise.all(index.diffs.map((_, place) => ask(`diffs/${place}`)));
  const several = (list, one, more) => (list.length === 1 ? one : more);
  return [
    [index.stores, "a part of the latents", "STORE"],
    [index.graphs, several(index.graphs, "the circuit", "the circuits"), "FILE.graph"],
    [index.diffs, `${diffs.some((diff) => diff?.rows) ? "the first rows of " : ""}${several(index.diffs, "the Diff", "the Diffs")}`, "DIFF"],
    [index.audits, several(index.audits, "the audit with its calls", "the audits with their calls"), "AUDIT"],
    [index.runs, "the training curves", "RUN"],
  ].filter(([list]) => list.length);
}

// What is not open, and the command that opens it: [what, command].
async function missing(index, about) {
  if (frozen) {
    const parts = await carried(index);
    const names = new Intl.ListFormat("en").format([...parts.map(([, what]) => what), "no model"]);
    return [[`This is a saved page: ${names}. The whole of it`, `unweave show ${parts.map(([, , from]) => from).join(" ") || "FOLDER"}`]];
  }
  const found = [];
  if (!index.stores.length) found.push(["Feature cards, search, map: collect a store of a dictionary and open it", "unweave collect DICTIONARY --activations SHARDS --out STORE"]);
  if (index.stores.length && !can("features")) found.push(["The prompt page, steering, loss effects: open the store together with its dictionary, where the model is", "unweave show STORE DICTIONARY"]);
  if (index.stores.length === 1) found.push(["Two dictionaries, checkpoints or models side by side: open a second store", "unweave show STORE OTHER_STORE"]);
  const bare = (about?.stores ?? []).filter((store) => !store.codes).map((store) => store.name);
  if (bare.length) found.push([`Exact intervals and latents that fire together: ${bare.join(", ")} kept no codes; collect with more room for them`, "unweave collect … --codes-mib 8192"]);
  if (!index.diffs.length) found.push(["What changed between two models, such as one and its fine-tuned version", "unweave diff MODEL TUNED --text TEXT --out DIFF"]);
  if (!index.audits.length) found.push(["What a model hides, such as what a fine-tuned one does that its base does not", "unweave audit MODEL --base BASE --out AUDIT"]);
  if (!index.graphs.length) found.push(["A circuit: trace why the model says what it says", "unweave trace MODEL \"PROMPT\" --out FILE.graph"]);
  else if (!can("validate")) found.push(["Experiments on a circuit: open it with its dictionaries, where the model is", "unweave show FILE.graph DICTIONARY"]);
  if (!index.runs.length) found.push(["Training curves, also of a run that is still going: open its folder", "unweave show RUN"]);
  return found;
}

function hints(list) {
  return list.length ? h("section", {}, h("h2", {}, "Not open here"), h("dl", { class: "hints", "data-testid": "hints" }, list.map(([what, command]) => [h("dt", {}, what), h("dd", {}, h("code", {}, command))]))) : null;
}

function measured(runs) {
  const known = runs.filter((run) => Object.keys(run.metrics).length);
  const names = [...new Set(known.flatMap((run) => Object.keys(run.metrics)))].filter((name) => known.some((run) => typeof run.metrics[name] === "number"));
  if (!names.length) return null;
  return h("section", {}, h("h2", {}, "Measured on held-out text"), table("Measured on held-out text", [["measure", "", words], ...known.map((run) => [run.name, "", (name) => number(run.metrics[name])])], names, "metrics"));
}

// Names such as "trace.nodes": `trace` is the part.
function numbered(numbers) {
  const parts = new Map();
  for (const [name, value] of numbers) {
    const dot = numbers.length > MANY ? name.indexOf(".") : -1;
    const part = name.slice(0, Math.max(dot, 0));
    parts.set(part, [...(parts.get(part) ?? []), [name.slice(dot + 1), value]]);
  }
  return h("div", { "data-testid": "numbers" }, [...parts].map(([part, pairs]) => (part ? details(words(part), facts(pairs)) : facts(pairs))));
}

function section(title, content) {
  return h("section", {}, h("h2", {}, title), content);
}

// Circuits take longer to count, so the page does not wait for them.
function circuits(index) {
  if (!index.graphs.length) return null;
  const box = h("div", {}, h("p", { class: "quiet", role: "status" }, "reading the circuits …"));
  ask("graphs").then((answer) => box.replaceChildren(answer ? circuitsTable(answer.graphs.map((row, place) => ({ ...row, place })))
    : h("ul", { class: "plain" }, index.graphs.map((graph, place) => h("li", {}, link({ pane: "circuit", ...anew(place) }, {}, graph.prompt || graph.name))))),
  (error) => box.replaceChildren(h("p", { class: "wrong" }, error.message)));
  return section("Circuits", box);
}

async function provenance(index) {
  const stores = await Promise.all(index.stores.map((_, place) => ask(`stores/${place}`)));
  return stores.length ? section("Provenance", stores.map((store, place) => details(index.stores[place].name, facts(flat(store.provenance), "provenance")))) : null;
}

async function pane(content, index) {
  const about = await ask("overview").catch(() => null);
  const placed = (rows) => (rows ?? []).map((row, place) => ({ ...row, place }));
  const models = [...new Set((about?.stores ?? []).map((store) => store.model).filter(Boolean))];
  const numbers = Object.entries(index.numbers);
  refill(content, h("h1", {}, index.title, models.length ? h("small", {}, ` ${models.join(", ")}`) : null), ways(index),
    about?.stores.length ? section(about.stores.length === 1 ? "Feature store" : "Feature stores", storesTable(placed(about.stores))) : null, circuits(index),
    about?.diffs.length ? section(about.diffs.length === 1 ? "Diff" : "Diffs", diffsTable(placed(about.diffs))) : null, about?.audits.length ? section(about.audits.length === 1 ? "Audit" : "Audits", auditsTable(placed(about.audits))) : null,
    about?.runs.length ? section(about.runs.length === 1 ? "Dictionary" : "Dictionaries", runsTable(placed(about.runs))) : null, measured(index.runs),
    numbers.length ? section("Numbers of this run", numbered(numbers)) : null, hints(await missing(index, about)), await provenance(index), h("footer", {}, `Unweave ${index.version}`));
}

export const overview = { name: "overview", title: "Overview", wanted: () => true, draw: pane };
