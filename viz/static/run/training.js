// Training curves of one run, its last logged step, its config; while it trains, as they grow.
import { choice, details, empty, facts, flat, h, number, percent, tile, words } from "../base/dom.js";
import { exports } from "../base/export.js";
import { plot } from "../base/plots.js";
import { fresh, frozen } from "../base/transport.js";
import { on, set, state } from "../base/state.js";

const EVERY = 2000;   // ms between two looks at a run that trains
const view = { redraw() {} };

on(["run"], () => view.redraw());

function tiles(row) {
  return Object.entries(row).filter(([, value]) => typeof value === "number").slice(0, 8)
    .map(([name, value]) => tile(name.endsWith("share") ? percent(value) : number(value), words(name)));
}

function duration(seconds) {
  if (seconds === null) return "";
  const parts = [[Math.floor(seconds / 3600), "h"], [Math.floor(seconds / 60) % 60, "min"], [Math.round(seconds) % 60, "s"]];
  return parts.filter(([value], place) => value || place === 2).slice(0, 2).map(([value, unit]) => `${value} ${unit}`).join(" ");
}

function progress(run) {
  const share = run.share ?? 0;
  const text = { finished: "finished", stopped: "stopped before its end; the same command with --resume goes on", training: "training now" }[run.state];
  return [h("span", { class: `state ${run.state}` }, text),
    run.state === "finished" || run.share === null ? null : h("progress", { max: 1, value: share, "aria-label": "share of the tokens" }),
    run.state === "finished" || run.share === null ? null : h("span", { class: "num" }, percent(Math.round(100 * share) / 100)),
    run.state === "training" && run.left_s !== null ? h("span", {}, `about ${duration(run.left_s)} left`) : null].filter(Boolean);
}

async function draw(content, index) {
  const place = Math.min(state.run, index.runs.length - 1);
  let run = await fresh(`runs/${place}`);
  const [box, row, status] = [h("div", { class: "plot", "data-testid": "training-plot" }), h("div", { class: "tiles" }), h("p", { class: "progress", "data-testid": "training-state" })];
  const curves = h("div", {});
  let figure = null;
  const fill = () => {
    status.replaceChildren(...progress(run));
    row.replaceChildren(...tiles(run.last));
    if (!run.rows) curves.replaceChildren(empty("This run has logged no step yet."));
    else if (figure) figure.replace(run.figure);
    else {
      curves.replaceChildren(box);
      requestAnimationFrame(() => plot(box, run.figure, `Curves of ${index.runs[place].name}: ${run.figure.data.map((trace) => trace.name).join(", ")}`).then((made) => { figure = made; }, (error) => box.replaceChildren(empty(error.message))));
    }
  };
  content.replaceChildren(h("div", { class: "head" }, h("h1", {}, index.runs[place].name), h("div", { class: "tools" },
    choice("Run", index.runs.map((each) => each.name), place, (run) => set({ run })),
    exports(`training ${index.runs[place].name}`, { figure: () => run.figure, table: () => tableOf(run), json: () => ({ about: run.about, last: run.last }) }))),
  index.runs[place].sites ? h("p", { class: "quiet" }, index.runs[place].sites) : "", status, row, curves,
  ...Object.entries(run.about).map(([name, data]) => details(words(name), facts(flat(data)))));
  fill();
  // Look again for as long as this run trains and is shown.
  const watch = async () => {
    if (!status.isConnected || run.state === "finished") return;
    run = await fresh(`runs/${place}`).catch(() => run);
    if (!status.isConnected) return;
    fill();
    setTimeout(watch, EVERY);
  };
  if (!frozen && run.state !== "finished") setTimeout(watch, EVERY);
}

// The curves as a table: the tokens seen, and each curve.
function tableOf(run) {
  const traces = run.figure.data;
  return { columns: ["tokens", ...traces.map((trace) => trace.name)], rows: (traces[0]?.x ?? []).map((tokens, place) => [tokens, ...traces.map((trace) => trace.y[place])]) };
}

async function pane(content, index) {
  view.redraw = () => content.isConnected && draw(content, index);
  await draw(content, index);
}

export const training = { name: "training", title: "Training", wanted: (index) => index.runs.length > 0, draw: pane, called: (index) => index.runs[Math.min(state.run, index.runs.length - 1)].name };
