// The pane of latents: the list of all of them beside the page of one.
import { card, cardAnswer, redrawExample, redrawExamples, redrawScale } from "./card.js";
import { h, number } from "../base/dom.js";
import { key } from "../base/keys.js";
import { listOf } from "./latentsList.js";
import { opened, pane } from "./latentsTable.js";
import { edit, star, undo } from "./marks.js";
import { nextKind } from "./examples.js";
import { ask, forget } from "../base/transport.js";
import { on, set, state } from "../base/state.js";

const NARROW = "(max-width: 899px)";

// Asked for as soon as the address is read, so that the first paint of a deep link waits for one round to the server, not for three.
on(["latent"], () => {
  if (!pane.open && state.pane === "latents" && state.latent !== null) for (const answer of [cardAnswer(state.store, state.latent), ask(`stores/${state.store}`)]) answer.catch(() => {});
});
on(["query", "find"], () => pane.search?.(true));
on(["sort", "filter"], () => pane.arrange?.(true));
on(["store"], () => pane.reload?.());
on(["latent"], () => pane.select?.());
on(["intervals"], redrawExamples);
on(["example"], redrawExample);
on(["bins"], redrawScale);

// Select the latent `by` rows or pages further down the list, or at one end of it.
async function step(by, unit = () => 1) {
  await pane.listed;   // a key may be pressed before the list is there
  if (!pane.places?.length) return;
  const at = pane.places.indexOf(pane.table.placeOf(state.latent));
  const next = pane.places[Math.min(Math.max(at < 0 ? 0 : at + by * unit(), 0), pane.places.length - 1)];
  set({ latent: pane.table.latents[next], example: null });
}

pane.step = step;

async function openCard() {
  if (state.latent === null) await step(0);
  await pane.shown;
  document.querySelector(".card-title")?.focus();
}

// Ask for the cards on both sides of the shown one, so that the next key finds them here.
function ahead(table) {
  const at = pane.places.indexOf(table.placeOf(state.latent));
  for (const place of [pane.places[at + 1], pane.places[at - 1]]) if (place !== undefined && at >= 0) cardAnswer(table.store, table.latents[place]);
}

// The first latent of the list that is neither dead nor dense.
function firstInteresting(table) {
  const density = table.columns.density;
  const found = pane.places.find((place) => density && density[place] > 0 && density[place] < 0.01);
  return table.latents[found ?? pane.places[0]];
}

function said(table, latent, mark) {
  table.labels.set(latent, mark.shown);
  table.stars.set(latent, mark.star);
  for (const path of [`stores/${table.store}/marks`, `stores/${table.store}/latents/${latent}`, `stores/${table.store}/columns/label_score`]) forget(path);
  pane.redraw?.();
}

async function draw(content, index) {
  pane.open = true;
  pane.reload = async () => {
    const store = Math.min(state.store, index.stores.length - 1);
    if (store !== state.store) return set({ store });
    Object.assign(pane, { table: null, found: null, places: [], search: null, arrange: null, reveal: null });
    const place = { store, total: index.stores[store].latents, name: index.stores[store].name };
    const [box, side] = [h("section", { class: "cardbox", "aria-label": "Feature card" }), h("section", { class: "list" })];
    content.replaceChildren(side, box);
    const soon = ask(`stores/${store}`);
    const changed = (latent, mark) => pane.table && said(pane.table, latent, mark);
    pane.select = async () => {
      content.classList.toggle("chosen", state.latent !== null);
      pane.reveal?.();
      pane.shown = card(box, place, state.latent, () => pane.table?.about, soon, changed);
      await pane.shown;
      if (pane.table) ahead(pane.table);
    };
    if (state.latent !== null) {   // the card is what was asked for: the list, sorted over all latents, comes a frame later
      const first = pane.select();
      pane.listed = first.then(frame).then(() => fillList(side, store, index));
      return first;
    }
    pane.listed = fillList(side, store, index);
    await pane.listed;
    if (state.latent === null && !matchMedia(NARROW).matches && pane.places.length) set({ latent: firstInteresting(pane.table) });
    return undefined;
  };
  await pane.reload();
}

const frame = () => new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));

async function fillList(side, store, index) {
  const table = await opened(store, index);
  if (store !== state.store || !side.isConnected && side.parentNode === null) return;
  pane.table = table;
  side.replaceWith(listOf(table, index));
  await pane.search();
  requestAnimationFrame(() => pane.reveal?.());
}

function goTo() {
  const total = pane.table?.total ?? 0;
  const input = h("input", { type: "number", min: 0, max: total - 1, required: true, "aria-label": "Number of the latent", "data-testid": "goto" });
  const dialog = h("dialog", { "aria-label": "Go to a latent", onclose: () => dialog.remove() }, h("form", { method: "dialog", onsubmit: () => set({ pane: "latents", latent: Number(input.value), example: null }, { push: true }) },
    h("label", { class: "choice" }, h("span", {}, `Latent (0 to ${number(total - 1)})`), input), h("button", { type: "submit" }, "Go")));
  document.body.append(dialog);
  dialog.showModal();
}

function otherStore(by) {
  const count = document.querySelectorAll(".list .choice select[aria-label=Store] option").length;
  if (count > 1) set({ store: (state.store + by + count) % count, latent: null, example: null }, { push: true });
}

for (const [name, meaning, run] of [["j", "next latent", () => step(1)], ["k", "previous latent", () => step(-1)], ["PageDown", "a page further", () => step(1, () => pane.page())],
  ["PageUp", "a page back", () => step(-1, () => pane.page())], ["Home", "first of the list", () => step(-Infinity)], ["End", "last of the list", () => step(Infinity)],
  ["Enter", "open: move to the card", openCard], ["l", "label", () => edit("label")], ["n", "note", () => edit("note")], ["t", "tag", () => edit("tags")], ["s", "star", star], ["u", "undo the latest change", undo],
  ["[", "previous store", () => otherStore(-1)], ["]", "next store", () => otherStore(1)], ["x", "examples by the next kind of interval", async () => nextKind((await ask(`stores/${state.store}`)) ?? {})],
  ["g", "go to a latent by its number", goTo]]) key(name, meaning, run, "latents");
key("/", "search latents", async () => {
  const box = () => document.querySelector("#search");
  set({ pane: "latents" });
  if (!box()) await pane.listed;   // typed before the list is there, or from another pane
  if (!box()) requestAnimationFrame(() => box()?.focus());
  box()?.focus();
}, null, () => document.getElementById("tab-latents") !== null);

export const latents = { name: "latents", title: "Latents", wanted: (index) => index.stores.length > 0, draw, called: () => (state.latent === null ? null : `Latent ${state.latent}`) };
