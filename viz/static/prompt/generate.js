// Let the model go on writing, unchanged and with the edits, piece by piece, side by side.
import { h, refill } from "../base/dom.js";
import { exports } from "../base/export.js";
import { job } from "../base/job.js";
import { asked, edits, requested, session, setting } from "./promptState.js";
import { stream } from "../base/transport.js";
import { state } from "../base/state.js";

const SETTINGS = [["tokens", "tokens", "tokens that are written", [1, 500, 1], "generate-tokens"], ["temperature", "temperature", "0 takes the likeliest token each time", [0, 10, 0.1], "generate-temperature"],
  ["draw", "seed", "of the choice; the same seed writes the same", [0, 1_000_000, 1], "generate-seed"]];
const settings = () => ({ tokens: Math.max(state.prompt_tokens, 1), temperature: Number(state.prompt_temperature) || 0, seed: state.prompt_draw });
const written = { base: "", changed: "" };
const work = job("generate-status");

function column(title, which) {
  return h("section", { class: "prompt-side" }, h("h3", {}, title), h("p", { class: "prompt-written", "data-testid": `written-${which}`, "aria-live": "off", tabindex: 0, "aria-label": title }, written[which]));
}

export function write(box) {
  if (!session.answer) return undefined;
  return work.run("writing …", async (signal) => {
    Object.assign(written, { base: "", changed: "" });
    for (const text of box.querySelectorAll(".prompt-written")) text.textContent = "";
    let failed = null;
    await stream("generate", { ...asked(), edits: requested(), ...settings() }, (line) => {
      if (signal.aborted) return;
      if (line.error) failed = line.error;
      if (!(line.which in written)) return;
      written[line.which] += line.piece;
      const text = box.querySelector(`[data-testid=written-${line.which}]`);
      if (text) text.textContent = written[line.which];
    }, signal);
    if (failed) throw new Error(failed);
    return "written";
  });
}

export function forgetWritten() {
  work.stop();
  Object.assign(written, { base: "", changed: "" });
}

export function stopWriting() {
  work.stop();
}

export function writing(box) {
  const held = box.contains(document.activeElement) ? document.activeElement.dataset.testid : null;
  refill(box, h("div", { class: "head" }, h("h2", {}, "Go on writing"),
    exports("written", { json: () => ({ ...asked(), edits: requested(), ...settings(), written }), table: () => ({ columns: ["unchanged", "changed"], rows: [[written.base, written.changed]] }) })),
    h("div", { class: "tools" }, h("button", { type: "button", class: "main", "data-testid": "write", onclick: () => write(box) }, "Write"),
      SETTINGS.map((each) => setting(...each)), work.element),
    h("div", { class: "prompt-sides" }, column("unchanged", "base"), edits().length || written.changed ? column("changed", "changed") : null));
  if (held) box.querySelector(`[data-testid="${held}"]`)?.focus();
}
