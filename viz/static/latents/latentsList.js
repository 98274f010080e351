// The list of latents: what to look for, filters, and rows that are drawn only where they are in sight.
import { rolling } from "../base/list.js";
import { choice, h, number, words } from "../base/dom.js";
import { exports } from "../base/export.js";
import { filterBar } from "./filterBar.js";
import { find, kindsHere, KINDS } from "./find.js";
import { arranged, pane, shownColumns, sortName, sortsDown } from "./latentsTable.js";
import { frozen, rows } from "../base/transport.js";
import { set, state } from "../base/state.js";
import { calling } from "../base/tokens.js";

const MOST_ROWS = 3000;   // that are remembered

// A narrow list has no room for one of three columns: never the one that it is sorted by.
function columnClass(name, names) {
  return name === names.slice(1).find((each) => each !== sortName()) ? "num spare" : "num";
}

function row(table, at, top) {
  const place = pane.places[at];
  const latent = table.latents[place];
  return h("div", { class: "row", role: "row", id: `latent-${latent}`, "data-testid": "latent-row", "data-latent": latent, style: { top: `${top}px` },
    "aria-rowindex": at + 2, "aria-selected": String(latent === state.latent), onclick: () => set({ latent, example: null }, { push: true }) },
  h("span", { role: "gridcell", class: "id" }, latent, table.starOf(latent) ? h("span", { class: "star", role: "img", "aria-label": "starred" }, "★") : ""),
  calling(table.labelOf(latent), table.rows[latent], 24, "gridcell"),
  shownColumns(table).map((name, _, names) => h("span", { role: "gridcell", class: columnClass(name, names) }, number(readable(table.columns[name]?.[place])))));
}

function readable(value) {
  return value === undefined || !Number.isFinite(value) ? null : value;
}

function header(table) {
  const button = (name, text, kind = "") => {
    const sorted = sortName() === name;
    return h("span", { role: "columnheader", class: kind, "aria-sort": sorted ? (sortsDown() ? "descending" : "ascending") : "none" },
      h("button", { type: "button", "data-testid": `sort-${name}`, title: table.about.notes?.[name] ?? `Sort by ${words(name)}`, onclick: () => set({ sort: sorted && sortsDown() ? name : `-${name}` }) },
        text, sorted ? (sortsDown() ? " ↓" : " ↑") : ""));
  };
  return h("div", { class: "row header", role: "row", "aria-rowindex": 1 }, button("latent", "latent"), h("span", { role: "columnheader" }, "label, or top example"),
    shownColumns(table).map((name, _, names) => button(name, words(name).replace(" value", "").replace("token entropy", "entropy"), columnClass(name, names))));
}

function countText(table) {
  const all = number(table.latents.length);
  const shown = pane.places.length === table.latents.length ? all : `${number(pane.places.length)} of ${all}`;
  const part = frozen && table.total > table.latents.length ? `; this page carries ${all} of ${number(table.total)}` : "";
  return `${shown} latents${part}`;
}

function finder(table, told) {
  const kinds = kindsHere();
  let waiting = null;
  const input = h("input", { id: "search", type: "search", value: state.query, maxlength: 400, placeholder: "Search (/)", "aria-label": "Search latents", "data-testid": "search",
    oninput: () => { clearTimeout(waiting); if (state.find !== "fires") waiting = setTimeout(() => set({ query: input.value }), frozen ? 0 : 120); },
    onkeydown: (event) => { if (event.key === "Enter") { clearTimeout(waiting); set({ query: input.value }); } } });
  const kind = choice("in", kinds.map((name) => KINDS[name]), Math.max(kinds.indexOf(state.find), 0), (place) => set({ find: kinds[place], query: input.value }));
  kind?.querySelector("select").setAttribute("data-testid", "search-kind");
  let asked = null;
  pane.search = async (from_top = false) => {
    if (input !== document.activeElement && input.value !== state.query) input.value = state.query;
    asked?.abort();
    const mine = asked = new AbortController();
    told.textContent = state.query.trim() && state.find === "fires" ? "running the model on this text…" : "";
    try {
      const found = await find(table, state.find, state.query, mine.signal);
      if (mine.signal.aborted) return;
      pane.found = found;
      told.textContent = found?.why ?? "";
    } catch (error) {
      if (mine.signal.aborted) return;
      pane.found = { latents: [], total: 0 };
      told.textContent = error.message;
    }
    await pane.arrange(from_top);
  };
  return h("div", { class: "finder" }, input, kind);
}

