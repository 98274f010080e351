// Both dictionaries on a text that is typed in: which latents of A fire, whether their partners in B do, and what B has besides.
import { exports } from "../base/export.js";
import { h, link, number } from "../base/dom.js";
import { job } from "../base/job.js";
import { act, can } from "../base/transport.js";
import { declare, set, state } from "../base/state.js";
import { spaced } from "../base/tokens.js";

const ASKED = 64;        // latents of each side on a token that are asked for: a partner may fire weakly
const TOP = 16;          // of these, how many are shown
const LONGEST = 1200;    // characters of a text that the address carries
declare({ compare_text: "" }, { compare_token: null });

// Active latents of one side: of a token, or the strongest of the whole text; latent → value.
function active(answer, place) {
  const rows = place === null ? answer.totals.map(([latent, , , value]) => [latent, value]) : answer.features[place].map(([latent, value]) => [latent, value]);
  return new Map(rows.sort((one, other) => other[1] - one[1]));
}

function joined(a, b, partnerOf) {
  const met = new Set();
  const rows = [...a].slice(0, TOP).map(([latent, value]) => {
    const partner = partnerOf(latent);
    const other = partner !== null && b.has(partner) ? b.get(partner) : null;
    if (other !== null) met.add(partner);
    return { latent, value, partner, other };
  });
  return [...rows, ...[...b].slice(0, TOP).filter(([latent]) => !met.has(latent)).map(([partner, other]) => ({ latent: null, value: null, partner, other }))];
}

function bar(value, most, side) {
  return h("td", { class: "compare-bar" }, value === null ? h("span", { class: "quiet" }, "–") : [h("i", { class: `side-${side}`, style: { width: `${Math.max(60 * (value / most), 1).toFixed(1)}%` } }), h("span", { class: "num" }, number(value))]);
}

function rowsTable(rows, { a, b }) {
  const most = [Math.max(...rows.map(({ value }) => value ?? 0), 1e-9), Math.max(...rows.map(({ other }) => other ?? 0), 1e-9)];
  const to = (store, latent, letter) => (latent === null ? h("span", { class: "quiet" }, "–") : link({ pane: "latents", store, latent, query: "", filter: "" }, { "data-testid": `text-${letter}` }, latent));
  return h("table", { class: "grid compare-text-table", "data-testid": "compare-text-table" }, h("thead", {}, h("tr", {}, ["A", "fires", "partner, or only in B", "fires"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", { class: row.latent === null || row.other === null ? "alone" : "" }, h("td", {}, to(a, row.latent, "a")), bar(row.value, most[0], "a"), h("td", {}, to(b, row.partner, "b")), bar(row.other, most[1], "b")))));
}

function strip(tokens, pick) {
  const onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -tokens.length, End: tokens.length }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || !by) return;
    event.preventDefault();
    event.stopPropagation();
    pick(Math.min(Math.max((state.compare_token ?? -1) + by, 0), tokens.length - 1), true);
  };
  return h("div", { class: "compare-tokens", role: "listbox", "aria-label": "Tokens of the text", "aria-orientation": "horizontal", onkeydown }, tokens.map((text, place) => h("span", { role: "option", class: "compare-token", "data-testid": "compare-token", "data-place": place,
    tabindex: place === (state.compare_token ?? 0) ? 0 : -1, "aria-selected": String(place === state.compare_token), onclick: () => pick(place === state.compare_token ? null : place) }, spaced(text))));
}

// The section, or null where this host cannot run the models.
export function bothOnText(ends, answer, partnerOf) {
  if (!can("features")) return null;
  const work = job("compare-text-job");
  const out = h("div", { "data-testid": "compare-text" });
  const input = h("textarea", { rows: 2, "aria-label": "Text for both", "data-testid": "compare-text-input", placeholder: "A text for both" });
  input.value = state.compare_text;
  let found = null;

  function show(focus = false) {
    const [a, b] = found;
    const isOne = a.tokens.length === b.tokens.length && a.tokens.every((token, place) => token === b.tokens[place]);
    const place = isOne && state.compare_token !== null && state.compare_token < a.tokens.length ? state.compare_token : null;
    const rows = joined(active(a, place), active(b, place), partnerOf);
    const both = rows.filter(({ value, other }) => value !== null && other !== null).length;
    const title = place === null ? "the whole text" : `token ${place}`;
    out.replaceChildren(isOne ? strip(a.tokens, (next, keys) => { set({ compare_token: next }); show(keys); }) : h("p", { class: "quiet" }, "The two models split this text differently, so only the whole of it can be compared."),
      h("div", { class: "tools between" }, h("p", { class: "quiet", role: "status" }, `The ${TOP} strongest latents of each on ${title}: ${both} of A fire together with their partner in B.`), exports(`both on ${title}`, { table: () => ({ columns: ["A", "activation", "B", "activation"], rows: rows.map((row) => [row.latent, row.value, row.partner, row.other]) }) })),
      h("div", { class: "scroll" }, rowsTable(rows, ends)));
    if (focus) out.querySelector(`[data-place="${place}"]`)?.focus();
  }

  const go = () => work.run("running both …", async (signal) => {
    const text = input.value;
    if (!text.trim()) return "";
    set({ compare_text: text.length <= LONGEST ? text : "", compare_token: null });
    found = [];
    for (const store of [ends.a, ends.b]) found.push(await act("features", { store, text, rank: "activation", top: ASKED }, signal));
    show();
    return "";
  });
  const section = h("details", { class: "compare-try", open: Boolean(state.compare_text) }, h("summary", {}, "Both on a text of yours"), input,
    h("div", { class: "tools" }, h("button", { type: "button", "data-testid": "compare-text-run", onclick: go }, "Run both"), work.element), out);
  input.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) go(); });
  if (state.compare_text) go();
  return section;
}
