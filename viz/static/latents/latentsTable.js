// The latents of a store as a table: its columns, what is said of them, and the places of its rows in the order that the state asks for.
import { kept, order } from "../base/order.js";
import { passing, readFilters } from "./filters.js";
import { ask, column, frozen, rows } from "../base/transport.js";
import { declare, state } from "../base/state.js";

const SHOWN = ["density", "max_value", "token_entropy"];
const NATURAL = "-density";   // the order without a search; with one, what was found comes best first
declare({ query: "", find: "any", sort: "", filter: "", intervals: "top", bins: "log" }, { example: null });

// What the pane shows now: table, found, places, and the functions that draw it.
export const pane = {};

export const sortName = () => (state.sort || (pane.found ? "" : NATURAL)).replace(/^-/, "");
export const sortsDown = () => (state.sort || NATURAL).startsWith("-");

// The statistics that the list shows: the usual ones, and the one that it is sorted by.
export function shownColumns(table) {
  const usual = SHOWN.filter((name) => table.names.includes(name));
  const name = sortName();
  return !table.names.includes(name) || usual.includes(name) ? usual : [...usual.slice(0, -1), name];
}

export async function opened(store, index) {
  const table = { store, total: index.stores[store].latents, name: index.stores[store].name, columns: {}, orders: new Map(), labels: new Map(), stars: new Map() };
  table.about = await ask(`stores/${store}`);
  table.rows = frozen ? await rows(store, []) : {};
  table.names = table.about.columns;
  table.latents = table.about.latents ? Uint32Array.from(table.about.latents) : Uint32Array.from({ length: table.total }, (_, latent) => latent);
  const places = table.about.latents ? new Map(table.about.latents.map((latent, place) => [latent, place])) : null;
  table.placeOf = (latent) => (places ? places.get(latent) : latent < table.total ? latent : undefined);
  table.labelOf = (latent) => (table.labels.has(latent) ? table.labels.get(latent) : table.rows[latent]?.label ?? table.about.labels?.[latent] ?? null);
  table.starOf = (latent) => (table.stars.has(latent) ? table.stars.get(latent) : table.rows[latent]?.star ?? false);
  await needed(table, shownColumns(table));
  return table;
}

async function needed(table, names) {
  await Promise.all(names.filter((name) => !table.columns[name]).map(async (name) => { table.columns[name] = await column(table.store, name); }));
}

// The places of the list in the order that the state asks for.
export async function arranged(table) {
  const [name, down, found] = [sortName(), sortsDown(), pane.found];
  await needed(table, shownColumns(table));
  const mask = await passing(table, readFilters(state.filter));
  performance.clearMeasures("unweave-sort");
  const start = performance.now();
  let places;
  if (found && !state.sort) places = kept(Uint32Array.from(found.latents.map(table.placeOf).filter((place) => place !== undefined)), mask);
  else {
    const whole = `${name} ${down}`;
    if (!table.orders.has(whole)) table.orders.set(whole, order(table.columns[name] ?? Float32Array.from(table.latents), down));
    places = kept(table.orders.get(whole), found ? within(table, found, mask) : mask);
  }
  performance.measure("unweave-sort", { start, end: performance.now() });
  return places;
}

function within(table, found, mask) {
  const inside = new Uint8Array(table.latents.length);
  for (const latent of found.latents) {
    const place = table.placeOf(latent);
    if (place !== undefined && (!mask || mask[place])) inside[place] = 1;
  }
  return inside;
}
