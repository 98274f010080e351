// The list of latents: sorted, searched, and drawn only where it is scrolled to; the card stands beside it.
import { card } from "./card.js";
import { choice, h, number, words } from "./dom.js";
import { key } from "./keys.js";
import { ask, column, frozen, rows } from "./transport.js";
import { declare, on, set, state } from "./state.js";

const ROW = 46;      // px, the height of a row in style.css
const SHOWN = ["density", "max_value", "token_entropy"];
declare({ query: "", sort: "-density" });
const list = { rows: [], places: [], refresh() {} };

on(["query", "sort"], () => list.refresh());
on(["store"], () => list.reload?.());
on(["latent"], () => list.select?.());

function matches(table, place, words) {
  const shown = table.rows[table.latents[place]];
  const text = `${table.labels[table.latents[place]] ?? ""} ${shown ? shown.before + shown.token + shown.after : ""}`.toLowerCase();
  return words.every((word) => text.includes(word) || String(table.latents[place]) === word);
}

function ordered(table) {
  const name = state.sort.replace(/^-/, "");
  const values = name === "latent" ? table.latents : (table.columns[name] ?? table.latents);
  const sign = state.sort.startsWith("-") ? -1 : 1;
  const query = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  return table.latents.map((_, place) => place).filter((place) => matches(table, place, query))
    .sort((a, b) => sign * ((values[a] ?? -Infinity) - (values[b] ?? -Infinity)) || table.latents[a] - table.latents[b]);
}

function row(table, place, at) {
  const latent = table.latents[place];
  const label = table.labels[latent];
  const shown = table.rows[latent];
  return h("div", { class: "row", role: "row", "data-testid": "latent-row", "data-latent": latent, style: { top: `${at * ROW}px` },
    "aria-selected": String(latent === state.latent), onclick: () => set({ latent }, { push: true }) },
  h("span", { role: "cell", class: "id" }, latent),
  h("span", { role: "cell", class: label ? "label" : "label sample" }, label ?? (shown ? [shown.before, h("b", {}, shown.token), shown.after] : "")),
  SHOWN.filter((name) => table.columns[name]).map((name) => h("span", { role: "cell", class: "num" }, number(table.columns[name][place]))));
}

function header(table) {
  const button = (name, text) => {
    const sorted = state.sort.replace(/^-/, "") === name;
    const down = state.sort.startsWith("-");
    return h("button", { type: "button", role: "columnheader", "data-testid": `sort-${name}`,
      "aria-sort": sorted ? (down ? "descending" : "ascending") : "none",
      onclick: () => set({ sort: sorted && down ? name : `-${name}` }) }, text, sorted ? (down ? " ↓" : " ↑") : "");
  };
  return h("div", { class: "row header", role: "row" }, button("latent", "latent"), h("span", { role: "columnheader" }, "label, or top example"),
    SHOWN.filter((name) => table.columns[name]).map((name) => button(name, words(name).replace(" value", "").replace("token entropy", "entropy"))));
}

