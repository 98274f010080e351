// What the latent does to the prediction at each shown token: the change of the loss without it, and of the logits.
//
// Asked for after the card is shown, because it needs the model; kept for as long as the page is open.
import { h, signed } from "../base/dom.js";
import { Recent } from "../base/recent.js";
import { act, can, frozen } from "../base/transport.js";

const KNOWN = new Recent(100);   // "store latent" → { rows: Map(row → effect), note }

function known(store, latent) {
  const name = `${store} ${latent}`;
  const found = KNOWN.get(name) ?? { rows: new Map(), note: "" };
  KNOWN.set(name, found);
  return found;
}

// The effects of one example, or null where they were not asked for.
export function effectOf(store, latent, row) {
  return known(store, latent).rows.get(row) ?? null;
}

// Put the colours of the loss on the tokens of an example: `spans` in the order of the example's tokens.
export function underline(spans, effect) {
  if (!effect) return;
  const most = Math.max(...effect.loss.map((value) => Math.abs(value ?? 0)), 0.05);
  spans.forEach((span) => {
    const value = effect.loss[Number(span.dataset.place)] ?? 0;
    if (Math.abs(value) < 0.005) return;
    span.classList.add(value > 0 ? "helps" : "hurts");
    span.style.setProperty("--loss-share", `${(25 + (75 * Math.abs(value)) / most).toFixed(0)}%`);
  });
}

function changes(title, pairs) {
  return pairs?.length ? h("div", {}, h("b", {}, title), pairs.slice(0, 5).map(([token, value]) => h("span", { class: "tip-logit" }, h("bdi", {}, token), ` ${signed(value)}`))) : null;
}

// The lines of a token's tip.
export function effectLines(effect, place) {
  if (!effect) return null;
  const loss = effect.loss[place];
  return [loss === null || loss === undefined ? null : h("div", {}, `loss without it ${signed(loss)} nats: this token is predicted ${loss > 0 ? "better" : "worse"} with it`),
    changes("raises here", effect.up?.[place]), changes("lowers here", effect.down?.[place])];
}

// A button that asks for the effects of the examples that are shown; `drawn` is called when they have come. A saved page says that it has none.
export function effectsButton(store, latent, examples, drawn) {
  if (!examples().length) return null;
  if (frozen) return h("span", { class: "quiet", "data-testid": "no-effects" }, "Effects on the loss need the model, so a saved page carries none.");
  if (!can("effects")) return null;
  const mine = known(store, latent);
  const told = h("span", { class: "quiet", role: "status" }, mine.rows.size ? mine.note : "");
  const ask = async () => {
    const rows = examples().map((one) => one.row).filter((row) => !mine.rows.has(row));
    button.disabled = true;
    told.textContent = "running the model without this latent…";
    try {
      const found = rows.length ? await act("effects", { store, latent, rows }) : { examples: {} };
      for (const [row, effect] of Object.entries(found.examples ?? {})) mine.rows.set(Number(row), effect);
      mine.note = found.note || mine.note;
      told.textContent = mine.note;
      legend.hidden = false;
      drawn();
    } catch (error) {
      told.textContent = `no effects: ${error.message}`;
    }
    button.disabled = false;
  };
  const button = h("button", { type: "button", class: "small", "data-testid": "effects", onclick: ask, title: "The model is run without this latent on the shown examples" }, "Effect on the loss");
  const legend = h("span", { class: "legend-loss" }, h("u", { class: "helps" }, "predicted better with it"), h("u", { class: "hurts" }, "worse"));
  legend.hidden = !mine.rows.size;
  return h("span", { class: "effects" }, button, told, legend);
}
