// The ranked latents of a token or of the prompt, and the one that is chosen: where it is active, what it is known to do.
import { empty, h, link, number, refill, signed } from "../base/dom.js";
import { exports } from "../base/export.js";
import { tokenBars } from "./promptBars.js";
import { addEdit, along, HOWS, largest, rank, ranked, RANKS, session, token, wordsOf } from "./promptState.js";
import { calling, spaced } from "../base/tokens.js";
import { ask, can, rows } from "../base/transport.js";
import { set, state } from "../base/state.js";

const FIRST = 20;
const TITLES = { activation: ["activation", "act."], surprise: ["bits", "bits"], attribution: ["attribution", "attr."] };
const MEANING = {
  activation: "how strongly it fires",
  surprise: "surprise: −log2 of the share of the corpus' tokens on which it is at least this strong",
  attribution: "activation × gradient of the target: what the target gains, to first order, per relative change of the latent",
};
let isLong = false;

export function label(latent) {
  const row = session.names[latent];
  return calling(row?.label ?? session.labels[latent], row);
}

// Learn what is known of latents; true when something new came.
export async function learn(latents) {
  const unknown = [...new Set(latents)].filter((latent) => !(latent in session.names) && latent < (session.most?.length ?? Infinity)).slice(0, 100);
  if (!unknown.length) return false;
  const { store } = session;
  const found = await rows(store, unknown);
  if (store !== session.store) return false;
  Object.assign(session.names, Object.fromEntries(unknown.map((latent) => [latent, null])), found);
  return true;
}

export function shownRows() {
  return ranked().slice(0, isLong ? 200 : FIRST);
}

export function step(by) {
  const list = shownRows().map(({ latent }) => latent);
  const at = list.indexOf(state.latent);
  const next = list[Math.min(Math.max(at < 0 ? 0 : at + by, 0), list.length - 1)];
  if (next !== undefined) set({ latent: next });
  document.querySelector(`.prompt-list [data-latent="${next}"]`)?.scrollIntoView({ block: "nearest" });
}

export function nextRank() {
  set({ prompt_rank: RANKS[(RANKS.indexOf(rank()) + 1) % RANKS.length] });
}

function bits({ bits: value, low, high }) {
  if (value === null || value === undefined) return h("span", { class: "num" }, "–");
  const isNew = high === null;
  const bounds = low === undefined ? "" : isNew ? "stronger than ever in the corpus" : `between ${number(low)} and ${number(high)}`;
  return h("span", { class: "num", title: bounds }, `${isNew ? "≥ " : ""}${value.toFixed(1)}`);
}

function row(one) {
  return h("li", {}, h("button", { type: "button", class: "prompt-row", "data-testid": "prompt-latent", "data-latent": one.latent,
    "aria-pressed": String(one.latent === state.latent), onclick: () => set({ latent: one.latent === state.latent ? null : one.latent }, { push: true }) },
  h("span", { class: "id" }, one.latent), h("span", {}, label(one.latent), one.tokens > 1 ? h("span", { class: "quiet prompt-times" }, `${one.tokens} tokens, most at ${one.position}`) : null),
  h("span", { class: "num" }, number(one.value)), bits(one), h("span", { class: `num ${one.attribution < 0 ? "below" : ""}` }, signed(one.attribution))));
}

function header() {
  return h("div", { class: "prompt-row heading" }, h("span", {}, "latent"), h("span", {}, "label, or top example"),
    RANKS.map((name) => h("button", { type: "button", title: MEANING[name], "data-testid": `rank-${name}`, "aria-pressed": String(rank() === name), onclick: () => set({ prompt_rank: name }, { push: true }) }, h("span", { class: "prompt-wide-only" }, TITLES[name][0]), h("span", { class: "prompt-narrow-only" }, TITLES[name][1]), rank() === name ? " ↓" : "")));
}

function onkeydown(event) {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const buttons = [...event.currentTarget.querySelectorAll("button")];
  buttons[Math.min(Math.max(buttons.indexOf(document.activeElement) + by, 0), buttons.length - 1)]?.focus();
}

function table() {
  const rows = ranked();
  return { columns: ["latent", "label", "activation", "bits", "attribution"], rows: rows.map((one) => [one.latent, wordsOf(one.latent), one.value, one.bits, one.attribution]) };
}

