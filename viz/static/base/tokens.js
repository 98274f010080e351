// Tokens of a text, coloured by activation; the part of a text around one of them; what a latent is called.
import { h } from "./dom.js";

const [FAINT, MOST] = [10, 62];   // per cent of the colour: more of it would hide the words in dark colours

// The share of colour for a value, as CSS has it; null where it is silent.
export function heat(value, most, [least, strongest] = [FAINT, MOST]) {
  return value > 0 && most > 0 ? `${(least + (strongest - least) * Math.min(value / most, 1)).toFixed(0)}%` : null;
}

// The places [from, to) of a text of `count` tokens that are shown around one.
export function around(focus, count, before, after = before) {
  return [Math.max(focus - before, 0), Math.min(focus + after + 1, count)];
}

// A piece of text as a line: what `token(place)` makes of each place, dots where it goes on.
export function line(count, [from, to], token) {
  return [from > 0 ? "… " : "", Array.from({ length: to - from }, (_, offset) => token(from + offset)), to < count ? " …" : ""];
}

// What a latent is called: its label, else the text around its strongest example (`row` as in `stores/S/rows`), of which at most
// `letters` stand before the token, so that the token itself is never cut off.
export function calling(label, row, letters = 24, role = null) {
  if (label) return h("span", { class: "label", role }, label);
  if (!row) return h("span", { class: "label sample", role });
  if (!row.before && !row.token) return h("span", { class: "label sample", role }, "no example");
  const near = [...row.before].slice(-letters).join("");
  return h("span", { class: "label sample", role }, near === row.before ? near.trimStart() : `…${near}`, h("b", {}, row.token), row.after);
}

// A token alone as it reads in running text: its leading space is a space again.
export function spaced(text) {
  return text.replace(/^␣(?=[^␣])/, " ");
}
