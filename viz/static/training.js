// Training curves of one run, its last logged step, its config.
import { choice, details, empty, facts, flat, h, number, words } from "./dom.js";
import { plot } from "./plots.js";
import { ask } from "./transport.js";
import { on, set, state } from "./state.js";

let redraw = () => {};
on(["run"], () => redraw());

function last(row) {
  return h("div", { class: "tiles" }, Object.entries(row).filter(([, value]) => typeof value === "number").slice(0, 8)
    .map(([name, value]) => h("div", { class: "tile" }, h("b", {}, number(value)), h("span", {}, words(name)))));
}

async function draw(content, index) {
  const place = Math.min(state.run, index.runs.length - 1);
  const run = await ask(`runs/${place}`);
  const box = h("div", { class: "plot", "data-testid": "training-plot" });
  content.replaceChildren(h("div", { class: "head" }, h("h1", {}, index.runs[place].name),
    choice("Run", index.runs.map((each) => each.name), place, (run) => set({ run }))),
  index.runs[place].sites ? h("p", { class: "quiet" }, index.runs[place].sites) : "",
  run.rows ? last(run.last) : "", run.rows ? box : empty("This run has logged no step."),
  ...Object.entries(run.about).map(([name, data]) => details(words(name), facts(flat(data)))));
  if (run.rows) requestAnimationFrame(() => plot(box, run.figure).catch((error) => box.replaceChildren(empty(error.message))));
}

async function pane(content, index) {
  redraw = () => content.isConnected && draw(content, index);
  await draw(content, index);
}

export const training = { name: "training", title: "Training", wanted: (index) => index.runs.length > 0, draw: pane };
