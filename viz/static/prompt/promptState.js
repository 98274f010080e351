// What the parts of the prompt page share: the state in the address, the text, the server's answer, the list of edits.
import { h } from "../base/dom.js";
import { declare, set, state } from "../base/state.js";

export const RANKS = ["activation", "surprise", "attribution"];
export const HOWS = ["ablate", "steer", "set", "scale"];
const LONGEST = 1200;     // characters of a text that the address carries
declare({ prompt: "", prompt_chat: "", prompt_rank: "activation", prompt_target: "", prompt_edits: "", prompt_temperature: "0" },
  { prompt_token: null, prompt_id: null, prompt_controls: 8, prompt_latents: 8, prompt_seed: 0, prompt_tokens: 40, prompt_draw: 0 });

// `most` is the largest activation of each latent in the corpus, `names` what is known of latents (row answers) by number.
export const session = { text: "", store: 0, answer: null, most: null, names: {}, labels: {} };

export function rank() {
  return RANKS.includes(state.prompt_rank) ? state.prompt_rank : RANKS[0];
}

// The part of a request that says what the prompt is.
export function asked() {
  const prompt = state.prompt_chat ? { messages: [{ role: "user", content: session.text }] } : { text: session.text };
  return { store: session.store, ...prompt };
}

// A number of the state in a field of its own, kept within its ends. `name` is its key less "prompt_".
export function setting(name, text, meaning, [low, high, step], testid) {
  const key = `prompt_${name}`;
  return h("label", { class: "choice", title: meaning }, h("span", {}, text), h("input", { type: "number", min: low, max: high, step, value: state[key], "data-testid": testid,
    onchange: (event) => {
      const value = Math.min(Math.max(Number(event.target.value) || 0, low), high);
      event.target.value = value;
      set({ [key]: typeof state[key] === "string" ? String(value) : Math.round(value) });
    } }));
}

// What attribution is to: a token's id where one was picked, a text where it was typed, else the likeliest next token.
export function wish() {
  return state.prompt_id !== null ? { target: state.prompt_id } : state.prompt_target ? { target: state.prompt_target } : {};
}

// Keep a text for later requests, and in the address where it is short.
export function keepText(text) {
  session.text = text;
  set({ prompt: text.length <= LONGEST ? text : "" }, { push: true });
  return text.length <= LONGEST;
}

// One active latent as { latent, value, bits, low, high, attribution }; one of the whole prompt has `tokens` and `position` too.
export function ofToken([latent, value, bits, low, high, attribution]) {
  return { latent, value, bits, low, high, attribution };
}

function ofPrompt([latent, tokens, position, value, bits, attribution]) {
  return { latent, tokens, position, value, bits, attribution };
}

// What a row is ranked by; what is not known comes last.
export function measure(row, by = rank()) {
  if (by === "attribution") return row.attribution ?? 0;
  return (by === "surprise" ? row.bits : row.value) ?? 0;
}

// The chosen token's place, or null: the whole prompt.
export function token() {
  return session.answer && state.prompt_token !== null && state.prompt_token < session.answer.tokens.length ? state.prompt_token : null;
}

// The latents of the chosen token or of the whole prompt, best first.
export function ranked() {
  if (!session.answer) return [];
  const at = token();
  const found = at === null ? session.answer.totals.map(ofPrompt) : session.answer.features[at].map(ofToken);
  const size = (row) => Math.abs(measure(row));
  return found.sort((a, b) => size(b) - size(a) || b.value - a.value || a.latent - b.latent);
}

// A latent on every token: the row of that token, or null.
export function along(latent) {
  return session.answer.features.map((rows) => {
    const found = rows.find(([other]) => other === latent);
    return found ? ofToken(found) : null;
  });
}

export function largest(latent) {
  const value = session.most?.[latent];
  return value > 0 ? value : null;
}

// What a latent is called in words: its label, or the text of its strongest example.
export function wordsOf(latent) {
  const row = session.names[latent];
  return row?.label ?? session.labels[latent] ?? (row ? `${row.before}${row.token}${row.after}` : "");
}

// "3, 5-7" → [3, 5, 6, 7]; null for all tokens; undefined for what is no list of places.
export function placesOf(text, most = 100_000) {
  const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
  if (!parts.length) return null;
  const places = new Set();
  for (const part of parts) {
    const found = /^(\d{1,6})(?:\s*-\s*(\d{1,6}))?$/.exec(part);
    if (!found) return undefined;
    const [first, last] = [Number(found[1]), Number(found[2] ?? found[1])];
    if (last < first || last >= most) return undefined;
    for (let place = first; place <= last; place += 1) places.add(place);
  }
  return [...places].sort((a, b) => a - b);
}

// The edits in the address: "latent:how:amount:places" with ";" between; amounts of steer and set in multiples of the latent's maximum.
export function edits() {
  return state.prompt_edits.split(";").map((part) => {
    const [latent, how, amount = "1", places = ""] = part.split(":");
    const isEdit = /^\d{1,9}$/.test(latent) && HOWS.includes(how) && Number.isFinite(Number(amount)) && placesOf(places) !== undefined;
    return isEdit ? { latent: Number(latent), how, amount: Number(amount), places } : null;
  }).filter(Boolean);
}

export function setEdits(list, push = true) {
  set({ prompt_edits: list.map(({ latent, how, amount, places }) => [latent, how, amount, places.replace(/\s/g, "")].join(":")).join(";") }, { push });
}

export function addEdit(latent, how) {
  setEdits([...edits(), { latent, how, amount: how === "scale" ? 2 : 1, places: "" }]);
}

// The edits as the server wants them: amounts in units of activation.
export function requested() {
  return edits().map(({ latent, how, amount, places }) => {
    const unit = how === "steer" || how === "set" ? (largest(latent) ?? 1) : 1;
    return { latent, how, amount: how === "ablate" ? 0 : amount * unit, positions: placesOf(places) };
  });
}
