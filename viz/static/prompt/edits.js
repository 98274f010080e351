// The list of changes: which latent, how, how strongly, at which tokens.
import { h, number } from "../base/dom.js";
import { edits, HOWS, largest, placesOf, setEdits, token } from "./promptState.js";
import { label } from "./promptLatents.js";

const RANGES = { steer: [-5, 5, 0.1], set: [0, 5, 0.1], scale: [-5, 5, 0.1] };

function change(place, changes) {
  setEdits(edits().map((edit, at) => (at === place ? { ...edit, ...changes } : edit)), false);
}

function inUnits({ latent, how, amount: times }) {
  if (how === "scale") return "× its activation";
  const most = largest(latent);
  return most ? `× max = ${how === "steer" && times >= 0 ? "+" : ""}${number(times * most)}` : "in units of activation";
}

function amount(edit, place) {
  if (edit.how === "ablate") return h("span", { class: "quiet prompt-edit-amount" }, "to zero");
  const [low, high, step] = RANGES[edit.how];
  const says = h("span", { class: "quiet" }, inUnits(edit));
  const done = (event) => {
    const value = Number(event.target.value);
    if (event.target.value !== "" && Number.isFinite(value)) change(place, { amount: value });
  };
  const exact = h("input", { type: "number", step: "any", value: edit.amount, "aria-label": `strength for latent ${edit.latent}, exactly`, "data-testid": "edit-amount", onchange: done });
  const range = h("input", { type: "range", min: low, max: high, step, value: edit.amount, "aria-label": `strength for latent ${edit.latent}`, "data-testid": "edit-slider", onchange: done,
    oninput: (event) => { exact.value = event.target.value; says.textContent = inUnits({ ...edit, amount: Number(event.target.value) }); } });
  return h("span", { class: "prompt-edit-amount" }, range, exact, says);
}

function places(edit, place) {
  const at = token();
  const done = (event) => {
    const isGood = placesOf(event.target.value) !== undefined;
    event.target.setCustomValidity(isGood ? "" : "Give tokens such as 3, 5-7; none means all.");
    if (isGood) change(place, { places: event.target.value });
    else event.target.reportValidity();
  };
  return h("span", { class: "prompt-edit-places" }, h("span", { class: "quiet" }, "at"),
    h("input", { type: "text", value: edit.places, placeholder: "all tokens", maxlength: 80, "aria-label": `tokens at which latent ${edit.latent} is changed, such as 3, 5-7`,
      title: "such as 3, 5-7; empty: all tokens that the dictionary answers for, and those that are written", "data-testid": "edit-places", onchange: done }),
    at === null || edit.places === String(at) ? null : h("button", { type: "button", class: "slight", "data-testid": "edit-here", onclick: () => change(place, { places: String(at) }) }, `only ${at}`));
}

export function editRow(edit, place) {
  return h("li", { class: "prompt-edit", "data-testid": "edit" },
    h("span", { class: "prompt-edit-latent" }, h("b", { class: "id" }, edit.latent), " ", label(edit.latent)),
    h("select", { "aria-label": `how latent ${edit.latent} is changed`, "data-testid": "edit-how", onchange: (event) => change(place, { how: event.target.value }) },
      HOWS.map((how) => h("option", { value: how, selected: how === edit.how }, how))),
    amount(edit, place), places(edit, place),
    h("button", { type: "button", class: "slight prompt-edit-remove", "aria-label": `do not change latent ${edit.latent}`, "data-testid": "edit-remove",
      onclick: () => setEdits(edits().filter((_, at) => at !== place)) }, "×"));
}
