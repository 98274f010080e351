// The host of a notebook's widget: every question is a message to the window around this frame, answered by Python.

const waiting = new Map();
let last = 0;

function send(message, each, signal) {
  const id = ++last;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject, each });
    signal?.addEventListener("abort", () => {
      waiting.delete(id);
      window.parent.postMessage({ unweave: "stop", id }, "*");
      reject(new DOMException("stopped", "AbortError"));
    });
    window.parent.postMessage({ unweave: "ask", id, ...message }, "*");
  });
}

// { id, line } is one line of a stream, { id, answer } or { id, error } the end.
function hear({ source, data }) {
  if (source !== window.parent || !waiting.has(data?.id)) return;
  const { resolve, reject, each } = waiting.get(data.id);
  if ("line" in data) return each?.(data.line);
  waiting.delete(data.id);
  if ("error" in data) reject(new Error(data.error));
  else resolve(data.answer);
}

export function overFrame() {
  window.addEventListener("message", hear);
  return {
    get: (path, kind) => send({ verb: "get", path, kind }),
    post: (path, body, signal) => send({ verb: "post", path, body }, null, signal),
    lines: (path, body, each, signal) => send({ verb: "lines", path, body }, each, signal),
  };
}
