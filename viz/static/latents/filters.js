// Filters of the list as text that stands in the address: `density:1e-4..1e-2;alive;tag:greeting`.
//
//   name:low..high   a statistic within a range, either end may be missing
//   alive, dense, …  a rule of the store (answers/warnings.py), itself such text
//   among:1,5,9      chosen ones, e.g. on the map
//   starred, labelled, unlabelled, noted, tag:name   what people said
import { number, words } from "../base/dom.js";
import { ask, column } from "../base/transport.js";

const SAID = { starred: "starred", labelled: "labelled", unlabelled: "unlabelled", noted: "with a note" };

export function readFilters(text) {
  return text.split(";").filter(Boolean).map((part) => {
    const [name, rest] = [part.split(":")[0], part.slice(part.indexOf(":") + 1)];
    if (!part.includes(":")) return { word: part };
    if (name === "tag") return { tag: decoded(rest) };
    if (name === "among") return { among: rest.split(",").filter((latent) => /^\d{1,9}$/.test(latent)).map(Number) };
    const [low, high] = rest.split("..").map((end) => (end.trim() === "" ? null : Number(end)));
    return { name, low: Number.isNaN(low) ? null : low ?? null, high: Number.isNaN(high) ? null : high ?? null };
  });
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function writeFilters(filters) {
  return filters.map(({ word, tag, among, name, low, high }) => word ?? (among ? `among:${among.join(",")}` : name === undefined ? `tag:${encodeURIComponent(tag.toWellFormed())}` : `${name}:${low ?? ""}..${high ?? ""}`)).join(";");
}

export function filterText({ word, tag, among, name, low, high }) {
  if (among) return `${number(among.length)} chosen`;
  if (word !== undefined) return SAID[word] ?? word;
  if (name === undefined) return `tag ${tag}`;
  if (low === null || high === null) return `${words(name)} ${low === null ? `≤ ${number(high)}` : `≥ ${number(low)}`}`;
  return `${words(name)} ${number(low)} to ${number(high)}`;
}

// What a filter may be of a store: [value of an option, its text], by group.
export function filterChoices(table) {
  return [["Statistics", table.names.map((name) => [`${name}:`, words(name)])],
    ["Rules", Object.keys(table.about.rules ?? {}).map((name) => [name, name])],
    ["Said of it", Object.entries(SAID)],
    ["Tags", Object.entries(table.about.marked?.tags ?? {}).map(([tag, count]) => [`tag:${encodeURIComponent(tag.toWellFormed())}`, `${tag} (${count})`])]]
    .filter(([, options]) => options.length);
}

// 1 for each place that passes every filter; null where there is none.
export async function passing(table, filters) {
  if (!filters.length) return null;
  const mask = new Uint8Array(table.latents.length).fill(1);
  for (const filter of filters) await apply(table, filter, mask);
  return mask;
}

async function apply(table, filter, mask) {
  const rule = filter.word !== undefined && Object.hasOwn(table.about.rules ?? {}, filter.word) ? table.about.rules[filter.word] : null;
  if (rule) for (const part of readFilters(rule)) await apply(table, part, mask);
  else if (filter.among) chosen(table, new Set(filter.among), mask);
  else if (filter.name !== undefined) within(table.names.includes(filter.name) ? await column(table.store, filter.name) : null, filter, mask);
  else said(table, filter, (await ask(`stores/${table.store}/marks`)) ?? {}, mask);
}

function within(values, { low, high }, mask) {
  if (!values) return mask.fill(0);   // a statistic that this store does not have
  const [from, to] = [Math.fround(low ?? -Infinity), Math.fround(high ?? Infinity)];
  for (let place = 0; place < mask.length; place += 1) if (!(values[place] >= from && values[place] <= to)) mask[place] = 0;
  return mask;
}

function chosen(table, those, mask) {
  for (let place = 0; place < mask.length; place += 1) if (!those.has(table.latents[place])) mask[place] = 0;
}

function said(table, { word, tag }, marks, mask) {
  const lists = { starred: marks.starred, labelled: marks.labelled, unlabelled: marks.labelled, noted: marks.noted };
  const those = new Set((tag === undefined ? (Object.hasOwn(lists, word) ? lists[word] : null) : Object.hasOwn(marks.tags ?? {}, tag) ? marks.tags[tag] : null) ?? []);
  for (let place = 0; place < mask.length; place += 1) if (those.has(table.latents[place]) === (word === "unlabelled")) mask[place] = 0;
}
