// Where the map is looked at from: a centre in the map's own units and pixels per unit, as text in the address.
import { set, state } from "../base/state.js";

const EDGE = 0.06;      // share of the picture left free around the whole map
const DEEPEST = 4000;   // times closer than the whole

// The middle and extent of all points.
export function boundsOf(x, y) {
  let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let place = 0; place < x.length; place += 1) {
    if (x[place] < left) left = x[place];
    if (x[place] > right) right = x[place];
    if (y[place] < low) low = y[place];
    if (y[place] > high) high = y[place];
  }
  if (!(right >= left)) return { x: 0, y: 0, width: 1, height: 1 };
  return { x: (left + right) / 2, y: (low + high) / 2, width: Math.max(right - left, 1e-6), height: Math.max(high - low, 1e-6) };
}

// A camera over points with these bounds; `size()` is [width, height] in CSS pixels, `moved()` is called after every change.
export function camera(bounds, size, moved) {
  const view = { x: bounds.x, y: bounds.y, zoom: 1 };

  function scale() {
    const [width, height] = size();
    return view.zoom * (1 - 2 * EDGE) * Math.max(Math.min(width / bounds.width, height / bounds.height), 1e-9);
  }

  // Points to pixels: [per unit, added to x, added to y]; y goes up on the map and down on the screen.
  function transform() {
    const [width, height] = size();
    const per = scale();
    return [per, width / 2 - view.x * per, height / 2 + view.y * per];
  }

  function read() {
    const [x, y, zoom] = state.mapview.split(",").map(Number);
    const known = [x, y, zoom].every(Number.isFinite) && zoom > 0;
    Object.assign(view, known ? { x, y, zoom: Math.min(Math.max(zoom, 0.5), DEEPEST) } : { x: bounds.x, y: bounds.y, zoom: 1 });
  }

  let waiting = 0;
  function write() {   // not at every frame: browsers limit how often an address may change
    clearTimeout(waiting);
    const text = view.zoom === 1 && view.x === bounds.x && view.y === bounds.y ? "" : [view.x, view.y, view.zoom].map((value) => Number(value.toPrecision(6))).join(",");
    waiting = setTimeout(() => state.pane === "map" && set({ mapview: text }), 200);
    moved();
  }

  function pan(dx, dy) {
    const per = scale();
    view.x -= dx / per;
    view.y += dy / per;
    write();
  }

  // Closer by a factor, with the point under (px, py) staying where it is.
  function zoomAt(factor, px, py) {
    const next = Math.min(Math.max(view.zoom * factor, 0.5), DEEPEST);
    const [width, height] = size();
    const [dx, dy] = [(px ?? width / 2) - width / 2, (py ?? height / 2) - height / 2];
    const before = scale();
    view.zoom = next;
    const after = scale();
    view.x += dx / before - dx / after;
    view.y -= dy / before - dy / after;
    write();
  }

  function goTo(x, y, zoom = view.zoom) {
    Object.assign(view, { x, y, zoom: Math.min(Math.max(zoom, 0.5), DEEPEST) });
    write();
  }

  read();
  return { view, read, pan, zoomAt, goTo, transform, whole: () => goTo(bounds.x, bounds.y, 1) };
}
