// Other latents: nearest decoder rows, and those that fire together with this one.
import { exports } from "../base/export.js";
import { h, number } from "../base/dom.js";
import { latentLink } from "./examples.js";
import { ask } from "../base/transport.js";

export function neighbours(rows, store, latent) {
  if (!rows.length) return null;
  return h("section", { "aria-label": "Nearest decoder rows" }, h("div", { class: "head" }, h("h2", {}, "Nearest decoder rows"),
    exports(`latent ${latent} neighbours`, { table: () => ({ columns: ["latent", "cosine", "label"], rows: rows.map((row) => [row.latent, row.cosine, row.label]) }) })),
  h("ul", { class: "plain neighbours", "data-testid": "neighbours" }, rows.map(({ latent: other, cosine, label }) => h("li", {},
    latentLink(store, other, label), h("span", { class: "num", title: "cosine of the decoder rows" }, number(cosine))))));
}

const COLUMNS = [["together", "tokens on which both fire"], ["lift", "tokens together against what independent firing would give"],
  ["correlation", "Pearson correlation of the activations over all kept tokens"], ["jaccard", "tokens with both over tokens with either"]];

// Fills itself when the answer comes; the card does not wait for it.
export function company(store, latent, about) {
  if (!about.company) return null;
  const section = h("section", { "aria-label": "Fires together with", "data-testid": "company" });
  ask(`stores/${store}/latents/${latent}/company`).then((answer) => {
    if (answer) section.replaceChildren(...drawn(answer, store, latent));
  }, (error) => section.replaceChildren(h("h2", {}, "Fires together with"), h("p", { class: "quiet" }, error.message)));
  return section;
}

function drawn({ companions, reason }, store, latent) {
  const rows = () => companions.map((one) => [one.latent, ...COLUMNS.map(([name]) => one[name]), one.expected, one.label]);
  const head = h("div", { class: "head" }, h("h2", {}, "Fires together with"),
    companions.length ? exports(`latent ${latent} company`, { table: () => ({ columns: ["latent", ...COLUMNS.map(([name]) => name), "expected", "label"], rows: rows() }) }) : null);
  if (!companions.length) return [head, h("p", { class: "quiet" }, reason ?? "It never fires on the same token as another latent.")];
  return [head, h("div", { class: "scroll" }, h("table", { class: "grid company" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "latent"), COLUMNS.map(([name, meaning]) => h("th", { scope: "col", title: meaning }, name)))),
    h("tbody", {}, companions.map((one) => h("tr", {}, h("th", { scope: "row" }, latentLink(store, one.latent, one.label)),
      COLUMNS.map(([name]) => h("td", { title: name === "together" ? `${number(one.expected)} expected if independent` : null }, number(one[name]))))))))];
}
