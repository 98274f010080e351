// Where one effect stands among those of its controls: rows of dots, and a line for the effect itself.
import { h, number } from "./dom.js";

const [WIDE, ROW, EDGE, LEFT] = [320, 30, 8, 104];
export const KINDS = { random: "random directions", latents: "other latents" };

// Where a value stands among controls by size: how many are smaller, and p = (1 + those at least as large) / (1 + all).
export function stands(value, controls) {
  const above = controls.filter((one) => Math.abs(one) >= Math.abs(value)).length;
  return { below: controls.length - above, p: (1 + above) / (1 + controls.length) };
}

export function standing(value, controls, name) {
  const { below, p } = stands(value, controls);
  return `larger than ${below} of ${controls.length} ${name} (p ${number(p)})`;
}

// A dot that would cover another is moved up, so that each can be counted.
function levels(places) {
  const taken = [];
  return places.map((x) => {
    let level = 0;
    while (taken.some((one) => one.level === level && Math.abs(one.x - x) < 7)) level += 1;
    taken.push({ x, level });
    return Math.min(level, 3);
  });
}

function dots(values, x, base, kind) {
  const places = values.map(x);
  const up = levels(places);
  return values.map((value, place) => h("circle", { class: kind, cx: places[place], cy: base - 5 - up[place] * 5, r: 3 }, h("title", {}, `${KINDS[kind] ?? kind}: ${number(value)}`)));
}

// `controls` is { kind: [values] }; `[low, high]` is the scale, so that strips beside each other can share one.
export function strip(title, value, controls, [low, high], testid) {
  const kinds = Object.entries(controls).filter(([, values]) => values.length);
  const x = (one) => LEFT + EDGE + ((one - low) / (high - low || 1)) * (WIDE - LEFT - 2 * EDGE);
  const tall = Math.max(kinds.length, 1) * ROW + 14;
  const words = kinds.map(([kind, values]) => standing(value, values, KINDS[kind] ?? kind));
  return h("figure", { class: "strip", "data-testid": testid },
    h("svg", { viewBox: `0 0 ${WIDE} ${tall}`, role: "img", "aria-label": `${title} ${number(value)}; ${words.join("; ")}` },
      h("line", { class: "zero", x1: x(0), x2: x(0), y1: 4, y2: tall - 14 }),
      kinds.map(([kind, values], place) => {
        const base = (place + 1) * ROW;
        return h("g", {}, h("text", { x: 0, y: base - 2 }, KINDS[kind] ?? kind), h("line", { class: "axis", x1: LEFT + EDGE, x2: WIDE - EDGE, y1: base, y2: base }), dots(values, x, base, kind));
      }),
      h("line", { class: "real", x1: x(value), x2: x(value), y1: 4, y2: tall - 12 }, h("title", {}, `these changes: ${number(value)}`)),
      h("text", { x: x(low), y: tall - 2, "text-anchor": "start" }, number(low)), h("text", { x: x(high), y: tall - 2, "text-anchor": "end" }, number(high))),
    h("figcaption", {}, h("b", {}, `${title} ${number(value)}`), words.map((text) => h("span", {}, text))));
}
