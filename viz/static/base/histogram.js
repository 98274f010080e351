// Histograms as SVG, in the page's own colours.
import { h, number, percent } from "./dom.js";

const [WIDTH, HEIGHT] = [360, 92];

function share(count, total) {
  return total ? ` (${percent(count / total)})` : "";
}

// Bars of equal width whatever the bins' own; empty bins at either end are left out. `about` is the picture's name.
export function histogram({ edges, counts }, about, { signed = false, testid = "histogram" } = {}) {
  const used = counts.map((count, place) => (count ? place : -1)).filter((place) => place >= 0);
  if (!used.length) return h("p", { class: "quiet" }, "Nothing to count.");
  const [from, to] = [used[0], used.at(-1) + 1];
  const most = Math.max(...counts);
  const total = counts.reduce((sum, count) => sum + count, 0);
  const step = WIDTH / (to - from);
  const bars = counts.slice(from, to).map((count, offset) => {
    const tall = count ? Math.max((count / most) * (HEIGHT - 4), 1.5) : 0;
    const below = signed && (edges[from + offset] + edges[from + offset + 1]) / 2 < 0;
    return h("g", {}, h("rect", { class: below ? "below" : signed ? "above" : null, x: offset * step + 0.5, y: HEIGHT - tall, width: Math.max(step - 1, 0.5), height: tall }),
      h("rect", { class: "reach", x: offset * step, y: 0, width: step, height: HEIGHT },
        h("title", {}, `${number(edges[from + offset])} to ${number(edges[from + offset + 1])}: ${number(count)}${share(count, total)}`)));
  });
  const ticks = [...new Set([0, 0.25, 0.5, 0.75, 1].map((part) => Math.round(from + part * (to - from))))];
  return h("svg", { class: "bars", viewBox: `0 0 ${WIDTH} ${HEIGHT + 18}`, role: "img", "data-testid": testid,
    "aria-label": `${about}: ${number(total)} in all, from ${number(edges[from])} to ${number(edges[to])}, most in a bin ${number(most)}` }, bars,
  h("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }),
  signed && edges[from] < 0 && edges[to] > 0 ? h("line", { class: "zero", x1: zero(edges, from, step), x2: zero(edges, from, step), y1: 0, y2: HEIGHT }) : null,
  ticks.map((tick, place) => h("text", { x: (tick - from) * step, y: HEIGHT + 14,
    "text-anchor": place === 0 ? "start" : tick === to ? "end" : "middle" }, number(edges[tick]))));
}

function zero(edges, from, step) {
  const after = edges.findIndex((edge) => edge >= 0);
  const [low, high] = [edges[after - 1] ?? edges[after], edges[after]];
  return (after - 1 - from + (high === low ? 1 : -low / (high - low))) * step;
}
