// Colours of the map: a scale for any statistic, logarithmic where the numbers ask for it, and its legend.
import { h, number, words } from "../base/dom.js";
import { colour } from "../base/plots.js";
import { packed } from "./mapPaint.js";

// Low to high; both end far from the paper that they lie on, the middle tells hues apart for most kinds of colour blindness.
const SCALES = {
  light: ["#b4bfc9", "#7fb0c4", "#3f8fb5", "#3163a5", "#4a3590", "#3a0b52"],
  dark: ["#46525f", "#2f6f94", "#2a9d9a", "#6cc37c", "#c5dc5c", "#fff3a8"],
};
const STEPS = 256;

export function rgb(text) {
  if (text.startsWith("#")) return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  return (text.match(/[\d.]+/g) ?? [0, 0, 0]).slice(0, 3).map((part, _, all) => Math.round(text.startsWith("color(") ? Number(part) * 255 : Number(part)));
}

function isDark() {
  const [red, green, blue] = rgb(colour("--paper"));
  return red + green + blue < 384;
}

function scaleStops() {
  return SCALES[isDark() ? "dark" : "light"];
}

function ramp() {
  const stops = scaleStops().map(rgb);
  return Array.from({ length: STEPS }, (_, step) => {
    const at = (step / (STEPS - 1)) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((part, channel) => Math.round(part + (stops[low + 1][channel] - part) * (at - low)));
  });
}

// The ends of a scale: the 1st and the 99th percentile, and whether it is better logarithmic.
export function rangeOf(values, wanted = "auto") {
  const known = Float32Array.from(values).filter(Number.isFinite).sort();
  if (!known.length) return { low: 0, high: 1, log: false, canLog: false, missing: values.length };
  const at = (share) => known[Math.min(Math.floor(share * (known.length - 1)), known.length - 1)];
  let first = known.findIndex((value) => value > 0);
  if (first < 0) first = known.length;
  const positive = known.subarray(first);
  const canLog = positive.length > 0 && known[0] >= 0;
  const least = canLog ? positive[Math.floor(0.01 * (positive.length - 1))] : 0;
  const log = canLog && (wanted === "log" || (wanted === "auto" && at(0.99) / least > 50));
  const [low, high] = [log ? least : at(0.01), at(0.99)];
  const missing = values.length - (log ? positive.length : known.length);
  return high > low ? { low, high, log, canLog, missing } : { low: log ? low / 2 : low - 0.5, high: log ? low * 2 : low + 0.5, log, canLog, missing };
}

// Where a number stands on a scale, 0 to 1; NaN where it has no place.
export function shareOf(value, { low, high, log }) {
  if (!Number.isFinite(value) || (log && value <= 0)) return NaN;
  const share = log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  return Math.min(Math.max(share, 0), 1);
}

// Colours of all points by a statistic (null: one colour for all), and the order to draw them in: what has no number first, the
// others scattered, since high numbers on top of low ones would make every crowd look high.
export function colouring(values, count, range) {
  const colours = new Uint32Array(count);
  if (!values) return { colours: colours.fill(packed(rgb(colour("--accent")))), order: scattered(count) };
  const [table, none] = [ramp().map(packed), packed(rgb(colour("--leaf")))];
  const [order, missing] = [[], []];
  for (const place of scattered(count)) {
    const share = shareOf(values[place], range);
    colours[place] = Number.isNaN(share) ? none : table[Math.round(share * (STEPS - 1))];
    (Number.isNaN(share) ? missing : order).push(place);
  }
  return { colours, order: Uint32Array.from([...missing, ...order]) };
}

// Every place once, far from its neighbours' turn; the same at every call.
function scattered(count) {
  let stride = Math.max(Math.round(count * 0.618), 1);
  const common = (a, b) => (b ? common(b, a % b) : a);
  while (common(stride, count) > 1) stride += 1;
  return Uint32Array.from({ length: count }, (_, turn) => (turn * stride) % count);
}

function tickValues({ low, high, log }) {
  return [0, 0.25, 0.5, 0.75, 1].map((share) => (log ? low * (high / low) ** share : low + share * (high - low)));
}

export function legend(name, range, note) {
  if (!name) return h("div", { class: "map-legend" });
  const missing = range.missing ? h("span", { class: "map-none", "data-testid": "map-missing" }, h("i", { "aria-hidden": "true" }), `${number(range.missing)} without`) : null;
  return h("div", { class: "map-legend", "data-testid": "map-legend", title: note ?? "" }, h("span", { class: "map-legend-name" }, words(name), range.log ? " (log)" : ""),
    h("span", { class: "map-scale", role: "img", "aria-label": `${words(name)} from ${number(range.low)} to ${number(range.high)}, ${range.log ? "logarithmic" : "linear"}` },
      h("i", { class: "map-ramp", style: { background: `linear-gradient(to right, ${scaleStops().join(", ")})` } }),
      h("span", { class: "map-ticks", "aria-hidden": "true" }, tickValues(range).map((value, place) => h("span", { class: place % 2 ? "odd" : "" }, number(Number(value.toPrecision(2))))))), missing);
}
