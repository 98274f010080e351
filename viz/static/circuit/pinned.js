// The pinned part of a circuit: a small picture of pins and groups with their summed weights, and the list in which they are edited.
import { h, number, pressed, signed } from "../base/dom.js";
import { exports } from "../base/export.js";
import { clip } from "./circuitPicture.js";
import { addGroup, clear, dissolve, groups, items, pins, rename, takeGroups, toggle } from "./circuitState.js";
import { called, known, name, place } from "./node.js";
import { forbidden, joined } from "./supernodes.js";
import { ask, frozen } from "../base/transport.js";
import { set, state } from "../base/state.js";

const [BOX, PITCH, GAP, WIDEST, SPOKEN] = [38, 92, 16, 190, 18];   // px: height of a box, of a row, between boxes, widest box; edges whose weight is written

function level(graph, { nodes }) {
  const kinds = nodes.map((id) => graph.nodes[id]?.kind);
  if (kinds.includes("logit") || kinds.includes("direction")) return 1e6;
  return Math.max(...nodes.map((id) => graph.nodes[id]?.layer ?? -1));
}

function title(graph, item) {
  return item.label ?? called(graph, item.nodes[0]);
}

function under(graph, item) {
  if (item.nodes.length > 1) return `${item.nodes.length} nodes`;
  const one = graph.nodes[item.nodes[0]];
  return one ? `${one.said ? `${one.label} ` : ""}${place(graph, one).trim()}` || (graph.kinds[one.kind] ?? one.kind) : "";
}

// Boxes by layer, left to right as in the large picture, pushed apart where they would overlap.
function boxes(graph, list, width) {
  const levels = [...new Set(list.map((item) => level(graph, item)))].sort((a, b) => a - b);
  const total = graph.columns.reduce((sum, column) => sum + column.width, 0);
  const column = (one) => graph.columns.find(({ position }) => position === one?.position)?.x ?? total / 2;
  const middle = (item) => item.nodes.reduce((sum, id) => sum + (graph.nodes[id]?.x ?? column(graph.nodes[id])), 0) / item.nodes.length / total;
  const places = list.map(middle);
  const [low, high] = [Math.min(...places), Math.max(...places)];
  const spread = Math.min((high - low) / 0.25, 1) * 0.8;
  const ideal = (at) => 0.5 + (high > low ? (at - low) / (high - low) - 0.5 : 0) * spread;
  const placed = list.map((item, number_) => ({ item, number: number_, row: levels.indexOf(level(graph, item)), at: ideal(places[number_]),
    width: Math.min(Math.max(title(graph, item).length * 7.4 + 26, under(graph, item).length * 6.4 + 26, 64), WIDEST) }));
  const rows = levels.map((_, row) => placed.filter((box) => box.row === row).sort((a, b) => a.at - b.at));
  const whole = Math.max(width, ...rows.map((row) => row.reduce((sum, box) => sum + box.width + GAP, GAP)));
  for (const row of rows) {
    let left = GAP;
    for (const box of row) left = (box.x = Math.max(left, box.at * whole - box.width / 2)) + box.width + GAP;
    let right = whole - GAP;
    for (const box of [...row].reverse()) right = (box.x = Math.min(box.x, right - box.width)) - GAP;
  }
  for (const box of placed) box.y = (levels.length - 1 - box.row) * PITCH + 12;
  return { placed, width: whole, height: levels.length * PITCH - (PITCH - BOX) + 24 };
}

