// Every row of a Diff as a point, what is found in colour. Points of one colour are one path, so that a hundred thousand can be drawn.
import { choice, h, number, refill, words } from "../base/dom.js";
import { exports } from "../base/export.js";
import { classOf, isFound, noteOf, tokensOf, valueOf } from "./diffData.js";
import { declare, set, state } from "../base/state.js";

declare({ diff_x: "", diff_y: "" });
const [LEFT, RIGHT, TOP, BOTTOM] = [52, 10, 10, 40];
const NEAR = 14;      // px from a point that still touch it
const FAR = 0.01;     // of the values at either end that may lie beyond the picture, drawn on its edge
const KINDS = { rest: "not found", spurious: "looks exclusive, is not", shared: "found: shared", "only-a": "found: only A", "only-b": "found: only B", more: "found: more in B", less: "found: less in B" };

function kindOf(table, at) {
  const name = classOf(table, at);
  if (name === "shrunk" || name === "decoupled") return "spurious";
  if (!isFound(table, at)) return "rest";
  if (name !== null) return { __proto__: null, "only A": "only-a", "only B": "only-b" }[name] ?? "shared";
  return table.values.score[at] < 0 ? "less" : "more";
}

// The ends of an axis: those of most values, and of all that is found unless that lies far off.
function ends(table, name) {
  if (name === "norm_difference") return [0, 1];
  const known = Array.from(table.values[name]).filter(Number.isFinite).sort((a, b) => a - b);
  if (!known.length) return [0, 1];
  const cut = Math.floor(known.length * FAR);
  const [low, high] = [known[cut], known[known.length - 1 - cut]];
  const pad = (high - low || Math.abs(high) || 1) * 0.04;
  return [low - pad, high + pad];
}

export function axes(table) {
  const { columns, drawn } = table.about;
  const known = (name, otherwise) => (columns.includes(name) ? name : otherwise);
  return { x: known(state.diff_x, drawn[0] ?? columns[0]), y: known(state.diff_y, drawn[1] ?? drawn[0] ?? columns[0]) };
}

// Five round numbers or so between two ends.
function ticks([low, high]) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) found.push(Math.abs(tick) < step / 1e6 ? 0 : tick);
  return found;
}

// Where the points lie in a picture of some size: px by place, NaN where a number is missing, and how many were drawn on the edge.
function layout(table, { x, y }, wide, tall) {
  const [xEnds, yEnds] = [ends(table, x), ends(table, y)];
  const scale = ([low, high], from, to) => (value) => from + ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (to - from);
  const [right, up] = [scale(xEnds, LEFT, wide - RIGHT), scale(yEnds, tall - BOTTOM, TOP)];
  const [px, py] = [new Float32Array(table.count), new Float32Array(table.count)];
  let beyond = 0;
  for (let at = 0; at < table.count; at += 1) {
    const [a, b] = [table.values[x][at], table.values[y][at]];
    [px[at], py[at]] = Number.isFinite(a) && Number.isFinite(b) ? [right(a), up(b)] : [NaN, NaN];
    if (Number.isFinite(px[at]) && (a < xEnds[0] || a > xEnds[1] || b < yEnds[0] || b > yEnds[1])) beyond += 1;
  }
  return { px, py, right, up, xEnds, yEnds, beyond, wide, tall };
}

function frame(table, { x, y }, { right, up, xEnds, yEnds, wide, tall }) {
  const lines = (name, [low, high]) => [...(Object.hasOwn(table.about.lines, name) ? table.about.lines[name] : []), 0].filter((value) => value > low && value < high);
  const mid = (TOP + tall - BOTTOM) / 2;
  return [h("g", { class: "grid-lines" }, ticks(xEnds).map((tick) => [h("line", { x1: right(tick), x2: right(tick), y1: tall - BOTTOM, y2: tall - BOTTOM + 4 }), h("text", { x: right(tick), y: tall - BOTTOM + 16, "text-anchor": "middle" }, number(Number(tick.toPrecision(6))))]),
    ticks(yEnds).map((tick) => [h("line", { x1: LEFT - 4, x2: LEFT, y1: up(tick), y2: up(tick) }), h("text", { x: LEFT - 7, y: up(tick) + 4, "text-anchor": "end" }, number(Number(tick.toPrecision(6))))]),
    h("line", { x1: LEFT, x2: wide - RIGHT, y1: tall - BOTTOM, y2: tall - BOTTOM }), h("line", { x1: LEFT, x2: LEFT, y1: TOP, y2: tall - BOTTOM })),
  h("g", { class: "marks" }, lines(x, xEnds).map((value) => h("line", { x1: right(value), x2: right(value), y1: TOP, y2: tall - BOTTOM })), lines(y, yEnds).map((value) => h("line", { x1: LEFT, x2: wide - RIGHT, y1: up(value), y2: up(value) }))),
  h("text", { x: (LEFT + wide - RIGHT) / 2, y: tall - 6, "text-anchor": "middle" }, words(x)), h("text", { x: 12, y: mid, "text-anchor": "middle", transform: `rotate(-90 12 ${mid})` }, words(y))];
}

// A path of dots for each kind; what would be drawn upon itself is drawn once.
function dots(kinds, { px, py }) {
  const parts = new Map(Object.keys(KINDS).map((kind) => [kind, new Set()]));
  kinds.forEach((kind, at) => { if (!Number.isNaN(px[at])) parts.get(kind).add(`M${px[at].toFixed(1)} ${py[at].toFixed(1)}h0`); });
  return [...parts].filter(([, places]) => places.size).map(([kind, places]) => h("path", { class: `diff-dots ${kind}`, "stroke-linecap": "round", d: [...places].join("") }));
}

