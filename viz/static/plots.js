// Plotly figures in the page's own colours.
import { onTheme } from "./theme.js";
import { plotly } from "./transport.js";

// The colour of a variable as the browser computes it: `light-dark(…)` means nothing to plotly.
export function colour(name) {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
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

function coloured(traces) {
  return traces.map((trace) => ({ ...trace, line: { ...trace.line, color: colour("--blue") } }));
}

// One column of charts on a narrow screen, whatever grid the figure was made with.
function stacked(layout, width) {
  const axes = Object.keys(layout).filter((name) => /^xaxis\d*$/.test(name));
  if (width > 640 || axes.length < 2) return layout;
  const next = { ...layout, height: 210 * axes.length, annotations: (layout.annotations ?? []).map((note) => ({ ...note })) };
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

export async function plot(box, figure) {
  const Plotly = await plotly();
  const draw = () => Plotly.react(box, coloured(figure.data), themed(stacked(figure.layout, box.clientWidth), box.clientWidth),
    { displaylogo: false, displayModeBar: false });
  await draw();
  let width = box.clientWidth;
  new ResizeObserver(() => {
    if (!box.isConnected || Math.abs(box.clientWidth - width) < 2) return;
    width = box.clientWidth;
    draw();
  }).observe(box);
  onTheme(() => box.isConnected && draw());
}
