// The map's picture: two canvases, one of points and one over it, and what pointer, wheel and fingers do to them.
import { h } from "../base/dom.js";
import { boundsOf, camera } from "./mapView.js";
import { FEW, drawOver, inside } from "./mapOver.js";
import { painter, pointLook } from "./mapPaint.js";
import { rgb } from "./mapColour.js";
import { colour } from "../base/plots.js";

const NEAR = 8;       // px from a point that still touch it
const STILL = 4;      // px that a press may move and still be a click
const DIMMED = 0.16;  // how opaque the others are while some are found

// `table` is { x, y, ids, stars, labels, marked }; `told` is { hover(place | null), pick(place), selected(places) }.
export function mapCanvas(table, told) {
  const [base, over] = [h("canvas", { class: "map-points", "aria-hidden": "true" }), h("canvas", { class: "map-over", "aria-hidden": "true" })];
  const box = h("div", { class: "map-box", tabindex: 0, role: "application", "aria-roledescription": "map", "aria-label": "Map of latents", "aria-describedby": "map-how", "data-testid": "map-box" }, base, over);
  const draw = painter(base);
  let [width, height] = [1, 1];
  const look = { colours: new Uint32Array(table.x.length), order: new Uint32Array(0), found: null, chosen: null, focus: null, selecting: false };
  const gesture = { pointers: new Map(), from: null, moved: 0, path: [], apart: 0 };
  const lens = camera(boundsOf(table.x, table.y), () => [width, height], () => frame());
  let due = false;

  function frame() {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; if (box.isConnected && width > 1) paint(); });
  }

  function at(place) {
    const [per, right, down] = lens.transform();
    return [table.x[place] * per + right, down - table.y[place] * per];
  }

  function seen(place) {
    const [x, y] = at(place);
    return x >= 0 && y >= 0 && x <= width && y <= height;
  }

  function shape() {
    return pointLook(table.x.length, width, height, lens.view.zoom);
  }

  function paint() {
    const start = performance.now();
    const { radius, alpha } = shape();
    const layers = [{ order: look.order, colours: look.colours, radius, alpha: look.found ? DIMMED : alpha }];
    if (look.found) layers.push({ order: look.found, colours: look.colours, radius: radius + 1, alpha: 1 });
    draw.paint(rgb(colour("--paper")), table, layers, lens.transform());
    paintOver(radius);
    box.dataset.frame = (performance.now() - start).toFixed(1);
    box.dataset.drawn = String(look.order.length);
  }

  function paintOver(radius = shape().radius) {
    const marks = [look.focus === null ? null : { place: look.focus, kind: "focus" }, look.chosen === null ? null : { place: look.chosen, kind: "chosen" }].filter(Boolean);
    const inSight = lens.view.zoom > 1.5 || table.x.length <= FEW ? sight(FEW + 1) : [];
    drawOver(over, draw.ratio, { width, height, at, radius, marks, path: gesture.path,
      naming: { marked: table.marked, few: inSight.length <= FEW ? inSight : [], seen, stars: table.stars, labels: table.labels, ids: table.ids } });
  }

  // The places in sight, nearest to the middle first; the first `most` that are found where there are more.
  function sight(most = Infinity) {
    const places = [];
    for (let place = 0; place < table.x.length && places.length < most; place += 1) if (seen(place)) places.push(place);
    const off = (place) => { const [x, y] = at(place); return (x - width / 2) ** 2 + (y - height / 2) ** 2; };
    return places.length > 20_000 ? places : places.map((place) => [off(place), place]).sort((a, b) => a[0] - b[0]).map(([, place]) => place);
  }

  function nearest(px, py) {
    const [per, right, down] = lens.transform();
    let [best, least] = [null, (NEAR + shape().radius) ** 2];
    const consider = (place) => {
      const far = (table.x[place] * per + right - px) ** 2 + (down - table.y[place] * per - py) ** 2;
      if (far < least) [best, least] = [place, far];
    };
    if (look.found) look.found.forEach(consider);
    if (best === null) for (let place = 0; place < table.x.length; place += 1) consider(place);
    return best;
  }

  function spot(event) {
    const edge = box.getBoundingClientRect();
    return [event.clientX - edge.left, event.clientY - edge.top];
  }

  function focusOn(place) {
    if (place === look.focus) return;
    look.focus = place;
    paintOver();
    told.hover(place);
  }

  function spread() {
    const [[ax, ay], [bx, by]] = [...gesture.pointers.values()];
    return { apart: Math.hypot(ax - bx, ay - by), middle: [(ax + bx) / 2, (ay + by) / 2] };
  }

  over.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    over.setPointerCapture(event.pointerId);
    gesture.pointers.set(event.pointerId, spot(event));
    if (gesture.pointers.size === 1) Object.assign(gesture, { from: spot(event), moved: 0, path: look.selecting || event.shiftKey ? [spot(event)] : [] });
    if (gesture.pointers.size === 2) Object.assign(gesture, { apart: spread().apart, path: [] });
  });

  over.addEventListener("pointermove", (event) => {
    const [x, y] = spot(event);
    if (!gesture.pointers.has(event.pointerId)) return focusOn(nearest(x, y));
    const [fromX, fromY] = gesture.pointers.get(event.pointerId);
    gesture.moved = Math.max(gesture.moved, Math.hypot(x - gesture.from[0], y - gesture.from[1]));
    const before = gesture.pointers.size === 2 ? spread().middle : null;
    gesture.pointers.set(event.pointerId, [x, y]);
    if (gesture.pointers.size === 2) {
      const { apart, middle } = spread();
      lens.pan(middle[0] - before[0], middle[1] - before[1]);
      lens.zoomAt(apart / Math.max(gesture.apart, 1), ...middle);
      gesture.apart = apart;
    } else if (gesture.path.length) {
      gesture.path.push([x, y]);
      paintOver();
    } else if (gesture.moved > STILL) lens.pan(x - fromX, y - fromY);
    return undefined;
  });

  function lift(event) {
    if (!gesture.pointers.delete(event.pointerId) || gesture.pointers.size) return;
    const [path, isClick] = [gesture.path, gesture.moved <= STILL];
    gesture.path = [];
    if (event.type === "pointercancel") return;
    if (isClick) {
      const place = nearest(...gesture.from);
      if (place !== null) told.pick(place);
    } else if (path.length > 2) told.selected(inside(path, table, lens.transform()));
    paintOver();
  }
  over.addEventListener("pointerup", lift);
  over.addEventListener("pointercancel", lift);
  over.addEventListener("pointerleave", () => gesture.pointers.size || focusOn(null));
  over.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1);
    lens.zoomAt(Math.exp(-Math.min(Math.max(pixels, -300), 300) * (event.ctrlKey ? 0.01 : 0.0022)), ...spot(event));
  }, { passive: false });

  new ResizeObserver(() => {
    const [wide, tall] = [box.clientWidth, box.clientHeight];
    if (!wide || !tall || (wide === width && tall === height)) return;
    [width, height] = [wide, tall];
    draw.resize(width, height);
    [over.width, over.height] = [base.width, base.height];
    paint();
  }).observe(box);

  return { box, base, over, lens, look, frame, paintOver, at, seen, sight, focusOn };
}
