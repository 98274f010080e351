// Work on the server that a person waits for: one at a time, said in a live region, and it can be stopped.
import { h } from "./dom.js";

export function job(testid) {
  const words = h("span", { role: "status", "data-testid": testid });
  const stopper = h("button", { type: "button", class: "small", hidden: true, "data-testid": `${testid}-stop`, onclick: () => stop() }, "Stop");
  const element = h("span", { class: "job" }, stopper, words);
  let running = null;

  function say(text, isError = false) {
    words.textContent = text;
    words.classList.toggle("wrong", isError);
  }

  function stop() {
    running?.abort();
  }

  // `work(signal)` returns what to say in the end; an earlier run is stopped first, and what it still says is not heard.
  async function run(text, work) {
    stop();
    const mine = new AbortController();
    running = mine;
    say(text);
    stopper.hidden = false;
    try {
      const last = await work(mine.signal);
      if (running === mine) say(last ?? "");
    } catch (error) {
      if (running === mine) say(error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
    } finally {
      if (running === mine) {
        running = null;
        stopper.hidden = true;
      }
    }
  }

  return { element, run, say, stop, get isRunning() { return running !== null; } };
}
