// The feature card of a chosen latent, small, beside the circuit: label, examples, logits.
import { h, number } from "../base/dom.js";
import { around, heat, line } from "../base/tokens.js";
import { act, ask, can, forget } from "../base/transport.js";

const [EXAMPLES, BEFORE, AFTER, LOGITS] = [5, 9, 4, 6];   // examples, tokens on each side of the one that fires, logits of each side

function example(one, most) {
  return h("li", {}, h("span", { class: "num" }, number(one.value)), h("span", { class: "text" }, line(one.tokens.length, around(one.focus, one.tokens.length, BEFORE, AFTER), (place) => {
    const value = one.values[place] ?? 0;
    const share = heat(value, most);
    return h("span", { class: place === one.focus ? "t focus" : "t", title: value ? `activation ${number(value)}` : null, style: share ? { "--heat-share": share } : {} }, one.tokens[place]);
  })));
}

function logits(title, pairs) {
  return h("p", { class: "logit-line" }, h("small", {}, title), pairs.slice(0, LOGITS).map(([token, value]) => h("span", { class: "bit token", title: number(value) }, token)));
}

function naming(one, answer, renamed) {
  if (!can("label")) return null;
  const input = h("input", { type: "text", value: answer.mark?.label ?? answer.label ?? "", maxlength: 400, "aria-label": `Label of latent ${one.index}`, "data-testid": "node-label", placeholder: "what is it?" });
  const told = h("span", { class: "quiet", role: "status" });
  const save = async (event) => {
    event.preventDefault();
    try {
      await act("label", { store: one.store, latent: one.index, label: input.value });
      forget(`stores/${one.store}`);
      told.textContent = "saved";
      renamed(one, input.value.trim());
    } catch (error) {
      told.textContent = error.message;
    }
  };
  return h("form", { class: "tools", onsubmit: save }, input, h("button", { type: "submit", "data-testid": "node-label-save" }, "Label"), told);
}

// Fill `box` with the card of a latent; `renamed(node, label)` is called when its label was changed here.
export async function nodeCard(box, one, renamed) {
  const answer = await ask(`stores/${one.store}/latents/${one.index}`).catch(() => null);
  if (!answer) return box.replaceChildren();
  const most = Math.max(...answer.examples.map(({ value }) => value ?? 0), 1e-9);
  return box.replaceChildren(...[naming(one, answer, renamed), (answer.warnings ?? []).length ? h("p", { class: "quiet" }, answer.warnings.map((warning) => warning.text ?? warning).join("; ")) : null,
    logits("raises", answer.top_logits), logits("lowers", answer.bottom_logits),
    h("ol", { class: "small-examples", "data-testid": "node-examples" }, answer.examples.slice(0, EXAMPLES).map((each) => example(each, most)))].filter(Boolean));
}
