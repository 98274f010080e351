// What a reader makes of a circuit: pins, groups, thresholds. All of it stands in the URL; action `view` keeps it beside the graph.
import { declare, set, state } from "../base/state.js";

const FRESH = { node: null, pins: "", groups: "", keep: 100, strongest: 150, drawn: 120, joined: 1, node_find: "", qk: "" };

declare({ pins: "", groups: "", sheet: "paths", node_find: "", qk: "", qk_by: "" }, { keep: FRESH.keep, strongest: FRESH.strongest, drawn: FRESH.drawn, joined: FRESH.joined, ledger: null });

// The state of another circuit, on which nothing is pinned.
export function anew(graph) {
  return { ...FRESH, graph, ledger: null };
}

function numbers(text) {
  return [...new Set(text.split(".").filter((part) => /^\d{1,9}$/.test(part)).map(Number))];
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// Node numbers that are pinned one by one; a member of a group is not.
export function pins() {
  const inside = new Set(groups().flatMap(({ nodes }) => nodes));
  return numbers(state.pins).filter((id) => !inside.has(id));
}

// [{ label, nodes }]; a node is in the first group that names it.
export function groups() {
  const taken = new Set();
  return state.groups.split("|").filter(Boolean).map((part) => {
    const [label, list = ""] = part.split(":");
    const nodes = numbers(list).filter((id) => !taken.has(id));
    nodes.forEach((id) => taken.add(id));
    return { label: decoded(label), nodes };
  }).filter(({ nodes }) => nodes.length);
}

function written(list) {
  return list.filter(({ nodes }) => nodes.length).map(({ label, nodes }) => `${encodeURIComponent(label.toWellFormed())}:${nodes.join(".")}`).join("|");
}

// Every node that is pinned, alone or in a group.
export function pinned() {
  return new Set([...pins(), ...groups().flatMap(({ nodes }) => nodes)]);
}

// What the pinned picture shows: groups, then single pins; each { label, nodes }, the label of a pin null.
export function items() {
  const alone = (id) => ({ label: null, nodes: [id] });
  return state.joined ? [...groups(), ...pins().map(alone)] : [...pinned()].map(alone);
}

// Pin a node, or take it from the pins and from its group.
export function toggle(id) {
  if (!pinned().has(id)) return set({ pins: [...pins(), id].join(".") });
  return set({ pins: pins().filter((other) => other !== id).join("."),
    groups: written(groups().map(({ label, nodes }) => ({ label, nodes: nodes.filter((other) => other !== id) }))) });
}

export function addGroup(label, nodes) {
  const rest = groups().map((group) => ({ ...group, nodes: group.nodes.filter((id) => !nodes.includes(id)) }));
  set({ groups: written([...rest, { label, nodes }]), pins: pins().filter((id) => !nodes.includes(id)).join(".") });
}

export function rename(place, label) {
  set({ groups: written(groups().map((group, other) => (other === place ? { ...group, label } : group))) });
}

// A group's nodes become single pins again.
export function dissolve(place) {
  const list = groups();
  if (place >= list.length) return;   // pressed twice, before the first was drawn
  set({ groups: written(list.filter((_, other) => other !== place)), pins: [...new Set([...pins(), ...list[place].nodes])].join(".") });
}

export function takeGroups(list) {
  const inside = new Set(list.flatMap(([, ...nodes]) => nodes));
  set({ groups: written(list.map(([label, ...nodes]) => ({ label, nodes }))), pins: pins().filter((id) => !inside.has(id)).join(".") });
}

export function clear() {
  set({ pins: "", groups: "" });
}

// The view as it is saved, and a saved one put in place.
export function view() {
  return { pins: pins(), groups: groups().map(({ label, nodes }) => [label, ...nodes]), keep: state.keep, strongest: state.strongest, drawn: state.drawn };
}

export function isUntouched() {
  return ["pins", "groups", "keep", "strongest", "drawn"].every((name) => state[name] === FRESH[name]);
}

export function show(saved) {
  const changes = { pins: (saved.pins ?? []).join("."), groups: written((saved.groups ?? []).map(([label, ...nodes]) => ({ label, nodes }))) };
  for (const name of ["keep", "strongest", "drawn"]) if (Number.isInteger(saved[name])) changes[name] = saved[name];
  set(changes);
}
