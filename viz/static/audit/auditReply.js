// One call of an audit, folded: its tool and arguments, and when it is opened all that it answered. Text of models and corpora is marked.
import { h, number, refill, words } from "../base/dom.js";
import { ask } from "../base/transport.js";
import { set, state } from "../base/state.js";

const COLUMNS = 20;   // of a list of things drawn as a table; more stand each in its own
const SHORT = 24;     // characters of texts that stand side by side; of longer ones each has a line, numbered from 0 as replies number their prompts

function isThing(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function isUntrusted(value) {
  return isThing(value) && Object.keys(value).length === 1 && typeof value.untrusted === "string";
}

function isPlain(value) {
  return !Array.isArray(value) && (!isThing(value) || isUntrusted(value));
}

function isLong(value) {
  return String(isUntrusted(value) ? value.untrusted : value).length > SHORT;
}

// A list of things with few fields in all as a table; null for another list.
function grid(list) {
  const names = [...new Set(list.flatMap((each) => (isThing(each) && !isUntrusted(each) ? Object.keys(each) : [])))];
  if (!names.length || names.length > COLUMNS || !list.every((each) => isThing(each) && !isUntrusted(each))) return null;
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": names.map(words).join(", ") }, h("table", { class: "grid reply-grid" }, h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, words(name))))),
    h("tbody", {}, list.map((each) => h("tr", {}, names.map((name) => h("td", {}, Object.hasOwn(each, name) ? replyView(each[name]) : "–")))))));
}

// Anything that a tool answered as elements.
export function replyView(value) {
  if (isUntrusted(value)) return h("bdi", { class: "untrusted", title: "text of a model or a corpus" }, value.untrusted);
  if (typeof value === "string") return h("bdi", {}, value);
  if (Array.isArray(value)) {
    if (!value.length) return "none";
    if (value.every(isPlain) && !value.some(isLong)) return value.flatMap((each, at) => [at ? ", " : "", replyView(each)]);
    return grid(value) ?? h("ol", { class: "reply-list", start: 0 }, value.map((each) => h("li", {}, replyView(each))));
  }
  if (!isThing(value)) return number(value);
  return h("table", { class: "facts reply" }, h("tbody", {}, Object.entries(value).map(([name, inner]) => h("tr", {}, h("th", { scope: "row" }, words(name)), h("td", {}, replyView(inner))))));
}

async function fill(box, place, id) {
  refill(box, h("p", { class: "quiet", role: "status" }, "reading …"));
  try {
    const call = await ask(`audits/${place}/calls/${id}`);
    if (!call) return refill(box, h("p", { class: "quiet" }, "This page does not carry the reply."));
    return refill(box, h("p", { class: "reply-part" }, "Asked"), Object.keys(call.given ?? {}).length ? replyView(call.given) : h("p", { class: "quiet" }, "nothing more"), h("p", { class: "reply-part" }, call.ok ? "Answered" : "Refused"), replyView(call.reply));
  } catch (error) {
    return refill(box, h("p", { class: "wrong" }, error.message));
  }
}

// The call as an element that unfolds, open or not.
export function callOf(place, line, isOpen) {
  const box = h("div", { class: "reply-box" });
  const one = h("details", { class: line.ok ? "call" : "call failed", "data-testid": "audit-call", "data-call": line.id, open: isOpen, ontoggle: () => {
    if (one.open && !box.childNodes.length) fill(box, place, line.id);
    if (one.open) set({ audit_call: line.id });
    else if (state.audit_call === line.id) set({ audit_call: "" });
  } },
  h("summary", {}, h("span", { class: "id" }, line.id), ` ${line.tool} `, h("bdi", { class: "quiet" }, line.arguments), line.ok ? null : h("span", { class: "wrong" }, ` refused: ${line.error ?? ""}`)), box);
  if (one.open) fill(box, place, line.id);
  return one;
}
