// One number per token of the prompt, as bars.
import { h, number } from "../base/dom.js";
import { session, token } from "./promptState.js";

const TALL = 64;

export function tokenBars(values, says, testid) {
  const most = Math.max(...values, 1e-12);
  const each = 22;
  const wide = each * values.length;
  const bar = (value, place) => h("rect", { x: place * each + 2, width: each - 4, y: TALL - (Math.max(value, 0) / most) * TALL, height: (Math.max(value, 0) / most) * TALL,
    class: place === token() ? "chosen" : "" }, h("title", {}, `${place} ${session.answer.tokens[place]}: ${number(value)}`));
  return h("svg", { class: "prompt-bars", style: { width: `${Math.max(wide, 120)}px` }, viewBox: `0 0 ${wide} ${TALL + 1}`, preserveAspectRatio: "none", role: "img", "data-testid": testid,
    "aria-label": `${says} over the ${values.length} tokens, at most ${number(most)}` }, h("line", { x1: 0, x2: wide, y1: TALL, y2: TALL }), values.map(bar));
}
