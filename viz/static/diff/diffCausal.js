// What patching the first latents into A and removing them from B does, as bars beside the same done with random latents.
import { h, number, percent, refill } from "../base/dom.js";
import { exports } from "../base/export.js";

const SIDES = { patched: "patched into A", removed: "removed from B" };
const [TITLE, BAR, GAP, EDGE] = [20, 34, 8, 6];   // px: the height of a title and of a bar with its controls, between scores, beside the axis
const [LEAST, MOST] = [-1, 1.5];                  // shares beyond are cut off at the picture's edge

export function named(score) {
  const { latents } = score;
  if (!latents.length) return "the whole activation";
  return latents.length === 1 ? `latent ${latents[0]} alone` : `${latents.length} together: ${latents.join(", ")}`;
}

function span(scores) {
  const all = scores.flatMap((score) => Object.keys(SIDES).flatMap((side) => [score[side].share, ...(score[side].interval ?? []), ...score[side].controls])).filter((value) => value !== null);
  const [low, high] = [Math.max(Math.min(...all, 0), LEAST), Math.min(Math.max(...all, 0.1), MOST)];
  const pad = (high - low) * 0.04;
  return [low < 0 ? low - pad : 0, high > 0.6 && high < 1 ? 1 : high + pad];
}

// One side of one score: the bar with its interval, under it the mean of the random latents with the middle 95 % and each of them.
function bar(side, told, x, y) {
  const { share, interval, controls, control_mean: mean, control_interval: spread } = told;
  const whisker = ([low, high], at, kind) => h("g", { class: `whisker ${kind}` }, h("line", { x1: x(low), x2: x(high), y1: at, y2: at }), [low, high].map((end) => h("line", { x1: x(end), x2: x(end), y1: at - 3, y2: at + 3 })));
  const rect = (value, top, tall, kind) => h("rect", { class: kind, x: Math.min(x(0), x(value)), y: top, width: Math.max(Math.abs(x(value) - x(0)), 0.5), height: tall });
  return h("g", {}, share === null ? null : rect(share, y, 12, side), interval ? whisker(interval, y + 6, "own") : null,
    mean === null ? null : [rect(mean, y + 16, 6, "control"), whisker(spread, y + 19, "other"), controls.map((value) => h("circle", { class: "control", cx: x(value), cy: y + 19, r: 2 }))],
    h("title", {}, causalWords(side, told)));
}

export function causalWords(side, { share, interval, controls, control_mean: mean, p }) {
  if (share === null) return `${SIDES[side]}: no share can be told`;
  const own = `${SIDES[side]}: ${percent(share)}${interval ? ` (95 %: ${percent(interval[0])} to ${percent(interval[1])})` : ""}`;
  return controls.length ? `${own}; random latents ${percent(mean)} on average, p ${number(p)}` : own;
}

function picture(scores, width) {
  const isNarrow = width < 480;
  const [left, right] = [isNarrow ? 62 : 104, isNarrow ? 56 : 110];
  const [low, high] = span(scores);
  const x = (value) => left + EDGE + ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (width - left - right - 2 * EDGE);
  const each = TITLE + 2 * BAR + GAP;
  const tall = scores.length * each + 22;
  const said = (side, { share, p }) => (share === null ? "–" : `${percent(share)}${isNarrow || p === null ? "" : `, p ${number(p)}`}`);
  const ticks = [low, 0, high].filter((tick, at, all) => at === 1 || Math.abs(x(tick) - x(0)) > 60 || all.length < 3);
  return h("svg", { viewBox: `0 0 ${width} ${tall}`, width, height: tall, class: "causal-picture", role: "img", "data-testid": "causal-picture",
    "aria-label": scores.map((score) => `${named(score)}: ${Object.keys(SIDES).map((side) => causalWords(side, score[side])).join("; ")}`).join(". ") },
  h("line", { class: "zero", x1: x(0), x2: x(0), y1: TITLE, y2: tall - 20 }), high >= 1 ? h("line", { class: "zero", x1: x(1), x2: x(1), y1: TITLE, y2: tall - 20 }) : null,
  scores.map((score, at) => h("g", {}, h("text", { class: "named", x: 0, y: at * each + 14 }, named(score).slice(0, Math.floor(width / 7))),
    Object.keys(SIDES).map((side, row) => {
      const top = at * each + TITLE + row * BAR;
      return [h("text", { x: 0, y: top + 11 }, isNarrow ? side : SIDES[side]), bar(side, score[side], x, top), h("text", { x: width, y: top + 11, "text-anchor": "end" }, said(side, score[side]))];
    }))),
  ticks.map((tick) => h("text", { x: x(tick), y: tall - 5, "text-anchor": "middle" }, percent(Number(tick.toPrecision(2))))));
}

function tableOf(scores) {
  return { columns: ["what", "how", "share", "low", "high", "random latents", "their low", "their high", "p"], rows: scores.flatMap((score) => Object.keys(SIDES).map((side) => {
    const { share, interval, control_mean: mean, control_interval: spread, p } = score[side];
    return [named(score), SIDES[side], share, interval?.[0] ?? null, interval?.[1] ?? null, mean, spread?.[0] ?? null, spread?.[1] ?? null, p];
  })) };
}

// The figure of all scores; null where there are none.
export function causalOf(table) {
  const { causal, target, name } = table.about;
  if (!causal.length) return null;
  const box = h("div", { class: "causal-box" });
  const made = { svg: null };
  let known = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (!contentRect.width || Math.abs(contentRect.width - known) < 2) return;
    known = contentRect.width;
    made.svg = picture(causal, Math.max(Math.round(known), 240));
    box.replaceChildren(made.svg);
  }).observe(box);
  const { columns, rows } = tableOf(causal);
  const numbers = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Causal scores" }, h("table", { class: "grid", "data-testid": "causal-table" }, h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col" }, column)))),
    h("tbody", {}, rows.map(([what, how, ...cells]) => h("tr", {}, h("th", { scope: "row" }, what), h("td", {}, how), cells.map((cell) => h("td", {}, number(cell))))))));
  const behaviour = target === null ? "next-token distributions (KL)" : h("span", {}, "the logit of ", h("bdi", { class: "token" }, target));
  const figure = h("figure", { class: "diff-causal", "data-testid": "causal" });
  refill(figure, h("div", { class: "head" }, h("h2", {}, "Does it matter?"), exports(`${name} causal scores`, { svg: () => made.svg, table: () => tableOf(causal) })), box,
    h("figcaption", {}, h("span", {}, "Shares of how the models differ in ", behaviour, "; whiskers 95 % over documents. Grey: as many random latents of like density, each a dot."),
      causal.some(({ latents }) => !latents.length) ? h("span", {}, "The whole activation has no controls: it is the most that this site can do.") : null),
    h("details", { class: "bare" }, h("summary", {}, "Numbers"), numbers));
  return figure;
}
