// Where answers come from: elements of this page when it is frozen, the local server otherwise. Same paths, same answers.

const answers = new Map();
export const frozen = document.querySelector('script[data-path="index"]') !== null;

async function read(path) {
  if (frozen) {
    const element = document.querySelector(`script[data-path="${CSS.escape(path)}"]`);
    return element ? JSON.parse(element.textContent) : null;
  }
  const reply = await fetch(`api/${path}`);
  if (reply.status === 404) return null;
  if (!reply.ok) throw new Error(`the server answered ${reply.status} to ${path}`);
  return reply.json();
}

// The answer to a path, or null where there is none; asked for once.
export function ask(path) {
  if (!answers.has(path)) {
    const answer = read(path);
    answer.catch(() => answers.delete(path));
    answers.set(path, answer);
  }
  return answers.get(path);
}

export async function plotly() {
  if (!window.Plotly) {
    await new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = "static/plotly.js";
      script.onload = resolve;
      script.onerror = () => reject(new Error("plotly could not be loaded"));
      document.head.append(script);
    });
  }
  return window.Plotly;
}