function called(table, at) {
  const tokens = tokensOf(table, at);
  return `${table.isWords ? "" : `latent ${table.id(at)} `}${tokens.length ? `“${tokens.slice(0, 5).join(" ")}”` : ""}`.trim() || `row ${table.id(at)}`;
}

// The figure: { element, mark() }; `step(by)` moves along the table.
export function plotOf(table, step) {
  const kinds = Array.from({ length: table.count }, (_, at) => kindOf(table, at));
  const counts = Object.entries(KINDS).map(([kind, text]) => [kind, text, kinds.filter((each) => each === kind).length]).filter(([, , count]) => count);
  const [picture, told, legend] = [h("div", { class: "diff-plot", tabindex: 0, role: "application", "aria-roledescription": "chart", "data-testid": "diff-plot" }), h("p", { class: "quiet diff-told", "data-testid": "diff-told" }), h("figcaption", {})];
  const meant = h("p", { class: "quiet diff-axes", "data-testid": "diff-axes" });
  const ring = h("circle", { class: "diff-ring", r: 7 });
  const over = h("circle", { class: "diff-ring over", r: 6 });
  const made = { layout: null, svg: null, element: null };
  const place = (circle, at) => {
    const isThere = at >= 0 && made.layout && !Number.isNaN(made.layout.px[at]);
    circle.setAttribute("visibility", isThere ? "visible" : "hidden");
    if (isThere) for (const [name, values] of [["cx", made.layout.px], ["cy", made.layout.py]]) circle.setAttribute(name, values[at]);
  };
  const say = (at) => {
    const { x, y } = axes(table);
    told.textContent = at < 0 ? "Point at a dot, or press it to see all of its numbers." : "";
    if (at >= 0) refill(told, h("bdi", {}, called(table, at)), `: ${words(x)} ${number(valueOf(table, x, at))}, ${words(y)} ${number(valueOf(table, y, at))}`, isFound(table, at) ? ", found" : "");
  };
  const nearest = (event) => {
    if (!made.svg) return -1;
    const edge = made.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - edge.left, event.clientY - edge.top];
    let [best, least] = [-1, NEAR ** 2];
    for (let at = 0; at < table.count; at += 1) {
      const far = (made.layout.px[at] - x) ** 2 + (made.layout.py[at] - y) ** 2 - (kinds[at] === "rest" ? 0 : 4);   // what is found lies on top
      if (far < least) [best, least] = [at, far];
    }
    return best;
  };
  made.mark = () => { place(ring, table.at(state.diff_row)); say(table.at(state.diff_row)); };
  made.draw = (width = picture.clientWidth) => {
    const [wide, tall] = [Math.max(Math.round(width), 240), width < 500 ? 280 : 340];
    const axis = axes(table);
    made.layout = layout(table, axis, wide, tall);
    const found = kinds.filter((kind) => kind !== "rest" && kind !== "spurious").length;
    made.svg = h("svg", { viewBox: `0 0 ${wide} ${tall}`, width: wide, height: tall, class: "diff-picture", role: "img", "data-testid": "diff-picture", "aria-label": `${words(axis.y)} against ${words(axis.x)} of ${number(table.count)} rows, ${number(found)} of them found` },
      frame(table, axis, made.layout), dots(kinds, made.layout), over, ring);
    picture.setAttribute("aria-label", `${words(axis.y)} against ${words(axis.x)}; arrow keys go along the table`);
    place(over, -1);
    picture.replaceChildren(made.svg);
    refill(legend, counts.map(([kind, text, count]) => h("span", {}, h("i", { class: `dot ${kind}`, "aria-hidden": "true" }), `${text}: ${number(count)}`)), made.layout.beyond ? h("span", {}, `${number(made.layout.beyond)} beyond the picture, drawn on its edge`) : null);
    refill(meant, [...new Set([axis.x, axis.y])].filter((name) => noteOf(table, name)).map((name) => h("span", {}, h("b", {}, words(name)), `: ${noteOf(table, name)}. `)));
    made.mark();
  };
  picture.addEventListener("pointermove", (event) => { const at = nearest(event); place(over, at); say(at >= 0 ? at : table.at(state.diff_row)); });
  picture.addEventListener("pointerleave", () => { place(over, -1); made.mark(); });
  picture.addEventListener("click", (event) => { const at = nearest(event); if (at >= 0) set({ diff_row: table.id(at) }, { push: true }); });
  picture.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    step(by);
  });
  let known = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (!contentRect.width || Math.abs(contentRect.width - known) < 2) return;
    known = contentRect.width;
    made.draw(known);
  }).observe(picture);
  const names = table.about.columns.filter((name) => name !== "is_found");
  const axis = (label, key) => choice(label, names.map(words), names.indexOf(axes(table)[key]), (at) => set({ [`diff_${key}`]: names[at] }));
  const out = () => ({ columns: [table.isWords ? "row" : "latent", axes(table).x, axes(table).y, "found"], rows: Array.from(kinds, (_, at) => [table.id(at), valueOf(table, axes(table).x, at), valueOf(table, axes(table).y, at), isFound(table, at)]) });
  made.element = h("figure", { class: "diff-figure" }, h("div", { class: "head" }, h("h2", {}, table.isWords ? "Every token" : "Every latent"),
    h("div", { class: "tools" }, axis("x", "x"), axis("y", "y"), exports(`${table.about.name} plot`, { svg: () => made.svg, table: out }))), picture, legend, meant, told);
  return made;
}
