// Why a head looks where it looks: its score as a table over pairs of nodes, and over pairs of positions. Needs the model.
import { empty, h, number, segments, signed } from "../base/dom.js";
import { exports } from "../base/export.js";
import { act, can } from "../base/transport.js";
import { set, state } from "../base/state.js";

// What is asked stands in the address as "layer.head.query.key".
function wanted(count) {
  const known = /^\d{1,4}\.\d{1,4}\.\d{1,6}\.\d{1,6}$/.test(state.qk) ? state.qk.split(".").map(Number) : [0, 0, count - 1, 1];
  const [layer, head, ...places] = known;
  const [query, key] = places.map((place) => Math.min(place, count - 1));
  return { layer, head, query, key };
}

function heat(rows, columns, cells, testid) {
  const most = Math.max(...cells.flat().map((value) => Math.abs(value ?? 0)), 1e-12);
  return h("div", { class: "scroll" }, h("table", { class: "grid heat", "data-testid": testid },
    h("thead", {}, h("tr", {}, h("td", {}, "query ↓  key →"), columns.map((column) => h("th", { scope: "col", title: column.title }, column.text)))),
    h("tbody", {}, rows.map((row, place) => h("tr", {}, h("th", { scope: "row", title: row.title }, row.text),
      cells[place].map((value) => h("td", { class: value > 0 ? "plus" : "minus", style: { "--share": `${(Math.abs(value ?? 0) / most * 45).toFixed(0)}%` } }, value ? signed(value) : "·")))))));
}

function side(one) {
  return { text: one.label, title: `${one.kind} at ${one.place}` };
}

function linked(one) {
  const text = `${one.label} at ${one.place}`;
  return one.node === null ? text : h("button", { type: "button", class: "linkish", onclick: () => set({ node: one.node }, { push: true }) }, text);
}

function shown(answer) {
  const plain = (text) => ({ text, title: text });
  return state.qk_by !== "node" ? heat(answer.query_places.map(plain), answer.key_places.map(plain), answer.places, "qk-heat")
    : heat(answer.query.map(side), answer.key.map(side), answer.cells, "qk-heat");
}

function result(box, answer) {
  const table = h("div", {}, shown(answer));
  const pick = (qk_by) => { set({ qk_by }); table.replaceChildren(shown(answer)); choose.replaceChildren(by()); };
  const by = () => segments("Contributions", { position: "by position", node: "by node" }, state.qk_by === "node" ? "node" : "position", pick, "qk-by");
  const choose = h("span", {}, by());
  box.replaceChildren(h("div", { class: "head" }, h("p", { "data-testid": "qk-score" }, `L${answer.layer} H${answer.head}: score ${number(answer.score)}, of which the pairs make ${number(answer.sum)}`,
    answer.alibi ? `, the distance ${number(answer.alibi)}` : "", answer.cap ? `; capped at ${number(answer.cap)} afterwards` : ""),
  h("div", { class: "tools" }, choose,
    exports("attention score", { table: () => ({ columns: ["query side", "key side", "contribution"], rows: answer.pairs.map(([query, key, value]) => [`${query.label} at ${query.place}`, `${key.label} at ${key.place}`, value]) }) }))), table,
  h("h3", {}, "Pairs that make most of it"), h("table", { class: "edges", "data-testid": "qk-pairs" }, h("tbody", {}, answer.pairs.map(([query, key, value]) =>
    h("tr", { class: value > 0 ? "raises" : "lowers" }, h("td", {}, linked(query)), h("td", {}, "× ", linked(key)), h("td", { class: "num" }, signed(value)))))));
}

export function qkSheet(box, graph, at) {
  if (!can("qk")) return box.replaceChildren(empty("Attention scores are computed in the model: open this circuit with unweave show where the model is."));
  const tokens = graph.metadata.token_strings ?? [];
  const count = tokens.length || 1;
  const [out, told] = [h("div", {}), h("span", { class: "quiet", role: "status" })];
  const asked = wanted(count);
  const whole = (key, label) => h("label", { class: "choice" }, label, h("input", { type: "number", min: 0, value: asked[key], "data-testid": `qk-${key}`, oninput: (event) => { asked[key] = Math.max(Math.round(Number(event.target.value)) || 0, 0); } }));
  const token = (key, label) => h("label", { class: "choice" }, label, h("select", { "aria-label": label, onchange: (event) => { asked[key] = Number(event.target.value); } },
    Array.from({ length: count }, (_, place) => h("option", { value: place, selected: place === asked[key] }, `${place} ${tokens[place] ?? ""}`))));
  const look = async () => {
    told.textContent = "asking the model…";
    try {
      result(out, await act("qk", { graph: at, layer: asked.layer, head: asked.head, query: asked.query, key: asked.key }));
      told.textContent = "";
    } catch (error) {
      told.textContent = error.message;
    }
  };
  const submit = (event) => {
    event.preventDefault();
    set({ qk: [asked.layer, asked.head, asked.query, asked.key].join(".") });
    look();
  };
  if (state.qk) look();
  return box.replaceChildren(h("form", { class: "tools", onsubmit: submit }, whole("layer", "layer"), whole("head", "head"), token("query", "query"), token("key", "key"),
    h("button", { type: "submit", "data-testid": "qk-look" }, "Explain this score"), told), out);
}
