// Change latents and see what is said next, with attention frozen and free side by side, among random controls.
import { h, number, refill, signed } from "../base/dom.js";
import { exports } from "../base/export.js";
import { editRow } from "./edits.js";
import { job } from "../base/job.js";
import { tokenBars } from "./promptBars.js";
import { asked, edits, requested, session, setEdits, setting, wish } from "./promptState.js";
import { chance } from "./promptTarget.js";
import { KINDS, standing, strip } from "../base/strip.js";
import { spaced } from "../base/tokens.js";
import { act } from "../base/transport.js";
import { state } from "../base/state.js";

const SIDES = [["frozen", "attention frozen", "patterns are held at those of the unchanged run"], ["free", "attention free", "patterns answer to the change"]];
const work = job("steer-status");
const settings = () => ({ controls: state.prompt_controls, latents: state.prompt_latents, seed: state.prompt_seed });
let result = null;

export function runEdits(box) {
  if (!session.answer || !edits().length) return undefined;
  return work.run("running the model unchanged, changed, and with controls …", async (signal) => {
    const found = await act("steer", { ...asked(), ...wish(), edits: requested(), ...settings() }, signal);
    if (signal.aborted) return "";
    result = found;
    drawResult(box);
    const random = byKind(found.free.controls, "kl").random ?? [];
    return random.length ? `attention free: KL ${number(found.free.kl)}, ${standing(found.free.kl, random, KINDS.random)}` : "done";
  });
}

// Controls' numbers by kind: { random: [...], latents: [...] }.
function byKind(controls, name) {
  return Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, controls.filter((one) => (one.kind ?? "random") === kind).map((one) => one[name])]));
}

export function forgetResult() {
  work.stop();
  work.say("");
  result = null;
}

export function stopSteering() {
  work.stop();
}

function share(one, name) {
  const [now, before] = [one[name], one.base];
  const sign = name === "base" ? "" : now > before * 1.02 ? " ↑" : now < before / 1.02 ? " ↓" : " =";
  return h("td", { class: { " ↑": "up", " ↓": "down" }[sign] }, h("span", { class: "prompt-bar", "aria-hidden": "true", style: { width: `${(44 * now).toFixed(1)}px` } }), chance(now), sign);
}

function resultTable() {
  return { columns: ["token", "id", "unchanged", "frozen", "free"], rows: result.tokens.map(({ token, id, base, frozen, free }) => [token, id, base, frozen, free]) };
}

function nextTable() {
  return h("div", { class: "scroll" }, h("table", { class: "grid", "data-testid": "steer-table" },
    h("thead", {}, h("tr", {}, ["token", "unchanged", "frozen", "free"].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, result.tokens.map((one) => h("tr", {}, h("th", { scope: "row" }, h("span", { class: "token" }, spaced(one.token))), ["base", "frozen", "free"].map((name) => share(one, name)))))));
}

function moved(title, list) {
  const between = ({ control_low: low, control_high: high }) => (low === null ? "" : `controls ${signed(low)} to ${signed(high)}`);
  return h("div", { class: "prompt-moved" }, h("h3", { title: "of the tokens that are at all likely, unchanged or changed" }, title), list.length ? h("ol", { class: "plain" }, list.slice(0, 6).map((one) => h("li", {},
    h("span", { class: "token" }, spaced(one.token)), h("b", { class: "num" }, signed(one.change)), h("span", { class: "quiet num" }, between(one))))) : h("p", { class: "quiet" }, "no likely token"));
}

// The scale of one number over all that is shown.
function scale(of) {
  const all = [0, ...SIDES.flatMap(([name]) => [result[name], ...(result[name]?.controls ?? [])]).filter(Boolean).map((one) => one[of])];
  return [Math.min(...all), Math.max(...all)];
}

function side([name, title, meaning]) {
  const { kl, change, controls, size = 0, raised = [], lowered = [], kl_tokens: along = [] } = result[name];
  const table = () => ({ columns: ["run", "kl", "change"], rows: [["changed", kl, change], ...controls.map((one) => [KINDS[one.kind] ?? one.kind, one.kl, one.change])] });
  const svg = () => document.querySelector(`[data-testid=strip-kl-${name}] svg`);
  return h("section", { class: "prompt-side", "data-testid": `side-${name}` }, h("div", { class: "head" }, h("h3", { title: meaning }, title), exports(title, { svg, table })),
    strip("KL", kl, byKind(controls, "kl"), scale("kl"), `strip-kl-${name}`),
    strip("change of the target", change, byKind(controls, "change"), scale("change"), `strip-change-${name}`),
    along.length === session.answer.tokens.length && along.length > 1
      ? [h("h3", {}, "KL after each token"), h("div", { class: "scroll" }, tokenBars(along.map((one) => one ?? 0), `KL with ${title}`, `kl-tokens-${name}`))] : null,
    size > 1 ? h("p", { class: "warnings" }, `What is written is up to ${number(size)} × as long as what stands there: far from anything the model meets.`) : null,
    raised.length || lowered.length ? h("div", { class: "prompt-two" }, moved("logits raised", raised), moved("logits lowered", lowered)) : null);
}

function drawResult(box) {
  const into = box.querySelector(".prompt-steer-result");
  if (!into) return;
  if (!result) return into.replaceChildren();
  refill(into, h("div", { class: "head" }, h("h3", {}, "What is said next"), exports("steered", { table: resultTable, json: () => result })), nextTable(), h("div", { class: "prompt-sides" }, SIDES.filter(([name]) => result[name]).map(side)),
    h("p", { class: "quiet" }, "KL in nats of the next token, unchanged against changed; the target is ", h("b", { class: "token" }, result.target),
      ". Each dot is a control: the same change at the same tokens, but along a random direction or another latent's, of the same length. The line is these changes."));
  return undefined;
}

function tools(box) {
  return h("div", { class: "tools" },
    h("button", { type: "button", class: "main", "data-testid": "run-edits", onclick: () => runEdits(box) }, "See the effect"),
    h("button", { type: "button", class: "slight", "data-testid": "no-edits", onclick: () => setEdits([]) }, "no changes"),
    h("span", { class: "choice" }, "controls:"), setting("controls", KINDS.random, "random directions of the same size, run beside the changes", [0, 32, 1], "steer-controls"),
    setting("latents", KINDS.latents, "other latents of the same dictionary: the harder control", [0, 32, 1], "steer-latents"), setting("seed", "seed", "of the controls", [0, 1_000_000, 1], "steer-seed"), work.element);
}

export function steering(box) {
  const list = edits();
  const held = box.contains(document.activeElement) ? document.activeElement : null;
  const [testid, at] = [held?.dataset.testid, [...box.querySelectorAll(".prompt-edit")].indexOf(held?.closest(".prompt-edit"))];
  refill(box, h("h2", {}, "Change it"),
    list.length ? [h("ol", { class: "plain", "data-testid": "edits" }, list.map(editRow)), tools(box)]
      : h("p", { class: "quiet", "data-testid": "no-edit" }, "Choose a latent and ablate, steer, set or scale it. Several changes act together."),
    h("div", { class: "prompt-steer-result", "data-testid": "steer-result" }));
  drawResult(box);
  if (testid) (box.querySelectorAll(".prompt-edit")[at] ?? box).querySelector(`[data-testid="${testid}"]`)?.focus();
}