function sorting(table) {
  const sorts = [...(pane.found ? [""] : []), "latent", ...table.names];
  return choice("Sort by", sorts.map((name) => words(name) || "best match"), Math.max(sorts.indexOf(sortName()), 0), (place) => set({ sort: sorts[place] ? `-${sorts[place]}` : "" }));
}

// Remember rows; when there are many, those in sight only.
function keep(table, seen, found) {
  if (Object.keys(table.rows).length > MOST_ROWS) {
    const near = Array.from(pane.places.slice(seen.first, seen.last), (place) => table.latents[place]).filter((latent) => latent in table.rows);
    table.rows = Object.fromEntries(near.map((latent) => [latent, table.rows[latent]]));
  }
  Object.assign(table.rows, found);
}

// Up and down are those of the list while the focus is on it.
function arrows(event) {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!by || event.target !== event.currentTarget || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  event.stopPropagation();
  pane.step(by);
}

export function listOf(table, index) {
  const [count, told, head] = [h("p", { class: "quiet", "data-testid": "latent-count", role: "status" }), h("p", { class: "quiet told", "data-testid": "search-why" }), h("div", { class: "heading", role: "rowgroup" })];
  const filters = filterBar(table);
  const tall = h("div", { class: "tall", role: "rowgroup" });
  const scroll = h("div", { class: "rows", onscroll: () => draw() }, tall);
  const grid = h("div", { role: "grid", class: "table", tabindex: 0, "aria-label": "Latents; arrow keys move, Enter opens", "data-testid": "latent-table", onkeydown: arrows }, head, scroll);
  const roll = rolling(scroll, tall, () => pane.places.length, (at, top) => row(table, at, top));
  let waiting = null;
  const fetchRows = (seen) => {
    const missing = Array.from(pane.places.slice(seen.first, seen.last), (place) => table.latents[place]).filter((latent) => !(latent in table.rows));
    if (missing.length && !frozen) rows(table.store, missing.slice(0, 100)).then((found) => { keep(table, seen, found); roll.refill(); }, () => {});
  };
  const draw = () => { fetchSoon(roll.refill()); pointed(); };
  const fetchSoon = (seen) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => fetchRows(seen), 40);   // not for what a dragged scroll bar only passes
  };
  let turn = 0;
  pane.arrange = async (from_top = false) => {   // another order is read from its beginning
    const mine = turn += 1;
    const places = await arranged(table);
    if (mine !== turn) return;
    pane.places = places;
    head.replaceChildren(header(table));
    filters.redraw();
    count.replaceChildren(countText(table));
    sort.replaceChildren(sorting(table));
    grid.setAttribute("aria-rowcount", places.length + 1);
    if (from_top) scroll.scrollTop = 0;
    fetchRows(roll.refill());
  };
  pane.page = roll.page;
  pane.redraw = draw;
  const pointed = () => {
    if (document.getElementById(`latent-${state.latent}`)) grid.setAttribute("aria-activedescendant", `latent-${state.latent}`);
    else grid.removeAttribute("aria-activedescendant");
  };
  pane.reveal = () => {
    fetchSoon(roll.reveal(pane.places.indexOf(table.placeOf(state.latent))));
    pointed();
  };
  const sort = h("span", {});
  return h("section", { class: "list", "aria-label": "List of latents" },
    h("div", { class: "tools" }, choice("Store", index.stores.map((store) => store.name), state.store, (store) => set({ store, latent: null, example: null }, { push: true })), finder(table, told)), told,
    filters.bar, h("div", { class: "tools between" }, count, h("div", { class: "tools" }, sort, exports(`${table.name} latents`, { table: () => listTable(table) }))), grid);
}

// The list as a table to save: what is shown of it, in its order.
function listTable(table) {
  const names = table.names.filter((name) => table.columns[name]);
  return { columns: ["latent", "label", ...names], rows: Array.from(pane.places, (place) => [table.latents[place], table.labelOf(table.latents[place]), ...names.map((name) => readable(table.columns[name][place]))]) };
}
