// Examples of a latent: its strongest, or by interval of the activation; coloured by activation, with words on each token.
import { effectLines, effectOf, effectsButton, underline } from "./effects.js";
import { exports } from "../base/export.js";
import { empty, h, link, number, percent, refill, segments } from "../base/dom.js";
import { rove, tipped } from "../base/tip.js";
import { around, heat, line } from "../base/tokens.js";
import { ask } from "../base/transport.js";
import { set, state } from "../base/state.js";

const AROUND = 14;   // tokens shown on each side of the one that fired, until the example is opened
const KINDS = { top: "strongest", width: "equal width", count: "equal count", log: "equal ratio" };

// The kinds of examples that this store offers.
function kindsOf(about) {
  return ["top", ...(about.intervals ?? [])];
}

function token(one, place, context) {
  const value = one.values[place] ?? 0;
  const share = heat(value, context.most);
  const span = h("span", { class: place === one.focus ? "t focus" : "t", "data-value": number(value), "data-place": place,
    style: share ? { "--heat-share": share } : {} }, one.tokens[place]);
  return tipped(span, () => [h("div", {}, h("b", {}, h("bdi", {}, one.tokens[place].trim() || one.tokens[place])), ` activation ${number(value)}`),
    effectLines(effectOf(context.store, context.latent, one.row), place)]);
}

function text(one, context, whole) {
  const part = whole ? [0, one.tokens.length] : around(one.focus, one.tokens.length, AROUND);
  const shown = h("p", { class: "text", role: "group", "aria-label": `Example in document ${one.document}; arrow keys move between its tokens` },
    line(one.tokens.length, part, (place) => token(one, place, context)));
  underline(shown.querySelectorAll(".t"), effectOf(context.store, context.latent, one.row));
  return rove(shown, ".t", one.focus - part[0]);
}

function example(one, context) {
  const item = h("li", { "data-testid": "example", "data-row": one.row });
  const draw = () => {
    const whole = state.example === one.row;
    item.classList.toggle("open", whole);
    item.replaceChildren(h("button", { type: "button", class: "more", "aria-expanded": String(whole), "aria-label": `${number(one.value)}: ${whole ? "less" : "more"} of this example`,
      title: "more or less of the text", onclick: () => set({ example: whole ? null : one.row }) }, number(one.value)),
    text(one, context, whole), h("span", { class: "where" }, `document ${number(one.document)}, position ${number(one.position)}`));
  };
  draw();
  context.redraw.push(draw);
  return item;
}

function groupHead(one) {
  const about = `${number(one.low)} to ${number(one.high)}`;
  const firings = one.count === 1 ? "firing" : "firings";
  const count = one.error === null ? `${number(one.count)} ${firings}` : `about ${number(one.count)} ± ${number(one.error)} ${firings}`;
  return h("h3", {}, about, h("small", {}, ` · ${count} · ${percent(one.share ?? 0)}`));
}

function groups(answer, context) {
  return answer.intervals.map((one) => h("section", { class: "interval", "data-testid": "interval" }, groupHead(one),
    one.examples.length ? h("ol", { class: "examples" }, one.examples.map((each) => example(each, context))) : h("p", { class: "quiet" }, one.count ? "No example kept." : "It never fires in this range.")));
}

const SAYS = {
  width: "Ten intervals of equal width from 0 to the largest activation, drawn evenly from each.",
  count: "Ten intervals with as many firings each: what a typical firing looks like.",
  log: "Intervals of equal ratio: how the meaning changes with the order of magnitude.",
};

function table(shown) {
  return { columns: ["interval", "row", "document", "position", "value", "token", "text"], rows: shown.map(([interval, one]) =>
    [interval, one.row, one.document, one.position, one.value, one.tokens[one.focus], one.tokens.join("")]) };
}

// The section of examples; `again()` of what it returns draws anew after the state changed.
export function examplesSection(answer, store, latent, about, most) {
  const kinds = kindsOf(about);
  const context = { store, latent, most, redraw: [] };
  const [body, tools] = [h("div", { "data-testid": "examples" }), h("div", { class: "tools" })];
  let shown = [];
  const redraw = () => context.redraw.forEach((draw) => draw());
  const fill = (parts, list) => {
    shown = list;
    refill(body, parts);
    refill(tools, kinds.length > 1 ? picker(kinds) : null, effectsButton(store, latent, () => shown.map(([, one]) => one), redraw),
      shown.length ? exports(`latent ${latent} examples`, { table: () => table(shown), json: () => shown.map(([interval, one]) => ({ interval, ...one })) }) : null);
  };
  const draw = async () => {
    context.redraw = [];
    const kind = kinds.includes(state.intervals) ? state.intervals : "top";
    if (kind === "top") {
      return fill(answer.examples.length ? h("ol", { class: "examples" }, answer.examples.map((one) => example(one, context))) : empty("It never fired, so there is no example."),
        answer.examples.map((one) => ["top", one]));
    }
    const found = await ask(`stores/${store}/latents/${latent}/intervals/${kind}`).catch((error) => ({ error: error.message }));
    if (kind !== state.intervals) return undefined;
    if (!found || found.error) return fill(empty(found?.error ?? "This page carries no examples by interval of this latent; the live browser (unweave show) has them."), []);
    return fill([h("p", { class: "quiet" }, `${SAYS[kind]} `, found.is_exact ? "Counts are exact." : "Counts are estimates from the histogram: the codes of this text were not kept."), ...groups(found, context)],
      found.intervals.flatMap((one) => one.examples.map((each) => [`${one.low} to ${one.high}`, each])));
  };
  const section = h("section", { "aria-label": "Examples" }, h("div", { class: "head" }, h("h2", {}, "Examples"), tools), body);
  return { section, draw, redraw };
}

function picker(kinds) {
  const names = Object.fromEntries(kinds.map((kind) => [kind, KINDS[kind]]));
  return segments("Examples by", names, kinds.includes(state.intervals) ? state.intervals : "top", (intervals) => set({ intervals }), "examples", { top: "the strongest, one per document block", ...SAYS });
}

export function nextKind(about) {
  const kinds = kindsOf(about);
  set({ intervals: kinds[(Math.max(kinds.indexOf(state.intervals), 0) + 1) % kinds.length] });
}

export function latentLink(store, latent, label) {
  return link({ pane: "latents", store, latent, example: null }, {}, h("span", { class: "id" }, latent), label ? h("span", { class: "label" }, ` ${label}`) : "");
}
