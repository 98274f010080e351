// What of a Diff is shown: a search, found or all, a class, and ranges of columns, each with a button that takes it off.
import { choice, h, refill, segments, words } from "../base/dom.js";
import { set, state } from "../base/state.js";
import { filterText, readFilters, writeFilters } from "../latents/filters.js";
import { SHOWS } from "./diffData.js";

const WAIT = 120;              // ms without a key after which the search is done
const form = { open: false };  // stays as it was while the bar is drawn anew

function chip(filters, at) {
  const text = filterText(filters[at]);
  return h("span", { class: "chip", "data-testid": "diff-filter" }, text, h("button", { type: "button", "aria-label": `Remove the filter ${text}`, onclick: () => set({ diff_filter: writeFilters(filters.filter((_, other) => other !== at)) }, { push: true }) }, "×"));
}

function adding(table) {
  const field = (label, testid) => h("input", { type: "text", inputmode: "decimal", size: 7, "aria-label": label, "data-testid": testid });
  const [low, high, wrong] = [field("At least", "diff-low"), field("At most", "diff-high"), h("span", { class: "quiet", role: "status" })];
  const names = table.about.columns.filter((name) => name !== "class" && name !== "is_found");
  const by = h("select", { "aria-label": "Filter by", "data-testid": "diff-by" }, names.map((name) => h("option", { value: name, selected: name === "q" }, words(name))));
  const add = (event) => {
    event.preventDefault();
    const [from, to] = [low.value, high.value].map((text) => text.trim().replace(",", "."));
    if (!(from || to) || Number.isNaN(Number(from)) || Number.isNaN(Number(to))) {
      wrong.textContent = "Give a number for one end or both, such as 1e-4.";
      return;
    }
    const text = `${by.value}:${from}..${to}`;
    set({ diff_filter: [...state.diff_filter.split(";").filter((part) => part && part !== text), text].join(";") }, { push: true });
  };
  const more = h("details", { class: "bare adding", open: form.open, ontoggle: () => { form.open = more.open; } }, h("summary", { "data-testid": "diff-filter-open" }, "Filter"),
    h("form", { class: "tools", onsubmit: add }, by, h("span", {}, low, " to ", high), h("button", { type: "submit", class: "small", "data-testid": "diff-filter-add" }, "Add"), wrong));
  return more;
}

// The bar of one Diff: { element, refresh() }.
export function filtersOf(table) {
  const { about } = table;
  let waiting = null;
  const search = h("input", { id: "diff-search", type: "search", value: state.diff_query, maxlength: 400, placeholder: table.isWords ? "Token (/)" : "Latent or token (/)", "aria-label": "Search rows", "data-testid": "diff-search",
    oninput: () => { clearTimeout(waiting); waiting = setTimeout(() => set({ diff_query: search.value }), WAIT); } });
  const [shows, ranges] = [h("span", { class: "tools" }), h("span", { class: "tools" })];
  const counts = about.classes.map((_, kind) => table.values.class.reduce((sum, value) => sum + (value === kind), 0));
  const classes = ["", ...about.classes.filter((_, kind) => counts[kind])];
  const names = Object.fromEntries(Object.entries(SHOWS).filter(([name]) => about.is_signed || name === "all" || name === "found"));
  const made = { element: h("div", { class: "tools diff-filters" }, search, shows, ranges) };
  made.refresh = () => {
    if (search !== document.activeElement && search.value !== state.diff_query) search.value = state.diff_query;
    const current = Object.hasOwn(names, state.diff_show) ? state.diff_show : "all";
    refill(shows, segments("Show", names, current, (name) => set({ diff_show: name }), "diff-show"),
      choice("Class", classes.map((name) => (name ? `${name} (${counts[about.classes.indexOf(name)]})` : "any")), Math.max(classes.indexOf(state.diff_class), 0), (at) => set({ diff_class: classes[at] })));
    const filters = readFilters(state.diff_filter).filter(({ name }) => name !== undefined);
    refill(ranges, adding(table), filters.map((_, at) => chip(filters, at)));
  };
  return made;
}
