// What an audit found: each claim with the results that it rests on, and every call that was made.
import { choice, details, empty, facts, flat, h, number, refill, segments, tile } from "../base/dom.js";
import { exports } from "../base/export.js";
import { key } from "../base/keys.js";
import { ask } from "../base/transport.js";
import { callOf } from "./auditReply.js";
import { declare, on, set, state } from "../base/state.js";

const SHOWS = { all: "all", supported: "supported", open: "open", rejected: "rejected" };
const FEW = 100;   // calls that are listed before one asks for more
declare({ audit_show: "all", audit_query: "", audit_call: "" }, { audit: 0 });
const shown = {};
const here = (run) => () => state.pane === "audit" && run();

on(["audit"], here(() => shown.draw?.()));
on(["audit_show"], here(() => { if (shown.about) { controls(); findings(); } }));
on(["audit_query"], here(() => { if (shown.about) { shown.most = FEW; calls(); } }));

function known() {
  return Object.hasOwn(SHOWS, state.audit_show) ? state.audit_show : "all";
}

// The call that the address names is open: under the first claim that cites it, else in the list of all.
function isNamed(id) {
  const isFirst = state.audit_call === id && !shown.opened;
  if (isFirst) shown.opened = true;
  return isFirst;
}

function evidence(ids) {
  const { about, lines, place } = shown;
  if (!ids.length) return h("p", { class: "quiet" }, "It cites no result.");
  return ids.map((id) => (lines.has(id) ? callOf(place, lines.get(id), isNamed(id)) : h("p", { class: "wrong" }, `It cites ${id}, which is not in the transcript${about.lines.length ? "" : ", which is empty"}.`)));
}

function finding(each) {
  return h("li", { class: `finding ${each.status}`, "data-testid": "finding" }, h("h3", {}, h("span", { class: "chip" }, each.status), " ", h("bdi", {}, each.statement || each.id)),
    each.because ? h("p", { class: "because" }, h("bdi", {}, each.because)) : null, evidence(each.evidence));
}

function findings() {
  const list = shown.about.findings.filter(({ status }) => known() === "all" || status === known());
  refill(shown.findings, list.length ? h("ol", { class: "findings plain" }, list.map(finding)) : empty(shown.about.findings.length ? "No finding of this kind." : "This audit has no findings."));
}

function controls() {
  const counts = Object.fromEntries(Object.entries(SHOWS).map(([name, text]) => [name, name === "all" ? text : `${text} ${shown.about[name]}`]));
  refill(shown.controls, segments("Show", counts, known(), (name) => set({ audit_show: name }), "audit-show"));
}

function calls() {
  const { about, place } = shown;
  const parts = state.audit_query.toLowerCase().split(/\s+/).filter(Boolean);
  const list = about.lines.filter(({ id, tool, arguments: given, error }) => parts.every((part) => `${id} ${tool} ${given} ${error ?? ""}`.toLowerCase().includes(part)));
  const more = list.length > shown.most ? h("button", { type: "button", "data-testid": "audit-more", onclick: () => { shown.most += FEW; calls(); } }, `Show ${number(Math.min(FEW, list.length - shown.most))} more`) : null;
  shown.count.textContent = `${number(list.length)} of ${number(about.lines.length)} calls`;
  refill(shown.calls, list.slice(0, shown.most).map((line) => callOf(place, line, isNamed(line.id))), more);
}

async function draw(content, index) {
  shown.draw = () => draw(content, index);
  const place = Math.min(state.audit, index.audits.length - 1);
  if (place !== state.audit) Object.assign(state, { audit: place });
  const about = await ask(`audits/${place}`);
  if (!about) return content.replaceChildren(h("h1", {}, "Audit"), empty("This page carries no such audit."));
  Object.assign(shown, { about, place, most: FEW, opened: false, lines: new Map(about.lines.map((line) => [line.id, line])), findings: h("div"), controls: h("div", { class: "tools" }), calls: h("div", { "data-testid": "audit-calls" }), count: h("span", { class: "quiet", role: "status" }) });
  let waiting = null;
  const search = h("input", { id: "audit-search", type: "search", value: state.audit_query, maxlength: 400, placeholder: "Tool or argument (/)", "aria-label": "Search calls", "data-testid": "audit-search",
    oninput: () => { clearTimeout(waiting); waiting = setTimeout(() => set({ audit_query: search.value }), 120); } });
  const table = () => ({ columns: ["finding", "status", "statement", "because", "evidence"], rows: about.findings.map((each) => [each.id, each.status, each.statement, each.because, each.evidence.join(" ")]) });
  refill(content, h("div", { class: "head" }, h("h1", {}, "Audit ", h("small", {}, about.name)), h("div", { class: "tools" }, choice("Audit", index.audits.map(({ name }) => name), place, (audit) => set({ audit, audit_call: "", audit_query: "", audit_show: "all" }, { push: true })), exports(`${about.name} findings`, { table, json: () => about }))),
    about.is_finished ? null : h("ul", { class: "warnings", "data-testid": "audit-unfinished" }, h("li", {}, "This audit has no report: it was stopped, or is still going. Its calls so far are below.")),
    about.summary ? h("p", { class: "audit-summary", "data-testid": "audit-summary" }, h("bdi", {}, about.summary)) : null,
    h("div", { class: "tiles" }, tile(number(about.supported), "claims supported"), tile(number(about.open), "open"), tile(number(about.rejected), "rejected"), tile(number(about.calls), "calls"), tile(number(about.failed), "of them refused")),
    h("section", { "aria-label": "Findings" }, h("div", { class: "head" }, h("h2", {}, "Findings"), shown.controls), shown.findings),
    about.note_texts.length ? [h("h2", {}, "Notes"), h("ul", { class: "plain" }, about.note_texts.map(({ text, evidence: ids }) => h("li", {}, h("bdi", {}, text), ids.length ? h("small", {}, ` ${ids.join(", ")}`) : null)))] : null,
    h("section", { "aria-label": "Every call" }, h("div", { class: "head" }, h("h2", {}, "Every call"), h("div", { class: "tools" }, search, shown.count)), shown.calls), details("How it was made", facts(flat(about.about), "audit-made")));
  controls();
  findings();
  calls();
  return undefined;
}

key("f", "only what is supported, or all", () => set({ audit_show: state.audit_show === "supported" ? "all" : "supported" }), "audit");
key("/", "find a call", () => document.getElementById("audit-search")?.focus(), "audit");
key("Escape", "fold the open call", () => { for (const one of document.querySelectorAll(".call[open]")) one.open = false; }, "audit");

export const audit = { name: "audit", title: "Audit", wanted: (index) => index.audits.length > 0, called: (index) => index.audits[Math.min(state.audit, index.audits.length - 1)]?.name, draw };
