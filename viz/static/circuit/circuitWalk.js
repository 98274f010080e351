// Walking over the picture of a circuit: arrow keys along rows and columns, with Shift along the strongest edge.
import { own } from "./circuitPicture.js";

const ROW = (graph, id) => graph.nodes[id].y;

function nearest(graph, ids, x) {
  return ids.reduce((best, id) => (best === null || Math.abs(graph.nodes[id].x - x) < Math.abs(graph.nodes[best].x - x) ? id : best), null);
}

function sideways(graph, ids, id, step) {
  const row = ids.filter((other) => ROW(graph, other) === ROW(graph, id)).sort((a, b) => graph.nodes[a].x - graph.nodes[b].x);
  return row[row.indexOf(id) + step] ?? null;
}

function upDown(graph, ids, id, step) {
  const rows = [...new Set(ids.map((other) => ROW(graph, other)))].sort((a, b) => a - b);
  const next = rows[rows.indexOf(ROW(graph, id)) + step];
  return next === undefined ? null : nearest(graph, ids.filter((other) => ROW(graph, other) === next), graph.nodes[id].x);
}

// The node at the other end of the strongest edge that leads up (to what this node feeds) or down (to what feeds it).
function along(graph, ids, id, step) {
  const edges = own(graph, id).filter(([target, source]) => String(step > 0 ? source : target) === id);
  const best = edges.map(([target, source, weight]) => [String(step > 0 ? target : source), Math.abs(weight ?? 0)])
    .filter(([other]) => ids.includes(other)).sort((a, b) => b[1] - a[1])[0];
  return best ? best[0] : null;
}

// The id where a key leads from `id`, or null; `ids` are those that are shown.
export function walk(graph, ids, id, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return null;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (!step) return null;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") return sideways(graph, ids, id, step);
  return (event.shiftKey ? along : upDown)(graph, ids, id, step);
}
