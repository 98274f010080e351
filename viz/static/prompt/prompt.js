// The prompt page: a text, the latents on each of its tokens, what they do to the next one, and what changing them does.
import { choice, h, link, number, readable, refill } from "../base/dom.js";
import { forgetWritten, stopWriting, write, writing } from "./generate.js";
import { job } from "../base/job.js";
import { key } from "../base/keys.js";
import { chosen, learn, list, nextRank, shownRows, step } from "./promptLatents.js";
import { addEdit, along, asked, edits, keepText, measure, rank, ranked, session, token, wish, wordsOf } from "./promptState.js";
import { target } from "./promptTarget.js";
import { move, tokens } from "./promptTokens.js";
import { on, set, state } from "../base/state.js";
import { forgetResult, runEdits, steering, stopSteering } from "./steer.js";
import { act, ask, can, column } from "../base/transport.js";

const EXAMPLES = ["The capital of France is", "When Mary and John went to the store, John gave a drink to", "def add(a, b):\n    return a +"];
const TOP = 300;     // active latents of a token that are asked for
const reading = job("prompt-status");
let view = null;     // the elements of the pane that is shown
let done = "";       // what was read last

function isShown() {
  return view !== null && state.pane === "prompt";
}

async function openStore(index, place) {
  if (session.most && session.store === place) return;
  session.store = place;
  Object.assign(session, { answer: null, names: {}, labels: {}, most: null });
  const [store, most] = await Promise.all([ask(`stores/${place}`), column(place, "max_value")]);
  if (session.store === place) Object.assign(session, { labels: store?.labels ?? {}, most });
}

// Ask for the features of the text; what was read already is not asked for again.
function read(isAgain = false) {
  if (!session.text.trim()) return undefined;
  const body = { ...asked(), rank: rank(), top: TOP, ...wish() };
  const asking = JSON.stringify(body);
  if (asking === done && session.answer && !isAgain) return undefined;
  const isOther = JSON.stringify(asked()) !== session.read;
  if (isOther) {
    forgetResult();
    forgetWritten();
  }
  return reading.run(session.answer ? "reading …" : "reading; the model is loaded first, which may take a while …", async (signal) => {
    await openStore(view.index, session.store);
    const answer = await act("features", body, signal);
    if (signal.aborted) return "";
    session.answer = answer;
    session.read = JSON.stringify(asked());
    done = asking;
    if (state.prompt_token !== null && state.prompt_token >= answer.tokens.length) set({ prompt_token: null });
    drawAll();
    return `${number(answer.tokens.length)} tokens, ${number(answer.totals.length)} latents${answer.complete ? "" : ` (of each token the ${TOP} best by ${rank()})`}`;
  });
}

function submit() {
  if (!view.text.value.trim()) return reading.say("write a text first");
  const isShort = keepText(view.text.value);
  view.long.hidden = isShort;
  set({ prompt_token: null });
  return read(true);
}

function drawAll() {
  if (!isShown()) return;
  view.answer.hidden = !session.answer;
  view.examples.hidden = Boolean(session.answer);
  if (!session.answer) return;
  view.chat.hidden = !session.answer.chat && !state.prompt_chat;
  tokens(view.tokens);
  drawList();
  drawChosen();
  target(view.target);
  drawEdits();
}

function drawList() {
  list(view.list, drawList);
  learn(shownRows().map(({ latent }) => latent)).then((isNew) => { if (isNew && isShown() && session.answer) list(view.list, drawList); }, () => {});
}

function drawChosen() {
  chosen(view.chosen).catch((error) => refill(view.chosen, h("p", { class: "wrong" }, error.message)));
  if (state.latent !== null) learn([state.latent]).then((isNew) => { if (isNew && isShown()) chosen(view.chosen).catch(() => {}); }, () => {});
}

function drawEdits() {
  if (can("steer")) steering(view.steer);
  if (can("generate")) writing(view.write);
  learn(edits().map(({ latent }) => latent)).then((isNew) => { if (isNew && isShown() && can("steer")) steering(view.steer); }, () => {});
}

// What a key has chosen, for those who do not see it.
function speak() {
  const [at, { latent }] = [token(), state];
  const where = at === null ? "whole prompt" : `token ${at} ${session.answer.tokens[at]}`;
  const row = latent === null ? null : at === null ? ranked().find((one) => one.latent === latent) : along(latent)[at];
  view.spoken.textContent = latent === null ? where : `${where}, latent ${latent} ${wordsOf(latent)}: ${row ? number(measure(row)) : "silent"}`;
}

on(["prompt_token", "latent"], () => {
  if (!isShown() || !session.answer) return;
  speak();
  tokens(view.tokens);
  drawList();
  drawChosen();
  if (can("steer")) steering(view.steer);
});
on(["prompt_rank"], () => {
  if (!isShown() || !session.answer) return;
  drawAll();
  if (!session.answer.complete) read();
});
on(["prompt_target", "prompt_id"], () => { if (isShown()) read(); });
on(["prompt_chat"], () => {
  if (!isShown()) return;
  view.chat.querySelector("input").checked = Boolean(state.prompt_chat);
  read();
});
on(["prompt_edits"], () => { if (isShown() && session.answer) drawEdits(); });
on(["store"], () => { if (isShown()) view.reopen(); });
on(["prompt"], () => {
  if (!isShown() || !state.prompt || state.prompt === session.text) return;
  session.text = view.text.value = state.prompt;
  read();
});

