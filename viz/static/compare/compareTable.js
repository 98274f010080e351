// The table of latents of A with their partners in B: what is in it, sorted and filtered, and only the rows in sight drawn.
import { exports } from "../base/export.js";
import { h, number } from "../base/dom.js";
import { rolling, ROW } from "../base/list.js";
import { ask, column, frozen, rows } from "../base/transport.js";
import { set, state } from "../base/state.js";
import { calling } from "../base/tokens.js";

export const SHOWS = { all: "all", mutual: "each other's best", pair: "one to one", unmatched: "only in A" };
export const METHODS = { cosine: "cosine", correlation: "correlation" };

function places(about, total) {
  const carried = about.latents ?? null;
  const where = carried ? new Map(carried.map((latent, place) => [latent, place])) : null;
  return { count: carried ? carried.length : total, id: (place) => (carried ? carried[place] : place), place: (latent) => (where ? where.get(latent) ?? -1 : latent < total ? latent : -1) };
}

// Everything that the table needs of two stores by one method; null where there is no matching yet.
export async function compareTable(a, b, method, answer) {
  if (!answer.methods[method]?.found) return null;
  const [aboutA, aboutB] = await Promise.all([ask(`stores/${a}`), ask(`stores/${b}`)]);
  const names = ["score", "match", "mutual", "pair", "pair_score"];
  const parts = await Promise.all([...names.map((name) => column(a, `${method}_${name}_${b}`)), column(a, "density"), column(b, "density")]);
  const values = Object.fromEntries([...names, "density", "densityB"].map((name, place) => [name, parts[place]]));
  if (!values.score) return null;
  return { a, b, method, values, of: { a: places(aboutA, answer.a.latents), b: places(aboutB, answer.b.latents) }, texts: { a: frozen ? await rows(a, []) : {}, b: frozen ? await rows(b, []) : {} },
    labels: { a: aboutA.labels ?? {}, b: aboutB.labels ?? {} }, pairs: frozen ? (await ask(`compare/${a}/${b}/pairs`)) ?? {} : {}, asked: new Set() };
}

// Of a place: its latent, its partner under the present choice, the score, and the ratio of densities.
export function entry(table, place) {
  const { values } = table;
  const isPair = state.compare_show === "pair";
  const match = (isPair ? values.pair : values.match)[place];
  const partner = Number.isNaN(match) ? null : match;
  const at = partner === null ? -1 : table.of.b.place(partner);
  return { latent: table.of.a.id(place), partner, score: (isPair ? values.pair_score : values.score)[place], mutual: values.mutual[place] === 1,
    ratio: at < 0 ? NaN : values.density[place] / values.densityB[at] };
}

// The places that are shown, in order. Latents that never fire are left out.
function arranged(table, level) {
  const { values } = table;
  const keep = { __proto__: null, all: () => true, mutual: (place) => values.mutual[place] === 1, pair: (place) => !Number.isNaN(values.pair[place]),
    unmatched: (place) => !(values.score[place] > level) }[state.compare_show] ?? (() => true);
  const found = [];
  for (let place = 0; place < table.of.a.count; place += 1) if (values.density[place] > 0 && keep(place)) found.push(place);
  const name = state.compare_sort.replace(/^-/, "");
  const sign = state.compare_sort.startsWith("-") ? -1 : 1;
  const measure = { __proto__: null, score: (place) => entry(table, place).score, ratio: (place) => entry(table, place).ratio, density: (place) => values.density[place] }[name] ?? ((place) => place);
  const numbers = new Float64Array(table.of.a.count);
  for (const place of found) numbers[place] = measure(place);
  return found.sort((one, other) => {
    const [x, y] = [numbers[one], numbers[other]];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number(Number.isNaN(x)) - Number(Number.isNaN(y)) || one - other;
    return sign * (x - y) || one - other;
  });
}

function nameOf(table, side, latent) {
  const row = table.texts[side][latent];
  return calling(row?.label ?? table.labels[side][latent], row, 10, "cell");
}

async function learn(table, shown) {
  const asked = async (side, store, latents) => {
    const unknown = [...new Set(latents)].filter((latent) => latent !== null && !(latent in table.texts[side])).slice(0, 100);
    if (!unknown.length) return false;
    for (const latent of unknown) table.texts[side][latent] = null;
    Object.assign(table.texts[side], await rows(store, unknown));
    return true;
  };
  const names = shown.filter(({ partner }) => partner !== null).map(({ latent, partner }) => `${latent}-${partner}`).filter((name) => !table.asked.has(name)).slice(0, 100);
  names.forEach((name) => table.asked.add(name));
  const pairs = names.length ? ask(`compare/${table.a}/${table.b}/pairs/${names.join(",")}`).then((found) => Object.assign(table.pairs, found)) : null;
  const news = await Promise.all([asked("a", table.a, shown.map(({ latent }) => latent)), asked("b", table.b, shown.map(({ partner }) => partner)), pairs]);
  return news.some(Boolean);
}

