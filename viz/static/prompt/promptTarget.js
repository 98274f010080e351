// What the model would say next, and which of it the attribution is to.
import { h, number, refill } from "../base/dom.js";
import { session } from "./promptState.js";
import { spaced } from "../base/tokens.js";
import { set, state } from "../base/state.js";

// A probability: whole per cents where there are many, and none that is said to be 0.
export function chance(value) {
  return value >= 0.0995 ? `${(100 * value).toFixed(0)} %` : value >= 0.001 ? `${(100 * value).toFixed(1)} %` : "< 0.1 %";
}

function likely({ token, id, probability }, chosen) {
  const isTarget = chosen.includes(id);
  return h("li", {}, h("button", { type: "button", class: "prompt-next", "data-testid": "next-token", "aria-pressed": String(isTarget), "aria-label": `${token}, ${chance(probability)}`,
    title: "attribute to this token", onclick: () => set({ prompt_id: id, prompt_target: "" }, { push: true }) },
  h("span", { class: "token" }, spaced(token)), h("span", { class: "bar", "aria-hidden": "true", style: { width: `${(100 * probability).toFixed(1)}%` } }),
  h("span", { class: "num" }, chance(probability))));
}

export function target(box) {
  const { answer } = session;
  const held = box.contains(document.activeElement) ? document.activeElement.dataset.testid : null;
  const input = h("input", { type: "text", value: state.prompt_target, "aria-label": "Target of the attribution", placeholder: "token, or A||B", "data-testid": "target",
    maxlength: 200, spellcheck: "false", autocomplete: "off" });
  const submit = (event) => { event.preventDefault(); set({ prompt_target: input.value, prompt_id: null }, { push: true }); };
  refill(box, h("h2", {}, "Next token"),
    h("ol", { class: "plain", "data-testid": "next-tokens" }, answer.next.map((one) => likely(one, answer.target_ids))),
    h("form", { class: "tools prompt-target", onsubmit: submit }, input, h("button", { type: "submit", "data-testid": "use-target" }, "attribute to it"),
      state.prompt_target || state.prompt_id !== null ? h("button", { type: "button", class: "slight", "data-testid": "likeliest", onclick: () => set({ prompt_target: "", prompt_id: null }, { push: true }) }, "the likeliest") : null),
    h("p", { class: "quiet", "data-testid": "target-says" }, "attribution is to ", h("b", { class: "token" }, answer.target), ` after token ${answer.position}: ${number(answer.value)}`,
      " (logit less the vocabulary's mean, or a difference of two)"));
  if (held === "target") box.querySelector("[data-testid=target]").focus();
  else if (held === "next-token") box.querySelector(".prompt-next[aria-pressed=true]")?.focus();
}

