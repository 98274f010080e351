// The filters that are on, each with a button that takes it off, and a small form for one more.
import { filterChoices, filterText, readFilters, writeFilters } from "./filters.js";
import { h, number, refill } from "../base/dom.js";
import { sortName } from "./latentsTable.js";
import { set, state } from "../base/state.js";

const bar = { open: false };   // so it is in the next list too

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

// The form for one more filter; `fit()` follows the order of the list, unless somebody is writing.
function form(table) {
  const field = (label, testid) => h("input", { type: "text", inputmode: "decimal", size: 7, "aria-label": label, "data-testid": testid });
  const [low, high, wrong] = [field("At least", "filter-low"), field("At most", "filter-high"), h("span", { class: "quiet", role: "status" })];
  const select = h("select", { "aria-label": "Filter by", "data-testid": "filter-by", onchange: () => ends() }, filterChoices(table).map(([group, options]) =>
    h("optgroup", { label: group }, options.map(([value, text]) => h("option", { value }, text)))));
  let begun = false;
  const range = h("span", { class: "ends" }, low, " to ", high);
  const ends = () => {
    if (!select.value) select.selectedIndex = 0;
    range.hidden = !select.value.endsWith(":");
    [low.placeholder, high.placeholder] = rangeOf(table.columns[select.value.slice(0, -1)]);
  };
  const fit = () => {
    if (!begun) select.value = `${sortName()}:`;
    ends();
  };
  const add = (event) => {
    event.preventDefault();
    const [from, to] = [low.value, high.value].map((text) => text.trim().replace(",", "."));
    if (!range.hidden && (!(from || to) || Number.isNaN(Number(from)) || Number.isNaN(Number(to)))) {
      wrong.textContent = "Give a number for one end or both, such as 1e-4.";
      return;
    }
    const text = range.hidden ? select.value : `${select.value}${from}..${to}`;
    [low.value, high.value, wrong.textContent, begun] = ["", "", "", false];
    set({ filter: [...state.filter.split(";").filter((part) => part && part !== text), text].join(";") }, { push: true });
  };
  return { fit, form: h("form", { class: "tools", onsubmit: add, oninput: () => { begun = true; } }, select, range, h("button", { type: "submit", class: "small", "data-testid": "filter-add" }, "Add"), wrong) };
}

// The bar, and `redraw()` for when the filters or the order have changed: the form keeps what is being written, and the focus.
export function filterBar(table) {
  const adding = form(table);
  const more = h("details", { class: "bare adding", open: bar.open, ontoggle: () => { bar.open = more.open; } }, h("summary", { "data-testid": "filter-open" }, "Filter"), adding.form);
  const chips = h("span", { class: "chips" });
  const redraw = () => {
    const filters = readFilters(state.filter);
    adding.fit();
    refill(chips, filters.map((_, at) => chip(filters, at)),
      filters.length > 1 ? h("button", { type: "button", class: "small", onclick: () => set({ filter: "" }, { push: true }) }, "Clear") : null);
  };
  return { bar: h("div", { class: "filters tools" }, more, chips), redraw };
}
