// The feature page: everything that is known of one latent.
import { company, neighbours } from "./partners.js";
import { details, empty, facts, flat, h, number, refill } from "../base/dom.js";
import { examplesSection } from "./examples.js";
import { activations, logitEffects, logits, moreTiles, tiles, tokens } from "./statistics.js";
import { ask, frozen } from "../base/transport.js";
import { marks } from "./marks.js";
import { set, state } from "../base/state.js";
import { tips } from "../base/tip.js";

const LATER = 120;   // ms after which the company is asked for, so that a held key asks for none
const shown = { card: null };

function missing({ total, heading = "h1" }, latent) {
  return [h(heading, {}, `Latent ${latent}`), empty(frozen && latent < total ? `This page carries no card of latent ${latent}; the live browser (unweave show) has all of them.`
    : `There is no latent ${latent} in this store; it has ${number(total)}, counted from 0.`)];
}

export function cardAnswer(store, latent) {
  return ask(`stores/${store}/latents/${latent}`);
}

// What every card of a store has in common: model, dictionary, text, seed, the rule for the first token.
function provenance(about) {
  const known = flat(about.provenance ?? {});
  const first = /^(model\.name|dictionary\.(site|site_out|fingerprint)|text|rows|kept_rows|seed|bos)/;
  const order = [...known.filter(([name]) => first.test(name)), ...known.filter(([name]) => !first.test(name))];
  return details("Where this card comes from", facts(order, "card-provenance"));
}

// Draw the card of a latent into `box`. `place` has store, name, total, and the tag of its heading where that is not h1; `about()` is what is known of the store already, `soon` its promise: the
// first paint does not wait for it.
export async function card(box, place, latent, about, soon, changed) {
  if (latent === null) return box.replaceChildren(empty("Choose a latent."));
  const { store, total } = place;
  const answer = latent < total ? await cardAnswer(store, latent) : null;
  if (latent !== state.latent || store !== state.store) return undefined;   // another key was pressed meanwhile
  const back = h("button", { type: "button", class: "back", onclick: () => set({ latent: null }, { push: true }) }, "← all latents");
  if (!answer) return refill(box, back, missing(place, latent));
  const known = about();
  const made = article(place, latent, answer, changed);
  const first = made.fill(known ?? {});
  box.replaceChildren(back, made.article);
  tips(box);
  box.scrollTop = 0;
  await first;
  afterPaint(made.article, latent);
  settle(made, known, soon);
  return undefined;
}

// What the first paint did not wait for.
async function settle(made, known, soon) {
  if (!known) await made.fill((await soon) ?? {});
  if (state.example !== null) made.article.querySelector(`[data-row="${state.example}"]`)?.scrollIntoView({ block: "nearest" });
  setTimeout(() => made.article.isConnected && made.company(), LATER);
}

// A mark on the browser's timeline, for whoever measures how soon a card is seen.
function afterPaint(drawn, latent) {
  requestAnimationFrame(() => setTimeout(() => {
    if (!drawn.isConnected) return;
    performance.clearMarks("unweave-card");
    performance.mark("unweave-card", { detail: latent });
  }));
}

function article({ store, name, heading = "h1" }, latent, answer, changed) {
  const most = Math.max(answer.statistics.max_value ?? 0, ...answer.examples.map((one) => one.value ?? 0), 1e-9);
  const spot = () => h("div", {});
  const [numbers, more, examples, together, source] = [spot(), spot(), spot(), spot(), spot()];
  const scale = activations(answer, store, latent);
  let known = {};
  shown.card = { scale };
  const drawn = h("article", { class: "card", "data-testid": "card", "data-latent": latent },
    h(heading, { class: "card-title", tabindex: -1, "data-testid": "card-title" }, `Latent ${latent}`, h("small", {}, ` ${name}`)), marks(store, latent, answer.mark, changed),
    answer.warnings.length ? h("ul", { class: "warnings", "data-testid": "warnings" }, answer.warnings.map((text) => h("li", {}, text))) : null,
    numbers, h("div", { class: "columns" }, h("div", {}, scale.section, logitEffects(answer, latent)), h("div", {}, logits(answer, latent))), examples,
    h("div", { class: "columns partners" }, h("div", {}, tokens(answer, latent), neighbours(answer.neighbours, store, latent)), together), more, source);
  // What depends on the store: the meaning of the statistics, the kinds of examples, where all of it comes from.
  const fill = (about) => {
    known = about;
    const list = examplesSection(answer, store, latent, about, most);
    Object.assign(shown.card, { examples: list });
    refill(numbers, tiles(answer.statistics, about.notes ?? {}));
    refill(more, moreTiles(answer.statistics, about.notes ?? {}));
    examples.replaceChildren(list.section);
    source.replaceChildren(provenance(about));
    return Promise.all([scale.draw(), about.total === undefined && state.intervals !== "top" ? null : list.draw()]);
  };
  return { article: drawn, fill, company: () => refill(together, company(store, latent, known)) };
}

// After the state has changed in what only the shown card depends on.
export function redrawExamples() {
  shown.card?.examples.draw();
}

export function redrawExample() {
  shown.card?.examples.redraw();
}

export function redrawScale() {
  shown.card?.scale.draw();
}