function edgesOf(placed, answer) {
  const most = Math.max(...answer.edges.map(([, , weight, share]) => Math.abs(share || weight)), 1e-12);
  const size = ([, , weight, share]) => Math.abs(share || weight) / most;
  const spoken = new Set([...answer.edges].sort((a, b) => size(b) - size(a)).slice(0, SPOKEN).filter((edge) => size(edge) > 0.03));
  return [...answer.edges].sort((a, b) => size(a) - size(b)).map((edge) => {
    const [to, from] = [placed[edge[0]], placed[edge[1]]];
    const [x0, y0, x1, y1] = [from.x + from.width / 2, from.y, to.x + to.width / 2, to.y + BOX];
    const middle = (y0 + y1) / 2;
    const along = 0.34 + 0.16 * (edge[1] % 3);   // where on the curve its weight stands, so that neighbours do not write over each other
    const [a, b, c, d] = [(1 - along) ** 3, 3 * (1 - along) ** 2 * along, 3 * (1 - along) * along ** 2, along ** 3];
    return h("g", { class: "pinned-edge", "data-testid": "pinned-edge", "data-target": edge[0], "data-source": edge[1] },
      h("title", {}, `sum of weights ${signed(edge[2])}; ${number(Math.abs(edge[3] ?? 0) * 100)} % of the target's row`),
      h("path", { d: `M${x0},${y0}C${x0},${middle} ${x1},${middle} ${x1},${y1}`, class: edge[2] > 0 ? "edge raises" : "edge lowers", "stroke-width": (0.8 + 5 * Math.sqrt(size(edge))).toFixed(2),
        style: { "--strength": (0.25 + 0.55 * Math.sqrt(size(edge))).toFixed(2) } }),
      spoken.has(edge) ? h("text", { x: (a + b) * x0 + (c + d) * x1, y: a * y0 + (b + c) * middle + d * y1 + 4, "text-anchor": "middle", class: "amount" }, signed(edge[2])) : null);
  });
}

function picture(graph, list, answer, width) {
  const { placed, width: whole, height } = boxes(graph, list, width);
  return h("svg", { width: whole, height, class: "pinned-picture", "data-testid": "pinned-picture", role: "group", "aria-label": `Pinned: ${list.length} items` }, edgesOf(placed, answer),
    placed.map(({ item, x, y, width: wide }) => {
      const kind = graph.nodes[item.nodes[0]]?.kind ?? "rest";
      const choose = () => item.nodes.length === 1 && set({ node: item.nodes[0] }, { push: true });
      return h("g", { class: `box ${kind}${item.nodes.length > 1 ? " many" : ""}${item.nodes.includes(state.node) ? " chosen" : ""}`, transform: `translate(${x},${y})`,
        "data-testid": "pinned-box", "aria-label": `${title(graph, item)}, ${under(graph, item)}`, ...pressed(choose) },
      item.nodes.length > 1 ? h("rect", { x: 4, y: -4, width: wide, height: BOX, rx: 7, class: "behind" }) : null,
      h("rect", { width: wide, height: BOX, rx: 7 }), h("rect", { width: 5, height: BOX, rx: 2.5, class: "stripe" }),
      h("text", { x: 14, y: 16, class: "name" }, clip(title(graph, item), wide - 22)), h("text", { x: 14, y: 30, class: "under" }, clip(under(graph, item), (wide - 22) * 1.15)), h("title", {}, title(graph, item)));
    }));
}

async function answerOf(graph, at, list) {
  if (frozen) return joined(graph, list);
  const answer = await ask(`graphs/${at}/pinned/${list.map(({ nodes }) => nodes.join("-")).join(",")}`);
  if (!answer) return joined(graph, list);
  known(graph, answer.nodes);
  return { ...answer, isExact: true };
}

function given(row) {
  if (!row?.some(Boolean)) return "";
  return row.length > 1 ? `${signed(row[0])} from what is pinned; ${signed(row[1])} and ${signed(row[2])} from all else` : `${signed(row[0])} from what is pinned`;
}