export function list(box, refresh) {
  const all = ranked();
  const at = token();
  const { answer } = session;
  const held = box.contains(document.activeElement) ? document.activeElement.dataset : null;
  const others = answer.rest.filter((_, place) => (at === null ? answer.kept[place] : place === at)).reduce((sum, one) => sum + (one ?? 0), 0);
  const title = at === null ? "Latents of the whole prompt" : ["Latents on token ", String(at), " ", h("b", { class: "token" }, answer.tokens[at])];
  const more = !isLong && all.length > FIRST ? h("button", { type: "button", class: "slight", "data-testid": "more-latents",
    onclick: () => { isLong = true; refresh(); } }, `show ${all.length > 200 ? "200" : "all"} of ${number(all.length)}`) : null;
  refill(box, h("div", { class: "head" }, h("h2", { "data-testid": "list-title" }, title), exports(at === null ? "latents of the prompt" : `latents of token ${at}`, { table })),
    at !== null && !answer.kept[at] ? h("p", { class: "quiet" }, "The dictionary was not trained on such tokens: read these with care.") : null,
    all.length ? [header(), h("ol", { class: "prompt-list plain", onkeydown }, shownRows().map(row))] : empty("No latent fires here."), more,
    rank() === "attribution" ? h("p", { class: "quiet", "data-testid": "rest" }, `what is no latent (reconstruction error, biases): ${signed(others)}`) : null);
  if (held?.latent) box.querySelector(`.prompt-list [data-latent="${held.latent}"]`)?.focus();
  else if (held?.testid) box.querySelector(`[data-testid="${held.testid}"]`)?.focus();
}

function alongTable(latent) {
  return { columns: ["place", "token", "activation", "bits", "attribution"], rows: along(latent).map((one, place) => [place, session.answer.tokens[place], one?.value ?? 0, one?.bits ?? null, one?.attribution ?? 0]) };
}

// `stores/S/latents/J` is the card; a part of it stands here.
export async function chosen(box) {
  const { latent } = state;
  if (latent === null || !session.answer) return box.replaceChildren(empty("Choose a latent: see it over the tokens, change it."));
  const total = session.most?.length ?? Infinity;
  if (latent >= total) return box.replaceChildren(empty(`There is no latent ${latent} in this store.`));
  const { store } = session;
  const card = await ask(`stores/${store}/latents/${latent}`);
  if (latent !== state.latent || store !== session.store || !session.answer) return undefined;
  const held = box.contains(document.activeElement) ? document.activeElement.dataset.testid : null;
  const active = along(latent).filter(Boolean).length;
  const promotes = (card?.top_logits ?? []).slice(0, 6);
  refill(box, h("div", { class: "head" }, h("h2", { "data-testid": "chosen-title" }, `Latent ${latent} `, link({ pane: "latents", store, latent }, { "data-testid": "to-card" }, "its card")),
    exports(`latent ${latent} over the prompt`, { ...(active ? { svg: () => box.querySelector("[data-testid=prompt-bars]") } : {}), table: () => alongTable(latent) })),
    h("p", { class: "labelled" }, label(latent)),
    card?.warnings?.length ? h("ul", { class: "warnings" }, card.warnings.map((text) => h("li", {}, text))) : null,
    h("p", { class: "quiet" }, `fires on ${active} of ${session.answer.tokens.length} tokens here; its maximum in the corpus is ${number(largest(latent))}`),
    active ? h("div", { class: "scroll" }, tokenBars(along(latent).map((one) => one?.value ?? 0), `activation of latent ${latent}`, "prompt-bars")) : null,
    promotes.length ? h("p", { class: "prompt-promotes" }, "raises ", promotes.map(([text]) => h("span", { class: "token" }, spaced(text)))) : null,
    can("steer") ? h("div", { class: "tools", role: "group", "aria-label": `Change latent ${latent}` },
      HOWS.map((how) => h("button", { type: "button", "data-testid": `add-${how}`, onclick: () => addEdit(latent, how) }, how))) : null);
  if (held) box.querySelector(`[data-testid="${held}"]`)?.focus();
  return undefined;
}
