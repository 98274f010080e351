// A Diff as the pane works on it: its columns, which of its rows pass what was asked for, and their order.
import { ask, floats } from "../base/transport.js";
import { declare, state } from "../base/state.js";
import { readFilters } from "../latents/filters.js";

declare({ diff_show: "all", diff_class: "", diff_query: "", diff_filter: "", diff_sort: "" }, { diff: 0, diff_row: null });
export const SHOWS = { all: "all", found: "found", more: "more in B", less: "less in B" };
const RISING = new Set(["p", "q", "cosine", "row", "position", "token"]);   // columns that are sorted upwards first

// Everything of one Diff: { place, about, values: by name, count, id(at), at(row), labels, isWords }; null where there is none.
export async function opened(place) {
  const about = await ask(`diffs/${place}`);
  if (!about) return null;
  const parts = await Promise.all(about.columns.map((name) => floats(`diffs/${place}/columns/${name}`)));
  const values = Object.assign(Object.create(null), Object.fromEntries(about.columns.map((name, at) => [name, parts[at] ?? new Float32Array(0)])));
  const where = about.rows ? new Map(about.rows.map((row, at) => [row, at])) : null;
  const store = about.stores.length ? about.stores[0] : null;
  const known = store === null ? null : await ask(`stores/${store}`).catch(() => null);
  return { place, about, values, store, labels: known?.labels ?? {}, count: about.rows ? about.rows.length : about.total, isWords: about.method === "lens",
    id: (at) => (about.rows ? about.rows[at] : at), at: (row) => (row === null ? -1 : where ? where.get(row) ?? -1 : row < about.total ? row : -1), ranks: ranked(values, about) };
}

// Places by rank: what is found first, then by the size of the score.
function ranked({ score, is_found: isFound }, { rows, total }) {
  const size = (at) => (Number.isFinite(score[at]) ? Math.abs(score[at]) : -1);
  return Array.from({ length: rows ? rows.length : total }, (_, at) => at).sort((a, b) => (isFound[b] - isFound[a]) || (size(b) - size(a)) || (a - b));
}

export function isFound(table, at) {
  return table.values.is_found[at] === 1;
}

// The name of a latent's class; null where a Diff has none.
export function classOf(table, at) {
  const { classes } = table.about;
  return classes.length ? classes[table.values.class[at]] ?? "–" : null;
}

// What a column means; null where nothing is said of it.
export function noteOf(table, name) {
  const notes = table.about.column_notes;
  return Object.hasOwn(notes, name) ? notes[name] : null;
}

export function tokensOf(table, at) {
  return table.about.tokens[table.id(at)] ?? [];
}

export function valueOf(table, name, at) {
  const value = name === "row" ? table.id(at) : table.values[name]?.[at];
  return value === undefined || !Number.isFinite(value) ? null : value;
}

export function sortColumn(table) {
  const name = state.diff_sort.replace(/^-/, "");
  return name === "row" || table.about.columns.includes(name) ? name : "";
}

// What a press on a heading asks for: the order that says more first, then the other way, then the rank again.
export function nextSort(table, name) {
  const first = RISING.has(name) ? name : `-${name}`;
  const other = RISING.has(name) ? `-${name}` : name;
  return state.diff_sort === first ? other : state.diff_sort === other ? "" : first;
}

function passes(table) {
  const { about, values, labels } = table;
  const query = state.diff_query.trim().toLowerCase();
  const wanted = about.classes.indexOf(state.diff_class);
  const ranges = readFilters(state.diff_filter).filter(({ name }) => name !== undefined).map(({ name, low, high }) => [values[name] ?? [], Math.fround(low ?? -Infinity), Math.fround(high ?? Infinity)]);
  const shows = { __proto__: null, found: (at) => values.is_found[at] === 1, more: (at) => values.score[at] > 0, less: (at) => values.score[at] < 0 }[state.diff_show] ?? (() => true);
  const says = (at) => `${table.id(at)} ${labels[table.id(at)] ?? ""} ${tokensOf(table, at).join(" ").replaceAll("␣", " ")}`.toLowerCase();
  return (at) => shows(at) && (wanted < 0 || values.class[at] === wanted) && ranges.every(([own, low, high]) => own[at] >= low && own[at] <= high)
    && (!query || (/^\d{1,9}$/.test(query) && !table.isWords ? table.id(at) === Number(query) : says(at).includes(query)));
}

// The places that are shown, in order; what has no number comes last either way.
export function arranged(table) {
  const found = table.ranks.filter(passes(table));
  const name = sortColumn(table);
  if (!name) return found;
  const sign = state.diff_sort.startsWith("-") ? -1 : 1;
  return found.sort((a, b) => {
    const [x, y] = [valueOf(table, name, a), valueOf(table, name, b)];
    if (x === null || y === null) return Number(x === null) - Number(y === null);
    return sign * (x - y);
  });
}
