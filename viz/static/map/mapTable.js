// What the map shows of a store: places, names, the statistics that it can be coloured by, and the words about one latent.
import { h, number, words } from "../base/dom.js";
import { act, ask, can, column, frozen, rows } from "../base/transport.js";

// The points of a store as { x, y, ids, rank, labels, stars, marked, names, notes, store, texts }; null where it has no map.
export async function mapTable(store, total) {
  const [about, x, y] = await Promise.all([ask(`stores/${store}`), column(store, "map_x").catch(() => null), column(store, "map_y").catch(() => null)]);
  if (!x || !y) return null;
  const marks = (await ask(`stores/${store}/marks`).catch(() => null)) ?? {};
  const carried = about.latents ?? null;
  const where = carried ? new Map(carried.map((latent, place) => [latent, place])) : null;
  const rank = (latent) => (where ? where.get(latent) ?? -1 : latent < total ? latent : -1);
  const labels = new Map(Object.entries(about.labels ?? {}).map(([latent, label]) => [Number(latent), label]));
  const stars = new Set(marks.starred ?? []);
  const marked = [...new Set([...stars, ...labels.keys()])].map(rank).filter((place) => place >= 0);
  return { x, y, store, total, about, labels, stars, marked, rank, ids: (place) => (carried ? carried[place] : place), texts: new Map(),
    names: (about.columns ?? []).filter((name) => !name.startsWith("map_")), notes: about.notes ?? {} };
}

// The label or the strongest example of a latent, remembered.
export async function textOf(table, latent) {
  if (!table.texts.has(latent)) {
    const asked = rows(table.store, [latent]).then((found) => found[latent] ?? null, () => null);
    table.texts.set(latent, asked);
    if (table.texts.size > 4000) table.texts.delete(table.texts.keys().next().value);
  }
  return table.texts.get(latent);
}

function snippet(row) {
  if (!row || !(row.before || row.token || row.after)) return h("span", { class: "quiet" }, "no example");
  return h("span", { class: "map-sample" }, h("bdi", {}, [...row.before].slice(-40).join(""), h("b", {}, row.token), [...row.after].slice(0, 30).join("")));
}

// What is shown beside a point: number, label, example, the statistic that colours the map.
export function latentWords(table, latent, row, shown) {
  const label = row?.label ?? table.labels.get(latent);
  return [h("div", {}, h("b", {}, `Latent ${latent}`), table.stars.has(latent) ? " ★" : "", shown ? h("span", { class: "quiet" }, ` ${words(shown.name)} ${number(shown.value)}`) : ""),
    label ? h("div", { class: "map-label" }, h("bdi", {}, label)) : null, snippet(row)];
}

// The places that a search finds: { places, total, why }, null for no search.
export async function foundPlaces(table, query, signal) {
  const wanted = query.trim();
  if (!wanted) return null;
  const asNumber = /^\d{1,9}$/.test(wanted) ? table.rank(Number(wanted)) : -1;
  const told = can("search") ? await act("search", { store: table.store, kind: "any", query: wanted }, signal) : await carried(table, wanted);
  const places = told.latents.map(table.rank).filter((place) => place >= 0);
  if (asNumber >= 0) places.unshift(asNumber);
  return { places: [...new Set(places)], total: told.total, why: told.why };
}

async function carried(table, query) {
  const parts = query.toLowerCase().split(/\s+/);
  const texts = frozen ? await rows(table.store, []) : {};
  const all = Array.from({ length: table.x.length }, (_, place) => table.ids(place));
  const latents = all.filter((latent) => {
    const row = texts[latent] ?? {};
    const text = `${table.labels.get(latent) ?? ""} ${row.before ?? ""}${row.token ?? ""}${row.after ?? ""}`.toLowerCase();
    return parts.every((part) => text.includes(part));
  });
  return { latents, total: latents.length, why: "labels and examples that are here" };
}