function editor(graph, list, answer, at) {
  const chosen = new Set();
  const label = h("input", { type: "text", maxlength: 80, placeholder: "name of the group", "aria-label": "Name of the new group", "data-testid": "group-name" });
  const told = h("p", { class: "quiet", role: "status", "data-testid": "pinned-told" }, answer.why || (answer.isExact ? "" : "Summed over the edges that this page carries; the live browser (unweave show) sums all."));
  const group = () => {
    const nodes = chosen.size ? [...chosen] : pins();
    const why = nodes.length < 2 ? "Choose at least two pins to group." : forbidden(graph, [{ nodes }]);
    if (why) told.textContent = why;
    else addGroup(label.value.trim() || `${called(graph, nodes[0])} and ${nodes.length - 1} more`, nodes);
  };
  const find = async () => {
    const found = await ask(`graphs/${at}/groups`);
    if (!found?.groups.length) told.textContent = found?.why || "No groups were found.";
    else takeGroups(found.groups);
  };
  const grouped = groups();
  const row = (nodes) => given(answer.rows[list.findIndex((item) => item.nodes.join() === nodes.join())]);
  return h("div", { class: "pinned-list" },
    h("div", { class: "tools" }, label, h("button", { type: "button", "data-testid": "group", onclick: group, title: "g" }, "Group"),
      h("button", { type: "button", "data-testid": "found-groups", onclick: find, title: "groups of features with like inputs and outputs" }, "Find groups"),
      graph.groups.length ? h("button", { type: "button", onclick: () => takeGroups(graph.groups) }, "Groups of the file") : null,
      grouped.length ? h("label", { class: "choice" }, h("input", { type: "checkbox", checked: state.joined === 1, "data-testid": "joined", onchange: (event) => set({ joined: event.target.checked ? 1 : 0 }) }), "groups as one") : null,
      h("button", { type: "button", "data-testid": "clear-pins", onclick: clear }, "Unpin all")), told,
    h("ul", { class: "plain" }, grouped.map((each, number_) => h("li", { class: "group", "data-testid": "group-row" },
      h("input", { type: "text", value: each.label, maxlength: 80, "aria-label": `Name of group ${number_ + 1}`, onchange: (event) => rename(number_, event.target.value.trim() || each.label) }),
      h("button", { type: "button", onclick: () => dissolve(number_), "aria-label": `Dissolve ${each.label}` }, "Dissolve"), h("small", {}, row(each.nodes)),
      h("ul", { class: "plain" }, each.nodes.map((id) => h("li", {}, name(graph, id), unpin(graph, id)))))),
    pins().map((id) => h("li", { class: "pin-row", "data-testid": "pin-row" }, h("input", { type: "checkbox", "aria-label": `Choose ${called(graph, id)}`, onchange: (event) => chosen[event.target.checked ? "add" : "delete"](id) }),
      name(graph, id), unpin(graph, id), h("small", {}, row([id]))))));
}

function unpin(graph, id) {
  return h("button", { type: "button", class: "unpin", "aria-label": `Unpin ${called(graph, id)}`, onclick: () => toggle(id) }, "×");
}

function scores(answer) {
  const named = Object.entries(answer.scores ?? {});
  return named.length ? h("p", { class: "quiet", "data-testid": "pinned-scores" }, "Of the graph with only these features: ", named.map(([key, value]) => `${key.replaceAll("_", " ")} ${number(value)}`).join(", ")) : null;
}

// Draw what is pinned into `box`.
export async function pinnedPart(box, graph, at) {
  const list = items();
  if (!list.length) {
    box.replaceChildren(h("h2", {}, "Pinned"), h("p", { class: "quiet" }, "Pin nodes (", h("kbd", {}, "p"), ", or click one with Shift) to see how they feed each other, and to group them. ",
      graph.groups.length ? h("button", { type: "button", onclick: () => takeGroups(graph.groups) }, "Groups of the file") : null, " ",
      h("button", { type: "button", "data-testid": "pin-path", onclick: () => set({ pins: [...new Set(graph.paths.slice(0, 4).flatMap(({ nodes }) => nodes))].join(".") }) }, "Pin the strongest paths")));
    return;
  }
  const answer = await answerOf(graph, at, list);
  const stage = h("div", { class: "stage" });
  const drawn = () => stage.replaceChildren(picture(graph, list, answer, Math.max(stage.clientWidth - 2, 280)));
  box.replaceChildren(h("div", { class: "head" }, h("h2", {}, "Pinned"), exports(`${graph.prompt || "circuit"} pinned`, { svg: () => stage.querySelector("svg"),
    table: () => ({ columns: ["target", "source", "sum of weights", "share of row"], rows: answer.edges.map(([to, from, ...rest]) => [title(graph, list[to]), title(graph, list[from]), ...rest]) }) })),
  scores(answer), h("div", { class: "pinned" }, stage, editor(graph, list, answer, at)));
  let width = -1;
  new ResizeObserver(() => {
    if (!stage.isConnected || stage.clientWidth === width) return;
    width = stage.clientWidth;
    drawn();
  }).observe(stage);
}
