// One latent of A beside one of B: what joins them, the same texts with the activations of both, and what each is.
import { empty, h, link, number, refill, tile, words } from "../base/dom.js";
import { exports } from "../base/export.js";
import { logits, tokens } from "../latents/statistics.js";
import { ratioText } from "./compareTable.js";
import { ask, frozen } from "../base/transport.js";
import { set, state } from "../base/state.js";
import { around, heat, line } from "../base/tokens.js";

const AROUND = 12;   // tokens of a text shown on either side of the strongest
const STATISTICS = ["density", "max_value", "mean_value", "token_entropy"];

const SHADES = [12, 48];   // per cent of a side's colour: more of the blue would hide the words

// A token in two halves: A's activation above, B's below.
function both(text, place, most) {
  const [a, b] = [text.a[place] ?? 0, text.b[place] ?? 0];
  const style = Object.fromEntries([["--heat-a", heat(a, most[0], SHADES)], ["--heat-b", heat(b, most[1], SHADES)]].filter(([, share]) => share));
  return h("span", { class: place === text.focus ? "pair-token focus" : "pair-token", title: a > 0 || b > 0 ? `A ${number(a)}, B ${number(b)}` : null, style }, text.tokens[place]);
}

function shared(text, most) {
  return h("li", { "data-testid": "pair-text" }, h("p", { class: "text" }, line(text.tokens.length, around(text.focus, text.tokens.length, AROUND), (place) => both(text, place, most))),
    h("span", { class: "where" }, `strongest of ${text.from.toUpperCase()} · A ${number(text.a[text.focus] ?? 0)}, B ${number(text.b[text.focus] ?? 0)} · document ${number(text.document)}`));
}

// Texts of one latent alone, where the two stores have none in common.
function own(card, side) {
  const most = Math.max(card.statistics.max_value ?? 0, 1e-9);
  const token = (one, place) => {
    const share = heat(one.values[place] ?? 0, most, SHADES);
    return h("span", { class: `pair-token only-${side}${place === one.focus ? " focus" : ""}`, style: share ? { "--heat-a": share, "--heat-b": share } : {} }, one.tokens[place]);
  };
  return h("ol", { class: "pair-texts" }, card.examples.slice(0, 4).map((one) => h("li", {}, h("p", { class: "text" }, line(one.tokens.length, around(one.focus, one.tokens.length, AROUND), (place) => token(one, place))))));
}

function side(card, name, letter, store, latent, isShared) {
  const title = h("h2", {}, h("i", { class: `dot side-${letter}`, "aria-hidden": "true" }), `${letter.toUpperCase()} `, link({ pane: "latents", store, latent, query: "", filter: "" }, { "data-testid": `pair-${letter}` }, `latent ${latent}`), h("small", {}, ` ${name}`));
  if (!card) return h("section", { class: "pair-side" }, title, empty(frozen ? "This page carries no card of it." : "There is no such latent."));
  return h("section", { class: "pair-side", "aria-label": `Latent ${latent} of ${letter.toUpperCase()}` }, title,
    card.label ? h("p", { class: "labelled" }, h("bdi", {}, card.label)) : null,
    card.warnings.length ? h("ul", { class: "warnings" }, card.warnings.map((text) => h("li", {}, text))) : null,
    h("div", { class: "tiles" }, STATISTICS.filter((key) => key in card.statistics).map((key) => tile(number(card.statistics[key]), words(key)))),
    isShared ? null : [h("h3", {}, "Strongest examples"), card.examples.length ? own(card, letter) : empty("It never fires.")], tokens(card, latent), logits(card, latent));
}

function candidates(found, method, partner) {
  const list = found?.[method] ?? [];
  if (!list.length) return null;
  return h("div", { class: "tools pair-candidates", role: "group", "aria-label": "Partners in B" }, list.map((one) => h("button", { type: "button", "data-testid": "pair-candidate", "aria-pressed": String(one.latent === partner),
    title: [one.label, one.is_mutual ? "each other's best" : null, one.is_pair ? "one-to-one partner" : null].filter(Boolean).join("; "), onclick: () => set({ compare_partner: one.latent }, { push: true }) },
  h("span", { class: "id" }, one.latent), h("span", { class: "num" }, ` ${number(one.score)}`), one.is_mutual ? " ⇄" : "")));
}

function joined(pair, cards) {
  const density = cards.map((card) => card?.statistics.density);
  const facts = [["cosine of the decoder rows", pair?.cosine], ["correlation over the text", pair?.correlation], ["tokens on which both fire", pair?.both], ["only A", pair?.only_a], ["only B", pair?.only_b]].filter(([, value]) => value !== null && value !== undefined);
  if (density.every((value) => value > 0)) facts.push(["density, A over B", ratioText(density[0] / density[1])]);
  return h("div", { class: "tiles", "data-testid": "pair-facts" }, facts.map(([name, value]) => tile(number(value), name)));
}

// Fill `box` with the chosen latent of A and its partner (the chosen one, else the best).
export async function pairBox(box, { a, b, answer, method, partnerOf }) {
  const { latent } = state;
  if (latent === null) return box.replaceChildren(empty("Choose a latent: j and k walk through the table."));
  const found = await ask(`compare/${a}/${b}/latents/${latent}`).catch(() => null);
  const partner = state.compare_partner ?? partnerOf(latent) ?? found?.[method]?.[0]?.latent ?? null;
  const name = `${latent}-${partner}`;
  const optional = (promise) => promise.catch(() => null);
  const [cardA, cardB, pairs, together] = await Promise.all([optional(ask(`stores/${a}/latents/${latent}`)), partner === null ? null : optional(ask(`stores/${b}/latents/${partner}`)),
    partner === null ? null : optional(ask(frozen ? `compare/${a}/${b}/pairs` : `compare/${a}/${b}/pairs/${name}`)), partner === null ? null : optional(ask(`compare/${a}/${b}/pairs/${name}/texts`))]);
  if (latent !== state.latent || !box.isConnected) return undefined;
  const isShared = Boolean(together?.texts?.length);
  const rows = () => together.texts.flatMap((text, place) => text.tokens.map((token, at) => [place, text.document, token, text.a[at] ?? 0, text.b[at] ?? 0]));
  refill(box, candidates(found, method, partner), partner === null ? empty(`Latent ${latent} of A has no partner in B.`) : joined(pairs?.[name], [cardA, cardB]),
    isShared ? h("section", { "aria-label": "The same texts" }, h("div", { class: "head" }, h("h2", {}, "The same texts"), exports(`texts of ${name}`, { table: () => ({ columns: ["text", "document", "token", "A", "B"], rows: rows() }) })),
      h("p", { class: "quiet" }, h("i", { class: "dot side-a", "aria-hidden": "true" }), "upper half: A; ", h("i", { class: "dot side-b", "aria-hidden": "true" }), "lower half: B; each as a share of its own maximum"),
      h("ol", { class: "pair-texts" }, together.texts.map((text) => shared(text, together.most)))) : null,
    h("div", { class: "pair-sides" }, side(cardA, answer.a.name, "a", a, latent, isShared), partner === null ? null : side(cardB, answer.b.name, "b", b, partner, isShared)));
  box.scrollTop = 0;
  return undefined;
}