function build(table, index) {
  const count = h("p", { class: "quiet", "data-testid": "latent-count" });
  const head = h("div", { class: "heading" });
  const tall = h("div", { class: "tall", role: "rowgroup" });
  const scroll = h("div", { class: "rows", tabindex: 0, "aria-label": "latents", onscroll: () => draw() }, tall);
  const search = h("input", { id: "search", type: "search", value: state.query, placeholder: "Search labels and examples", "aria-label": "Search labels and examples",
    "data-testid": "search", oninput: (event) => set({ query: event.target.value }) });
  const sorts = ["latent", ...Object.keys(table.columns)];
  const sort = choice("Sort by", sorts.map(words), Math.max(sorts.indexOf(state.sort.replace(/^-/, "")), 0), (place) => set({ sort: `-${sorts[place]}` }));
  const draw = () => {
    const first = Math.max(Math.floor(scroll.scrollTop / ROW) - 8, 0);
    const last = Math.min(first + Math.ceil((scroll.clientHeight || 600) / ROW) + 16, list.rows.length);
    const shown = list.rows.slice(first, last);
    tall.replaceChildren(...shown.map((place, offset) => row(table, place, first + offset)));
    const missing = shown.map((place) => table.latents[place]).filter((latent) => !(latent in table.rows));
    if (missing.length) rows(table.store, missing).then((found) => { Object.assign(table.rows, found); draw(); }, () => {});
  };
  list.refresh = () => {
    list.rows = ordered(table);
    list.places = list.rows.map((place) => table.latents[place]);
    tall.style.height = `${list.rows.length * ROW}px`;
    head.replaceChildren(header(table));
    count.replaceChildren(countText(table));
    draw();
  };
  list.reveal = () => {
    const at = list.places.indexOf(state.latent) * ROW;
    if (at >= 0 && (at < scroll.scrollTop || at + ROW > scroll.scrollTop + scroll.clientHeight)) scroll.scrollTop = at - scroll.clientHeight / 3;
    draw();
  };
  return h("section", { class: "list", "aria-label": "List of latents" },
    h("div", { class: "tools" }, choice("Store", index.stores.map((store) => store.name), state.store, (store) => set({ store, latent: null })), search),
    h("div", { class: "tools between" }, count, sort), h("div", { role: "table", class: "table", "data-testid": "latent-table" }, head, scroll));
}

function countText(table) {
  const shown = list.rows.length === table.latents.length ? `${number(table.latents.length)}` : `${number(list.rows.length)} of ${number(table.latents.length)}`;
  const part = frozen && table.total > table.latents.length ? `; this page carries ${number(table.latents.length)} of ${number(table.total)}` : "";
  return `${shown} latents${part}`;
}

// Select the latent `by` places further down the list.
function step(by) {
  if (state.pane !== "latents") return set({ pane: "latents" }, { push: true });
  const at = list.places.indexOf(state.latent);
  const next = list.places[Math.min(Math.max(at < 0 ? 0 : at + by, 0), list.places.length - 1)];
  return next === undefined ? undefined : set({ latent: next });
}

async function draw(content, index) {
  list.reload = async () => {
    const store = Math.min(state.store, index.stores.length - 1);
    const table = { ...await ask(`stores/${store}`), rows: frozen ? await rows(store, []) : {}, store };
    const names = table.columns;
    const columns = await Promise.all(names.map((name) => column(store, name)));
    table.columns = Object.fromEntries(names.map((name, place) => [name, columns[place]]));
    table.latents ??= Array.from({ length: table.total }, (_, latent) => latent);
    if (store !== Math.min(state.store, index.stores.length - 1)) return;
    const box = h("section", { class: "cardbox", "aria-label": "Feature card", "aria-live": "polite" });
    content.replaceChildren(build(table, index), box);
    list.refresh();
    if (state.latent === null && matchMedia("(min-width: 900px)").matches && list.places.length) {
      set({ latent: firstInteresting(table) });
    }
    list.select = async () => {
      content.classList.toggle("chosen", state.latent !== null);
      list.reveal();
      await card(box, store, state.latent, index.stores[store].name, table.total);
    };
    await list.select();
    requestAnimationFrame(() => list.reveal());
  };
  await list.reload();
}

// The first latent of the list that is neither dead nor dense.
function firstInteresting(table) {
  const density = table.columns.density;
  const found = list.rows.find((place) => density && density[place] > 0 && density[place] < 0.01);
  return table.latents[found ?? list.rows[0]];
}

key("j", "next latent", () => step(1));
key("k", "previous latent", () => step(-1));
key("/", "search latents", () => {
  set({ pane: "latents" });
  requestAnimationFrame(() => document.querySelector("#search")?.focus());
});

export const latents = { name: "latents", title: "Latents", wanted: (index) => index.stores.length > 0, draw };
