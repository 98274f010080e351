// One feature card.
import { empty, h, link, number, words } from "./dom.js";
import { ask, frozen } from "./transport.js";
import { set, state } from "./state.js";

const AROUND = 14;   // tokens shown on each side of the one that fired, until the example is opened

function histogram({ edges, counts }) {
  const used = counts.map((count, place) => (count ? place : -1)).filter((place) => place >= 0);
  if (!used.length) return empty("It never fired in this text.");
  const [from, to] = [used[0], used.at(-1) + 1];
  const [width, height, most] = [480, 120, Math.max(...counts)];
  const step = width / (to - from);
  const bars = counts.slice(from, to).map((count, offset) => {
    const tall = count ? Math.max((count / most) * (height - 4), 1.5) : 0;
    return h("rect", { x: offset * step + 0.5, y: height - tall, width: Math.max(step - 1, 0.5), height: tall },
      h("title", {}, `${number(edges[from + offset])} to ${number(edges[from + offset + 1])}: ${number(count)}`));
  });
  const ticks = [...new Set([0, 0.25, 0.5, 0.75, 1].map((share) => Math.round(from + share * (to - from))))];
  return h("figure", { class: "histogram", "data-testid": "histogram" },
    h("svg", { viewBox: `0 0 ${width} ${height + 18}`, role: "img", "aria-label": `Histogram of activations, fullest bin ${most}` }, bars,
      h("line", { x1: 0, x2: width, y1: height, y2: height }),
      ticks.map((tick, place) => h("text", { x: (tick - from) * step, y: height + 14,
        "text-anchor": place === 0 ? "start" : tick === to ? "end" : "middle" }, number(edges[tick])))),
    h("figcaption", {}, `activation (log scale); fullest bin ${number(most)}`));
}

function logits(title, pairs, side) {
  const most = Math.max(...pairs.map(([, value]) => Math.abs(value ?? 0)), 1e-9);
  return h("div", { class: `logits ${side}`, "data-testid": `logits-${side}` }, h("h3", {}, title),
    h("ol", {}, pairs.map(([token, value]) => h("li", {}, h("span", { class: "token" }, token),
      h("span", { class: "bar", style: { width: `${(Math.abs(value ?? 0) / most) * 40}%` } }), h("span", { class: "num" }, number(value))))));
}

function tokens(example, whole, most) {
  const from = whole ? 0 : Math.max(example.focus - AROUND, 0);
  const to = whole ? example.tokens.length : Math.min(example.focus + AROUND + 1, example.tokens.length);
  const spans = example.tokens.slice(from, to).map((token, offset) => {
    const value = example.values[from + offset] ?? 0;
    const share = value > 0 ? 12 + 70 * Math.min(value / most, 1) : 0;
    return h("span", { class: from + offset === example.focus ? "t focus" : "t", "data-value": number(value),
      style: share ? { "--heat-share": `${share.toFixed(0)}%` } : {} }, token);
  });
  return [from > 0 ? "… " : "", ...spans, to < example.tokens.length ? " …" : ""];
}

function example(one, most) {
  const text = h("p", { class: "text" }, tokens(one, false, most));
  let whole = false;
  const toggle = h("button", { type: "button", class: "more", "aria-label": "Show more of this example", title: "more or less of the text",
    onclick: () => { whole = !whole; text.replaceChildren(...tokens(one, whole, most)); } }, number(one.value));
  return h("li", { "data-testid": "example" }, toggle, text,
    h("span", { class: "where" }, `document ${one.document}, position ${one.position}`));
}

function neighbours(rows) {
  return h("ul", { class: "plain neighbours", "data-testid": "neighbours" }, rows.map(({ latent, cosine, label }) => h("li", {},
    link({ pane: "latents", latent }, {}, h("span", { class: "id" }, latent), label ? ` ${label}` : ""), h("span", { class: "num" }, number(cosine)))));
}

function tooltip(box) {
  const tip = h("div", { class: "tip", role: "status", hidden: true });
  box.append(tip);
  box.onpointerover = (event) => {
    const token = event.target.closest?.(".t");
    tip.hidden = !token;
    if (!token) return;
    tip.textContent = `activation ${token.dataset.value}`;
    const [at, base] = [token.getBoundingClientRect(), box.getBoundingClientRect()];
    tip.style.left = `${Math.max(Math.min(at.left - base.left, base.width - 130), 0)}px`;
    tip.style.top = `${at.top - base.top - 30}px`;
  };
  box.onpointerleave = () => { tip.hidden = true; };
}

function missing(latent, total) {
  return empty(frozen && latent < total ? `This page carries no card of latent ${latent}; the live browser (unweave show) has all of them.`
    : `There is no latent ${latent} in this store.`);
}

export async function card(box, store, latent, name, total) {
  if (latent === null) return box.replaceChildren(empty("Choose a latent."));
  const answer = latent < total ? await ask(`stores/${store}/latents/${latent}`) : null;
  if (latent !== state.latent) return undefined;   // another key was pressed meanwhile
  const back = h("button", { type: "button", class: "back", onclick: () => set({ latent: null }) }, "← all latents");
  if (!answer) return box.replaceChildren(back, missing(latent, total));
  const most = Math.max(answer.statistics.max_value ?? 0, ...answer.examples.map((one) => one.value ?? 0), 1e-9);
  box.replaceChildren(back,
    h("article", { class: "card", "data-testid": "card", "data-latent": latent },
      h("h1", { "data-testid": "card-title" }, `Latent ${latent}`, h("small", {}, ` ${name}`)),
      answer.label ? h("p", { class: "labelled", "data-testid": "card-label" }, answer.label) : h("p", { class: "quiet" }, "no label yet"),
      answer.warnings.length ? h("ul", { class: "warnings", "data-testid": "warnings" }, answer.warnings.map((text) => h("li", {}, text))) : null,
      h("div", { class: "tiles" }, Object.entries(answer.statistics).map(([key, value]) => h("div", { class: "tile" }, h("b", {}, number(value)), h("span", {}, words(key))))),
      h("h2", {}, "Activations"), histogram(answer.histogram),
      h("h2", {}, "Effect on the next token"),
      h("div", { class: "two" }, logits("raises", answer.top_logits, "top"), logits("lowers", answer.bottom_logits, "bottom")),
      h("h2", {}, "Top examples"),
      answer.examples.length ? h("ol", { class: "examples" }, answer.examples.map((one) => example(one, most))) : empty("No example."),
      answer.neighbours.length ? [h("h2", {}, "Nearest decoder rows (cosine)"), neighbours(answer.neighbours)] : null));
  tooltip(box);
  box.scrollTop = 0;
  return undefined;
}
