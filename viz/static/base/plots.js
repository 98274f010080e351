// Plotly figures in the page's own colours.
import { onTheme } from "./theme.js";
import { plotly } from "./transport.js";

const known = new Map();
onTheme(() => known.clear());

// The colour of a variable as the browser computes it: `light-dark(…)` means nothing to plotly, nor to a canvas.
export function colour(name) {
  if (!known.has(name)) {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${name})`;
    known.set(name, getComputedStyle(probe).color);
    probe.remove();
  }
  return known.get(name);
}

function font() {
  return getComputedStyle(document.body).fontFamily;
}

function themed(layout, width) {
  const next = { ...layout, width, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: font(), size: 12 },
    hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--ink") } } };
  for (const key of Object.keys(next).filter((name) => /^[xy]axis\d*$/.test(name))) {
    next[key] = { ...next[key], gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line"), fixedrange: true };
  }
  return next;
}

// The colours that figures are made with in Python, and the page's own.
const COLOURS = { "#c4463a": "--red", "#2f6fb3": "--blue", "#8a8f98": "--leaf", "#7a4fa3": "--logit", "#2a9d78": "--latent", "#d08a1d": "--neuron", "#3b4252": "--token", "#22252b": "--ink" };

function recoloured(value) {
  if (Array.isArray(value)) return value.map(recoloured);
  if (value !== null && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, recoloured(inner)]));
  return Object.hasOwn(COLOURS, value) ? colour(COLOURS[value]) : value;
}

// Only what says a colour is looked at: data stay as they are.
const COLOURED = ["marker", "line", "increasing", "decreasing", "totals", "connector", "textfont"];

function coloured(traces) {
  return traces.map((trace) => {
    const next = { ...trace };
    for (const key of COLOURED) if (key in next) next[key] = recoloured(next[key]);
    if (trace.type === "sankey") {
      next.node = { ...trace.node, color: recoloured(trace.node.color) };
      next.textfont = { color: colour("--ink"), shadow: "none" };
    }
    return next;
  });
}

// One column of charts on a narrow screen, whatever grid the figure was made with.
function stacked(layout, width) {
  const axes = Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name));
  if (width > 640 || axes.length < 2) return layout;
  const below = layout.showlegend ? 170 : 0;   // a legend stands under the charts, a line for each of its entries
  const next = { ...layout, height: 210 * axes.length + below, margin: { ...layout.margin, ...(below ? { b: below } : {}) }, annotations: (layout.annotations ?? []).map((note) => ({ ...note })) };
  axes.forEach((name, place) => {
    const top = 1 - place / axes.length;
    const bottom = top - 0.68 / axes.length;
    next[name] = { ...layout[name], domain: [0, 1] };
    const y = name.replace("x", "y");
    next[y] = { ...layout[y], domain: [bottom, top - 0.06 / axes.length] };
    if (next.annotations[place]) Object.assign(next.annotations[place], { x: 0.5, y: top - 0.06 / axes.length });
  });
  return next;
}

// Draw a figure in `box`, which is called `name`; the answer's `replace(figure)` draws another one in its place.
export async function plot(box, figure, name) {
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", name);
  const Plotly = await plotly();
  let now = figure;
  const draw = () => Plotly.react(box, coloured(now.data), themed(stacked(now.layout, box.clientWidth), box.clientWidth),
    { displaylogo: false, displayModeBar: false });
  await draw();
  let width = box.clientWidth;
  new ResizeObserver(() => {
    if (!box.isConnected || Math.abs(box.clientWidth - width) < 2) return;
    width = box.clientWidth;
    draw();
  }).observe(box);
  onTheme(() => (box.isConnected ? draw() : false));
  return { replace: (next) => { now = next; return draw(); } };
}
