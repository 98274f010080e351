// A store without a map: what a map is, and the button that makes one.
import { h, number } from "../base/dom.js";
import { job } from "../base/job.js";
import { can, forget, stream } from "../base/transport.js";

const STAGES = { neighbours: "finding each latent's nearest directions", layout: "laying them out" };

function waits(latents) {
  if (latents <= 4096) return "Some ten seconds.";
  return latents <= 20_000 ? "About a minute on two cores." : "Minutes; it grows with the square of the number of latents.";
}

export function noMap(store, name, about, made) {
  const work = job("map-job");
  const bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Progress" });
  const make = (method) => work.run("starting …", async (signal) => {
    bar.hidden = false;
    try {
      await stream("map", { store, method }, (line) => {
        if (line.error) throw new Error(line.error);
        if (line.done) return;
        if (line.share > 0) bar.value = line.share;
        else bar.removeAttribute("value");
        work.say(`${STAGES[line.stage] ?? line.stage}${line.share > 0 ? `: ${Math.round(100 * line.share)} %` : line.stage === "layout" ? " (the first time this also compiles) …" : " …"}`);
      }, signal);
      forget(`stores/${store}`);
      await made();
    } finally {
      bar.hidden = true;
    }
    return "";
  });
  const umap = h("button", { type: "button", class: "map-make", "data-testid": "make-map", onclick: () => make("umap") }, "Make the map (UMAP)");
  const pca = h("button", { type: "button", "data-testid": "make-pca", onclick: () => make("pca") }, "Only PCA (seconds)");
  return h("section", { class: "map-none-yet", "data-testid": "no-map" }, h("h1", {}, "No map yet"),
    h("p", {}, `A map puts the ${number(about?.latents ?? 0)} latents of ${name} on a plane so that latents that write similar directions lie close together.`),
    about?.why ? h("p", { class: "wrong" }, about.why) : null,
    can("map") ? [h("p", { class: "quiet" }, about?.umap === false ? "umap-learn is not installed here, so the map will be a PCA: pip install umap-learn for a UMAP. "
      : `${waits(about?.latents ?? 0)} It is kept in the store's folder and made only once.`), h("div", { class: "tools" }, about?.umap === false ? null : umap, pca, bar, work.element)]
      : h("p", { class: "quiet" }, "This host cannot make one; `unweave collect --map` does, or the live browser: unweave show."));
}
