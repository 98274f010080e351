// The filters that are on, each with a button that takes it off, and a small form for one more.
import { filterChoices, filterText, readFilters, writeFilters } from "./filters.js";
import { h, number } from "../base/dom.js";
import { sortName } from "./latentsTable.js";
import { set, state } from "../base/state.js";

const bar = { open: false };   // the form stays as it was while the list is drawn anew

function chip(filters, at) {
  const text = filterText(filters[at]);
  return h("span", { class: "chip", "data-testid": "filter" }, text, h("button", { type: "button", "aria-label": `Remove the filter ${text}`,
    onclick: () => set({ filter: writeFilters(filters.filter((_, place) => place !== at)) }, { push: true }) }, "×"));
}

// The least and the largest finite value of a column that is loaded, as hints in the fields.
function rangeOf(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values ?? []) {
    if (value < low) low = value;
    if (value > high && value < Infinity) high = value;
  }
  return low <= high ? [number(low), number(high)] : ["least", "most"];
}

function form(table) {
  const field = (label, testid) => h("input", { type: "text", inputmode: "decimal", size: 7, "aria-label": label, "data-testid": testid });
  const [low, high, wrong] = [field("At least", "filter-low"), field("At most", "filter-high"), h("span", { class: "quiet", role: "status" })];
  const select = h("select", { "aria-label": "Filter by", "data-testid": "filter-by", onchange: () => fit() }, filterChoices(table).map(([group, options]) =>
    h("optgroup", { label: group }, options.map(([value, text]) => h("option", { value }, text)))));
  const ends = h("span", { class: "ends" }, low, " to ", high);
  const fit = () => {
    if (!select.value) select.selectedIndex = 0;
    ends.hidden = !select.value.endsWith(":");
    [low.placeholder, high.placeholder] = rangeOf(table.columns[select.value.slice(0, -1)]);
  };
  const add = (event) => {
    event.preventDefault();
    const [from, to] = [low.value, high.value].map((text) => text.trim().replace(",", "."));
    if (!ends.hidden && (!(from || to) || Number.isNaN(Number(from)) || Number.isNaN(Number(to)))) {
      wrong.textContent = "Give a number for one end or both, such as 1e-4.";
      return;
    }
    const text = ends.hidden ? select.value : `${select.value}${from}..${to}`;
    set({ filter: [...state.filter.split(";").filter((part) => part && part !== text), text].join(";") }, { push: true });
  };
  select.value = `${sortName()}:`;
  fit();
  return h("form", { class: "tools", onsubmit: add }, select, ends, h("button", { type: "submit", class: "small", "data-testid": "filter-add" }, "Add"), wrong);
}

export function filterBar(table) {
  const filters = readFilters(state.filter);
  const more = h("details", { class: "bare adding", open: bar.open, ontoggle: () => { bar.open = more.open; } }, h("summary", { "data-testid": "filter-open" }, "Filter"), form(table));
  return h("div", { class: "tools" }, more, filters.map((_, at) => chip(filters, at)),
    filters.length > 1 ? h("button", { type: "button", class: "small", onclick: () => set({ filter: "" }, { push: true }) }, "Clear") : null);
}
