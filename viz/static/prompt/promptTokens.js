// The prompt as tokens: one is chosen, all are coloured by the chosen latent, or by what the latents of each come to.
import { h, number } from "../base/dom.js";
import { along, measure, ofToken, rank, session, token } from "./promptState.js";
import { heat, spaced } from "../base/tokens.js";
import { set, state } from "../base/state.js";

// Per token the number that colours it, or null, and what that number is called.
function colouring() {
  const [by, { features, kept }] = [rank(), session.answer];
  if (state.latent !== null) {
    return { numbers: along(state.latent).map((row) => (row ? measure(row) : null)), of: `latent ${state.latent}: ${by}` };
  }
  const whole = features.map((rows, place) => {
    const numbers = kept[place] ? rows.map((row) => measure(ofToken(row))) : [];
    if (!numbers.length) return null;
    return by === "attribution" ? numbers.reduce((sum, one) => sum + one, 0) : Math.max(...numbers);
  });
  return { numbers: whole, of: by === "attribution" ? "attribution of all its latents" : `strongest latent: ${by}` };
}

function style(value, most) {
  const share = heat(Math.abs(value ?? 0), most, [8, 45]);
  return share ? { "--heat-share": share, ...(value < 0 ? { "--heat-now": "var(--blue)" } : {}) } : {};
}

export function move(by) {
  const count = session.answer?.tokens.length ?? 0;
  if (!count) return;
  const from = token() ?? (by > 0 ? -1 : count);
  const next = Math.min(Math.max(from + by, 0), count - 1);
  set({ prompt_token: next });
  document.querySelector(`.prompt-tokens [data-place="${next}"]`)?.focus();
}

function onkeydown(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const count = session.answer.tokens.length;
  if ((event.key === "Enter" || event.key === " ") && event.target.dataset.place) {
    event.preventDefault();
    event.stopPropagation();
    event.target.click();
    return;
  }
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -count, End: count };
  if (!(event.key in steps)) return;
  event.preventDefault();
  event.stopPropagation();
  move(steps[event.key]);
}

function option(text, place, { numbers }, most) {
  const { kept } = session.answer;
  const chosen = place === token();
  const value = numbers[place];
  const note = kept[place] ? "" : ", outside the dictionary's training rule";
  return h("span", { role: "option", class: `prompt-token${kept[place] ? "" : " outside"}`, "data-place": place, "data-testid": "prompt-token",
    "data-value": value === null ? null : number(value), tabindex: (token() ?? 0) === place ? 0 : -1, "aria-selected": String(chosen),
    "aria-label": `${place} ${text}${value === null ? "" : `: ${number(value)}`}${note}`, title: `${place}: ${value === null ? "–" : number(value)}${note}`,
    style: style(value, most), onclick: () => set({ prompt_token: chosen ? null : place }, { push: true }) }, spaced(text));
}

export function tokens(box) {
  const { answer } = session;
  const found = colouring();
  const sizes = found.numbers.filter((value) => value !== null).map(Math.abs);
  const most = Math.max(0, ...sizes);
  const at = token();
  const held = box.contains(document.activeElement) && document.activeElement.dataset.place;
  box.replaceChildren(
    h("div", { class: "prompt-tokens", role: "listbox", "aria-label": "Tokens of the prompt", "aria-orientation": "horizontal", "data-testid": "prompt-tokens", onkeydown },
      answer.tokens.map((text, place) => option(text, place, found, most))),
    h("p", { class: "quiet prompt-legend", "data-testid": "prompt-legend" }, state.latent !== null && !sizes.length ? `latent ${state.latent} fires on none of these tokens` : `coloured by ${found.of}, up to ${number(most)}`,
      state.latent === null ? null : h("button", { type: "button", class: "slight", "data-testid": "no-latent", onclick: () => set({ latent: null }, { push: true }) }, "no latent"),
      at === null ? null : h("button", { type: "button", class: "slight", "data-testid": "whole", onclick: () => set({ prompt_token: null }, { push: true }) }, "whole prompt")));
  if (held) box.querySelector(`[data-place="${at ?? held}"]`)?.focus();
}
