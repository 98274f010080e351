// What is open here, the numbers of the run, and how each dictionary does.
import { details, facts, flat, h, link, number, words } from "../base/dom.js";
import { ask } from "../base/transport.js";

function metricsTable(runs) {
  const measured = runs.filter((run) => Object.keys(run.metrics).length);
  if (!measured.length) return null;
  const names = [...new Set(measured.flatMap((run) => Object.keys(run.metrics)))]
    .filter((name) => measured.some((run) => typeof run.metrics[name] === "number"));
  return h("section", {}, h("h2", {}, "Measured on held-out text"),
    h("div", { class: "scroll" }, h("table", { class: "grid", "data-testid": "metrics" },
      h("thead", {}, h("tr", {}, h("th", {}, ""), measured.map((run) => h("th", { scope: "col" }, run.name)))),
      h("tbody", {}, names.map((name) => h("tr", {}, h("th", { scope: "row" }, words(name)),
        measured.map((run) => h("td", {}, number(run.metrics[name])))))))));
}

function tile(value, text, target) {
  const content = [h("b", {}, value), h("span", {}, text)];
  return target ? link(target, { class: "tile" }, content) : h("div", { class: "tile" }, content);
}

function tiles(index) {
  const latents = index.stores.reduce((sum, store) => sum + store.latents, 0);
  return h("div", { class: "tiles" },
    index.runs.length ? tile(number(index.runs.length), index.runs.length === 1 ? "dictionary" : "dictionaries", { pane: "training" }) : null,
    index.stores.length ? tile(number(latents), "latents", { pane: "latents" }) : null,
    index.graphs.length ? tile(number(index.graphs.length), index.graphs.length === 1 ? "circuit" : "circuits", { pane: "circuit" }) : null);
}

async function provenance(index) {
  const stores = await Promise.all(index.stores.map((_, place) => ask(`stores/${place}`)));
  if (!stores.length) return null;
  return h("section", {}, h("h2", {}, "Provenance"),
    stores.map((store, place) => details(index.stores[place].name, facts(flat(store.provenance), "provenance"))));
}

function circuits(index) {
  if (!index.graphs.length) return null;
  return h("section", {}, h("h2", {}, "Circuits"), h("ul", { class: "plain" },
    index.graphs.map((graph, place) => h("li", {}, link({ pane: "circuit", graph: place, node: null }, {}, graph.prompt || graph.name)))));
}

async function pane(content, index) {
  const numbers = Object.entries(index.numbers);
  content.replaceChildren(...[h("h1", {}, index.title), tiles(index), metricsTable(index.runs), circuits(index),
    numbers.length ? h("section", {}, h("h2", {}, "Numbers of this run"), facts(numbers, "numbers")) : null,
    await provenance(index), h("footer", {}, `Unweave ${index.version}`)].filter(Boolean));
}

export const overview = { name: "overview", title: "Overview", wanted: () => true, draw: pane };
