// Find nodes of a circuit: by label, kind, layer (L12), token (@Paris).
import { h, number } from "../base/dom.js";
import { known, name } from "./node.js";
import { ask, frozen } from "../base/transport.js";
import { set, state } from "../base/state.js";

function has(graph, one, word) {
  const layer = /^l(\d{1,4})$/.exec(word);
  if (layer) return one.layer === Number(layer[1]);
  if (word.length > 1 && word.startsWith("@")) return Boolean(graph.columns.find(({ position }) => position === one.position && position !== null)?.token.toLowerCase().replaceAll("␣", " ").includes(word.slice(1)));
  return one.label.toLowerCase().includes(word) || one.kind === word || Boolean(one.said?.toLowerCase().includes(word));
}

async function found(graph, at, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const here = Object.keys(graph.nodes).filter((id) => words.every((word) => has(graph, graph.nodes[id], word)))
    .sort((a, b) => (graph.nodes[b].influence ?? 0) - (graph.nodes[a].influence ?? 0)).map(Number);
  if (frozen) return { ids: here.slice(0, 60), total: here.length };
  const answer = await ask(`graphs/${at}/find/${encodeURIComponent(query.toWellFormed())}`).catch(() => null);
  if (!answer) return { ids: here.slice(0, 60), total: here.length };
  known(graph, answer.nodes);
  const said = here.filter((id) => graph.nodes[id].said && !answer.ids.includes(id));
  return { ids: [...said, ...answer.ids], total: answer.total + said.length };
}

// The box to type in; what it finds is listed in `list`, and `mark(ids)` may show it in the picture.
export function finder(graph, at, list, mark) {
  let turn = 0;
  const run = async (text) => {
    const mine = ++turn;
    const query = text.trim().slice(0, 200);
    const { ids, total } = query ? await found(graph, at, query) : { ids: [], total: 0 };
    if (mine !== turn) return;
    list.replaceChildren(...(query ? [h("p", { class: "quiet", role: "status", "data-testid": "found-count" }, total ? `${number(total)} found${total > ids.length ? `, ${ids.length} shown` : ""}` : "Nothing found."),
      h("ul", { class: "plain found", "data-testid": "found" }, ids.map((id) => h("li", {}, name(graph, id))))] : []));
    mark(new Set(ids.map(String)));
  };
  let timer = 0;
  if (state.node_find) run(state.node_find);
  return h("input", { type: "search", value: state.node_find, maxlength: 200, placeholder: "Find: label, L12, @token", "aria-label": "Find nodes by label, layer (L12) or token (@token)", "data-testid": "find-node",
    oninput: (event) => {
      clearTimeout(timer);
      timer = setTimeout((text) => { set({ node_find: text }); run(text); }, 150, event.target.value);
    } });
}
