// The notebook's side of the widget: a sandboxed frame with the page, and messages between it and Python.
//
// The frame shares no origin with the notebook, so whatever tokens and labels hold, it cannot reach into it.

function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.sandbox = "allow-scripts allow-forms allow-downloads";
  frame.title = "Unweave";
  frame.style.cssText = `width: 100%; height: ${Number(model.get("height"))}px; border: 1px solid #8884; border-radius: 6px;`;
  const asked = ({ source, data }) => {
    if (source !== frame.contentWindow || (data?.unweave !== "ask" && data?.unweave !== "stop")) return;
    model.send(data);
  };
  // A reply goes to every view of the widget; the frame that did not ask knows no such id.
  const told = (message, buffers) => {
    const { bytes, ...reply } = message;
    if (bytes) {
      const { buffer, byteOffset, byteLength } = buffers[0];
      reply.answer = buffer.slice(byteOffset, byteOffset + byteLength);
    }
    frame.contentWindow?.postMessage(reply, "*");
  };
  window.addEventListener("message", asked);
  model.on("msg:custom", told);
  frame.srcdoc = model.get("page");
  el.append(frame);
  return () => {
    window.removeEventListener("message", asked);
    model.off("msg:custom", told);
  };
}

export default { render };