function shownNumber(value, digits = 2) {
  return value === null || value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(digits).replace("-", "−");
}

export function ratioText(ratio) {
  if (!Number.isFinite(ratio)) return "–";
  return ratio >= 1 ? `× ${number(Number(ratio.toPrecision(2)))}` : `÷ ${number(Number((1 / ratio).toPrecision(2)))}`;
}

// The table as an element, with `refresh()`, `reveal()`, and `places` in its order.
export function tableOf(table, title) {
  const made = { places: [], element: null };
  const other = table.method === "cosine" ? "correlation" : "cosine";
  const count = h("span", { class: "quiet", role: "status", "data-testid": "compare-count" });
  const head = h("div", { class: "compare-row compare-heading", role: "row" });
  const tall = h("div", { class: "tall", role: "rowgroup" });
  const scroll = h("div", { class: "rows compare-rows", tabindex: 0, role: "rowgroup", "aria-label": "latents; arrow keys move", onscroll: () => fill() }, tall);
  const row = (at, top) => {
    const place = made.places[at];
    const one = entry(table, place);
    const pair = table.pairs[`${one.latent}-${one.partner}`];
    return h("div", { class: "compare-row", role: "row", "data-testid": "compare-row", "data-latent": one.latent, "aria-selected": String(one.latent === state.latent), "aria-rowindex": at + 1, style: { top: `${top}px`, height: `${ROW}px` },
      onclick: () => set({ latent: one.latent, compare_partner: null }, { push: true }) },
    h("span", { role: "cell", class: "id" }, one.latent), nameOf(table, "a", one.latent),
    h("span", { role: "cell", class: "id" }, one.partner === null ? "–" : one.partner, one.mutual ? h("span", { role: "img", "aria-label": "each other's best", title: "each other's best" }, " ⇄") : ""),
    one.partner === null ? h("span", { class: "label sample", role: "cell" }, "no partner") : nameOf(table, "b", one.partner),
    h("span", { role: "cell", class: "num strong" }, shownNumber(one.score)), h("span", { role: "cell", class: "num" }, shownNumber(pair?.[other])), h("span", { role: "cell", class: "num" }, ratioText(one.ratio)));
  };
  const list = rolling(scroll, tall, () => made.places.length, row);
  const fill = () => {
    const { first, last } = list.refill();
    learn(table, made.places.slice(first, last).map((place) => entry(table, place))).then((news) => news && list.refill(), () => {});
  };
  const button = (name, text, title_of) => {
    const isSorted = state.compare_sort.replace(/^-/, "") === name;
    const down = state.compare_sort.startsWith("-");
    return h("span", { role: "columnheader", "aria-sort": isSorted ? (down ? "descending" : "ascending") : "none" }, h("button", { type: "button", title: title_of, "data-testid": `compare-sort-${name}`,
      onclick: () => set({ compare_sort: isSorted && down ? name : `-${name}` }) }, text, isSorted ? (down ? " ↓" : " ↑") : ""));
  };
  made.refresh = (level) => {
    made.places = arranged(table, level);
    head.replaceChildren(button("latent", "A", "latent of A"), h("span", { role: "columnheader" }, "label, or top example"), h("span", { role: "columnheader" }, "B"), h("span", { role: "columnheader" }, "its partner"),
      button("score", table.method === "cosine" ? "cosine" : "corr.", METHODS[table.method]), h("span", { role: "columnheader", title: other }, other === "cosine" ? "cosine" : "corr."), button("ratio", "density", "density of A's latent over that of its partner"));
    count.textContent = `${number(made.places.length)} of ${number(table.of.a.count)} latents of A`;
    scroll.scrollTop = 0;
    fill();
    made.reveal();
  };
  made.reveal = () => {
    list.reveal(made.places.indexOf(table.of.a.place(state.latent ?? -1)));
    fill();
  };
  scroll.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: list.page(), PageUp: -list.page() }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    made.step(by);
  });
  made.step = (by) => {
    const at = made.places.indexOf(table.of.a.place(state.latent ?? -1));
    const next = made.places[Math.min(Math.max(at < 0 ? 0 : at + by, 0), made.places.length - 1)];
    if (next !== undefined) set({ latent: table.of.a.id(next), compare_partner: null });
  };
  const out = () => ({ columns: ["latent of A", "latent of B", table.method, "each other's best", "density ratio"], rows: made.places.map((place) => entry(table, place)).map((one) => [one.latent, one.partner, one.score, one.mutual, one.ratio]) });
  made.element = h("section", { class: "compare-list", "aria-label": title }, h("div", { class: "tools between" }, count, exports(title, { table: out })), h("div", { role: "table", "aria-label": title, class: "compare-table", "data-testid": "compare-table" }, head, scroll));
  return made;
}
