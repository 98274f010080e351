// How alike two dictionaries are as a whole: shares matched both ways, one histogram of best matches, what chance gives.
import { exports } from "../base/export.js";
import { h, number, percent } from "../base/dom.js";

const [WIDE, TALL] = [560, 130];

function steps(counts, most) {
  const each = WIDE / counts.length;
  return `M0,${TALL} ${counts.map((count, place) => `L${place * each},${TALL - (count / most) * (TALL - 6)} L${(place + 1) * each},${TALL - (count / most) * (TALL - 6)}`).join(" ")} L${WIDE},${TALL} Z`;
}

// Shares of each side's latents by their best score, so that sides of different size can be compared.
function histogram(found, method, names) {
  const shares = ["a", "b"].map((side) => found[side].counts.map((count) => count / Math.max(found[side].latents, 1)));
  const most = Math.max(...shares.flat(), 1e-9);
  const chance = found.floor.q99;
  const at = (value) => value * WIDE;
  return h("svg", { class: "compare-histogram", viewBox: `0 0 ${WIDE} ${TALL + 18}`, role: "img", "data-testid": "compare-histogram",
    "aria-label": `Best ${method} of each latent: median ${number(found.a.median)} for ${names[0]}, ${number(found.b.median)} for ${names[1]}; by chance at most ${number(chance)} in 99 of 100` },
  h("path", { class: "side-a", d: steps(shares[0], most) }), h("path", { class: "side-b", d: steps(shares[1], most) }),
  h("line", { x1: 0, x2: WIDE, y1: TALL, y2: TALL }),
  chance === null ? null : h("g", {}, h("line", { class: "chance", x1: at(chance), x2: at(chance), y1: 0, y2: TALL }),
    h("text", { x: at(chance) + (chance > 0.8 ? -4 : 4), y: 13, "text-anchor": chance > 0.8 ? "end" : "start" }, "99 % of chance")),
  [0, 0.25, 0.5, 0.75, 1].map((tick) => h("text", { x: at(tick), y: TALL + 14, "text-anchor": tick === 0 ? "start" : tick === 1 ? "end" : "middle" }, tick)));
}

function share(part, whole) {
  return percent(whole ? part / whole : null);
}

export function summary(answer, method, level) {
  const { found } = answer.methods[method];
  const names = [answer.a.name, answer.b.name];
  const { levels } = answer;
  const lines = [...levels.map((value, place) => [`best ${method} above ${value}`, share(found.a.above[place], found.a.latents), share(found.b.above[place], found.b.latents)]),
    [`unmatched: at most ${level}`, ...["a", "b"].map((side) => unmatched(found[side], found.edges, level))], ["median of the best", number(found.a.median), number(found.b.median)],
    ["latents that fire", number(found.a.latents), number(found.b.latents)]];
  const figure = histogram(found, method, names);
  const table = () => ({ columns: ["from", "to", names[0], names[1]], rows: found.a.counts.map((count, place) => [found.edges[place], found.edges[place + 1], count, found.b.counts[place]]) });
  return h("div", { class: "compare-summary", "data-testid": "compare-summary" },
    h("table", { class: "grid" }, h("thead", {}, h("tr", {}, h("td", {}), h("th", { scope: "col" }, h("i", { class: "dot side-a", "aria-hidden": "true" }), "A"), h("th", { scope: "col" }, h("i", { class: "dot side-b", "aria-hidden": "true" }), "B"))),
      h("tbody", {}, lines.map(([name, ...cells]) => h("tr", {}, h("th", { scope: "row" }, name), cells.map((cell) => h("td", {}, cell)))),
        h("tr", {}, h("th", { scope: "row" }, "each other's best"), h("td", { colspan: 2 }, `${number(found.mutual)} pairs, ${number(found.mutual_above[1])} above ${levels[1]}`)),
        h("tr", {}, h("th", { scope: "row", title: "strongest pair first, each latent once" }, "one to one (greedy)"), h("td", { colspan: 2 }, `${number(found.pairs)} pairs, ${number(found.pairs_above[1])} above ${levels[1]}`)))),
    h("figure", {}, h("div", { class: "head" }, h("h2", {}, `Best ${method} of each latent`), exports(`best ${method}`, { svg: () => figure, table })), figure,
      h("figcaption", {}, h("span", {}, "With the other store, as a share of the latents that fire. ", chanceText(found, method)))));
}

function unmatched({ counts, latents }, edges, level) {
  const below = counts.filter((_, place) => edges[place + 1] <= level + 1e-9).reduce((sum, count) => sum + count, 0);
  return share(below, latents);
}

function chanceText({ floor, sample }, method) {
  if (floor.q50 === null) return "";
  const how = method === "cosine" ? "B turned at random" : "the text of B shifted by half its length";
  return `By chance (${how}; ${number(sample)} latents of A) the median is ${number(floor.q50)} and 99 % lie below ${number(floor.q99)}.`;
}
