// The graph of pinned items, computed here from the edges that the circuit's answer carries.
//
// The rules are those of circuits/simplify/supernodes.py. Weights between two items are plain sums, A[T, S] = Σ A[t, s]; beside
// them stands the published viewers' share, Σ_t m_t Σ_s A[t, s] / ext_t, where ext_t is the absolute sum of what t gets from outside
// its item and m_t = (ext_t / total_t), normalised over T. Members of one item are of one kind, and items keep a causal order.

// `items`: [{ nodes }]. → { edges: [[target item, source item, weight, share]], rows: [[sum]], scores: {}, why, isExact }
export function joined(graph, items) {
  const place = new Map(items.flatMap(({ nodes }, item) => nodes.map((id) => [id, item])));
  const why = forbidden(graph, items);
  if (why) return { edges: [], rows: [], scores: {}, why, isExact: true };
  const edges = graph.edges.filter(([target, source]) => place.has(target) && place.has(source));
  const factor = factors(graph, items, edges, place);
  const sums = new Map();
  for (const [target, source, weight] of edges) {
    const [to, from] = [place.get(target), place.get(source)];
    if (to === from) continue;
    const found = sums.get(`${to} ${from}`) ?? [to, from, 0, 0];
    found[2] += weight;
    found[3] += weight * factor.get(target);
    sums.set(`${to} ${from}`, found);
  }
  const list = [...sums.values()].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const rows = items.map((_, item) => [list.filter(([to]) => to === item).reduce((sum, [, , weight]) => sum + weight, 0)]);
  const isExact = graph.is_whole && [...place.keys()].every((id) => "x" in (graph.nodes[id] ?? {}));
  return { edges: list, rows, scores: {}, why: cycle(list, items.length) ? "These groups feed each other in a circle; take one apart." : "", isExact };
}

function factors(graph, items, edges, place) {
  const inside = new Map();
  for (const [target, source, weight] of edges)
    if (place.get(target) === place.get(source)) inside.set(target, (inside.get(target) ?? 0) + Math.abs(weight));
  const outside = (id) => Math.max((graph.nodes[id]?.row ?? 0) - (inside.get(id) ?? 0), 0);
  const share = (id) => outside(id) / Math.max(graph.nodes[id]?.row ?? 0, 1e-300);
  const found = new Map();
  for (const { nodes } of items) {
    const whole = Math.max(nodes.reduce((sum, id) => sum + share(id), 0), 1e-300);
    for (const id of nodes) found.set(id, share(id) / whole / Math.max(outside(id), 1e-300));
  }
  return found;
}

// Why these items cannot be, or "".
export function forbidden(graph, items) {
  const mixed = items.find(({ nodes }) => new Set(nodes.map((id) => graph.nodes[id]?.kind)).size > 1);
  if (!mixed) return "";
  const kinds = [...new Set(mixed.nodes.map((id) => graph.kinds[graph.nodes[id]?.kind] ?? "unknown"))].join(", ");
  return `The members of a group must be of one kind; these are ${kinds}.`;
}

function cycle(edges, count) {
  const waiting = Array.from({ length: count }, (_, item) => edges.filter(([to]) => to === item).length);
  const ready = [...waiting.keys()].filter((item) => !waiting[item]);
  let seen = 0;
  while (ready.length) {
    const item = ready.pop();
    seen += 1;
    for (const [to, from] of edges) if (from === item && --waiting[to] === 0) ready.push(to);
  }
  return seen < count;
}