function form(index) {
  const text = h("textarea", { id: "prompt-text", rows: 3, "data-testid": "prompt-text", "aria-label": "Prompt", spellcheck: "false", placeholder: "Paste a text: which latents fire on it?",
    onkeydown: (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      submit();
    } });
  text.value = session.text;
  const chat = h("label", { class: "choice", hidden: !session.answer?.chat && !state.prompt_chat, title: "put the text into the model's chat template, as what a user says" },
    h("input", { type: "checkbox", checked: Boolean(state.prompt_chat), "data-testid": "prompt-chat", onchange: (event) => set({ prompt_chat: event.target.checked ? "yes" : "" }, { push: true }) }), h("span", {}, "as a chat"));
  const long = h("span", { class: "quiet", hidden: true, "data-testid": "too-long" }, "too long for the address: a link will not carry it");
  const names = index.stores.map((store) => store.name);
  const pick = choice("Dictionary", names, session.store, (store) => set({ store, latent: null, prompt_edits: "" }, { push: true }));
  return { text, chat, long, element: h("form", { class: "prompt-form", onsubmit: (event) => { event.preventDefault(); submit(); } }, text,
    h("div", { class: "tools" }, h("button", { type: "submit", class: "main", "data-testid": "read", title: "Ctrl Enter" }, "Read"), pick, chat, reading.element, long)) };
}

function draw(content, index) {
  const place = () => Math.min(state.store, index.stores.length - 1);
  if (session.store !== place()) Object.assign(session, { store: place(), most: null, answer: null });
  if (state.prompt) session.text = state.prompt;
  const parts = Object.fromEntries(["tokens", "list", "chosen", "target", "steer", "write"].map((name) => [name, h("section", { class: `prompt-${name}-box`, "data-testid": `box-${name}` })]));
  const head = form(index);
  const answer = h("div", { hidden: true }, parts.tokens, h("div", { class: "prompt-columns" }, parts.list, h("div", {}, parts.chosen, parts.target)), parts.steer, parts.write);
  const asWritten = ({ prompt }) => prompt && prompt.length < 300 && !/[\u2400-\u2421⏎⇥⟨]/.test(prompt);   // what stands for a control was none
  const texts = [...new Set([...index.graphs.filter(asWritten).map((graph) => graph.prompt), ...EXAMPLES])].slice(0, 6);
  const examples = h("div", { class: "prompt-first", "data-testid": "examples" }, h("p", { class: "quiet" }, "See which latents are active on each token of a text; rank them by activation, by surprise against the corpus, or by what they add to a next token; ",
    can("steer") ? "then ablate or steer them and see what the model says instead." : "and open their cards."),
  h("h2", {}, "For example"), h("ul", { class: "plain" }, texts.map((prompt) => h("li", {}, link({ prompt }, { class: "prompt-example" }, prompt)))));
  const spoken = h("p", { class: "unseen", role: "status", "data-testid": "spoken" });
  view = { ...parts, ...head, answer, examples, spoken, index, reopen: () => {
    Object.assign(session, { store: place(), most: null, answer: null });
    draw(content, index);
  } };
  refill(content, h("h1", {}, "Prompt"), head.element, examples, spoken, answer);
  if (session.answer) drawAll();
  read();
}

function focusText() {
  document.getElementById("prompt-text")?.focus();
}

const change = (how) => () => { if (state.latent !== null && session.answer && can("steer")) addEdit(state.latent, how); };
key("e", "edit the text (Ctrl Enter reads it, Escape leaves it)", focusText, "prompt");
key("/", "edit the text", focusText, "prompt");
key("h", "previous token", () => move(-1), "prompt");
key("l", "next token", () => move(1), "prompt");
key("w", "the whole prompt", () => set({ prompt_token: null }), "prompt");
key("j", "next latent", () => step(1), "prompt");
key("k", "previous latent", () => step(-1), "prompt");
key("r", "rank by the next of activation, surprise, attribution", nextRank, "prompt");
key("n", "no latent", () => set({ latent: null }), "prompt");
key("a", "ablate the latent", change("ablate"), "prompt");
key("s", "steer the latent", change("steer"), "prompt");
key("x", "see the effect of the changes", () => runEdits(view.steer), "prompt");
key("g", "go on writing", () => write(view.write), "prompt");
key(".", "stop what is running", () => { reading.stop(); stopSteering(); stopWriting(); }, "prompt");

export const prompt = { name: "prompt", title: "Prompt", wanted: (index) => index.stores.length > 0 && (index.can ?? []).includes("features"), draw, called: () => readable(state.prompt) || null };
