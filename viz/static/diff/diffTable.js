// The table of a Diff's rows: sorted by any column, filtered, only the rows in sight drawn.
import { h, number, words } from "../base/dom.js";
import { exports } from "../base/export.js";
import { rolling, ROW } from "../base/list.js";
import { frozen, rows } from "../base/transport.js";
import { set, state } from "../base/state.js";
import { calling } from "../base/tokens.js";
import { arranged, classOf, isFound, nextSort, noteOf, sortColumn, tokensOf, valueOf } from "./diffData.js";

const FEW = 5;   // numbers in a line of the table

// The columns that the table shows: the usual ones, and the one that it is sorted by.
function shownColumns(table) {
  const { shown } = table.about;
  const own = sortColumn(table);
  return !own || own === "row" || own === "class" || shown.includes(own) ? shown : [...shown.slice(0, FEW - 1), own];
}

export function tokenList(tokens) {
  return tokens.map((token) => [h("bdi", { class: "diff-token" }, token), " "]);
}

// What a latent is called: its label in the open store, the tokens that it fires on, else its strongest example there.
function called(table, at) {
  const tokens = tokensOf(table, at);
  const latent = table.id(at);
  const label = Object.hasOwn(table.labels, latent) ? table.labels[latent] : null;
  if (label || !tokens.length) return calling(label, table.store === null ? null : table.texts[latent], 12, "cell");
  return h("span", { role: "cell", class: "label diff-tokens" }, tokenList(tokens));
}

function shownNumber(value) {
  return number(value === null ? null : Number(value.toPrecision(3)));
}

// The table as an element, with `refresh()`, `reveal()`, `step(by)`, and `places` in its order.
export function tableOf(table) {
  table.texts = {};
  const made = { places: table.ranks, element: null };
  const title = `${table.about.name}: what differs`;
  const first = table.isWords ? "position" : "row";
  const count = h("span", { class: "quiet", role: "status", "data-testid": "diff-count" });
  const head = h("div", { class: "diff-row diff-heading", role: "row" });
  const tall = h("div", { class: "tall", role: "rowgroup" });
  const scroll = h("div", { class: "rows diff-rows", tabindex: 0, role: "rowgroup", "aria-label": "rows; arrow keys move", onscroll: () => fill() }, tall);
  const row = (at, top) => {
    const place = made.places[at];
    const id = table.id(place);
    const kind = classOf(table, place);
    return h("div", { class: "diff-row", role: "row", "data-testid": "diff-row", "data-row": id, "aria-selected": String(id === state.diff_row), "aria-rowindex": at + 1, style: { top: `${top}px`, height: `${ROW}px` },
      onclick: () => set({ diff_row: id }, { push: true }) },
    h("span", { role: "cell", class: "id" }, table.isWords ? number(valueOf(table, "position", place)) : id, isFound(table, place) ? h("span", { class: "diff-found", role: "img", "aria-label": "found", title: "found" }, " ●") : ""),
    called(table, place), kind === null ? null : h("span", { role: "cell", class: "lesser" }, kind),
    shownColumns(table).map((name, column) => h("span", { role: "cell", class: column > 1 ? "num lesser" : "num" }, shownNumber(valueOf(table, name, place)))));
  };
  const list = rolling(scroll, tall, () => made.places.length, row);
  const learn = (first_place, last) => {
    if (table.store === null) return;
    const unknown = made.places.slice(first_place, last).map(table.id).filter((latent) => !tokensOf(table, table.at(latent)).length && !(latent in table.texts)).slice(0, 100);
    if (!unknown.length) return;
    for (const latent of unknown) table.texts[latent] = null;
    rows(table.store, unknown).then((found) => { Object.assign(table.texts, frozen ? Object.fromEntries(unknown.map((latent) => [latent, found[latent] ?? null])) : found); list.refill(); }, () => {});
  };
  const fill = () => {
    const { first: from, last } = list.refill();
    learn(from, last);
  };
  const button = (name, text, kind = null) => {
    const isSorted = state.diff_sort.replace(/^-/, "") === name;
    const down = state.diff_sort.startsWith("-");
    return h("span", { role: "columnheader", class: kind, "aria-sort": isSorted ? (down ? "descending" : "ascending") : "none" }, h("button", { type: "button", title: noteOf(table, name), "data-testid": `diff-sort-${name}`,
      onclick: () => set({ diff_sort: nextSort(table, name) }) }, text, isSorted ? (down ? " ↓" : " ↑") : ""));
  };
  made.refresh = () => {
    made.places = arranged(table);
    const columns = shownColumns(table);
    made.box.style.setProperty("--numbers", String(columns.length));
    head.replaceChildren(...[button(first, table.isWords ? "position" : "latent"), h("span", { role: "columnheader" }, table.isWords ? "token" : "label, or fires on"),
      table.about.classes.length ? button("class", "class", "lesser") : null, ...columns.map((name, column) => button(name, words(name), column > 1 ? "lesser" : null))].filter(Boolean));
    const part = table.about.rows ? `; this page carries ${number(table.count)} of ${number(table.about.total)}` : "";
    count.textContent = `${number(made.places.length)} of ${number(table.count)} ${table.isWords ? "tokens" : "latents"}${part}`;
    scroll.scrollTop = 0;
    fill();
    made.reveal();
  };
  made.reveal = () => {
    list.reveal(made.places.indexOf(table.at(state.diff_row)));
    fill();
  };
  made.step = (by) => {
    const at = made.places.indexOf(table.at(state.diff_row));
    const next = made.places[Math.min(Math.max(at < 0 ? 0 : at + by, 0), made.places.length - 1)];
    if (next !== undefined) set({ diff_row: table.id(next) });
  };
  scroll.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: list.page(), PageUp: -list.page() }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    made.step(by);
  });
  const names = table.about.columns.filter((name) => name !== "class" && name !== "is_found");
  const out = () => ({ columns: [table.isWords ? "row" : "latent", "tokens", ...(table.about.classes.length ? ["class"] : []), "found", ...names],
    rows: made.places.map((at) => [table.id(at), tokensOf(table, at).join(" "), ...(table.about.classes.length ? [classOf(table, at)] : []), isFound(table, at), ...names.map((name) => valueOf(table, name, at))]) });
  made.box = h("div", { role: "table", "aria-label": title, class: table.about.classes.length ? "diff-table classed" : "diff-table", "data-testid": "diff-table" }, head, scroll);
  made.element = h("section", { class: "diff-list", "aria-label": title }, h("div", { class: "tools between" }, count, exports(`${table.about.name} diff`, { table: out })), made.box);
  return made;
}
