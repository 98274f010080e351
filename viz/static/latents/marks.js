// What people say of a latent: label, note, tags, star; saved at once, taken back if saving fails, with history and undo.
import { h, number, words } from "../base/dom.js";
import { tipped } from "../base/tip.js";
import { act, can } from "../base/transport.js";

const editor = { current: null };   // the one of the card that is shown

// The keys of the pane call these.
export function edit(field) {
  editor.current?.edit(field);
}

export function star() {
  editor.current?.star();
}

export function undo() {
  editor.current?.undo();
}

// A score of the label, with its interval and how it was measured.
function scoreOf(score) {
  if (!score) return null;
  const rest = Object.entries(score).filter(([name]) => !["value", "low", "high"].includes(name)).map(([name, value]) => `${words(name)}: ${Array.isArray(value) || value === null || typeof value !== "object" ? value : JSON.stringify(value)}`);
  return tipped(h("span", { class: "score", tabindex: 0, "data-testid": "label-score" }, `held-out score ${number(score.value)}`,
    score.low === undefined ? "" : h("small", {}, ` (${number(score.low)} to ${number(score.high)})`)), () => rest.join("; "));
}

export function marks(store, latent, mark, changed) {
  const box = h("section", { class: "marks", "aria-label": "Label, note, tags", "data-testid": "marks" });
  const told = h("span", { role: "status", class: "told", "data-testid": "mark-status" });
  const can_edit = can("label");
  let [now, editing, turn, draft] = [mark, null, 0, null];   // draft: what is being written, or could not be saved

  const take = (next) => {
    now = next;
    draw();
    changed(latent, next);
  };
  // Show what is wanted at once; what stands is what the answer says, and on failure what stood before.
  const save = async (body, wanted) => {
    const [before, mine] = [now, (turn += 1)];
    editing = null;
    take({ ...now, ...wanted });
    say("saving…");
    try {
      const { mark: stands, undone } = await act("label", { store, latent, ...body });
      if (editing === null) draft = null;
      if (mine === turn) take(stands);
      say(undone ? (undone.length ? `took back: ${undone.join(", ")}` : "nothing to undo") : "saved");
    } catch (error) {
      if (mine === turn) {
        editing ??= draft?.name ?? null;
        take(before);
      }
      say(`not saved: ${error.message}`, true);
    }
    if (box.querySelector(".history")?.open) fillHistory(box.querySelector(".history"));
  };
  const say = (text, is_wrong = false) => {
    told.textContent = text;
    told.classList.toggle("wrong", is_wrong);
  };
  const cancel = () => { [editing, draft] = [null, null]; draw(); };
  const field = (name, element) => Object.assign(element, { oninput: () => { draft = { name, value: element.value }; }, onkeydown: (event) => {
    if (event.key === "Escape") { event.stopPropagation(); cancel(); }
    if (event.key === "Enter" && (name !== "note" || event.ctrlKey || event.metaKey)) { event.preventDefault(); commit(name, element.value); }
  } });
  const text = (name) => (draft?.name === name ? draft.value : name === "tags" ? "" : now[name]);
  const commit = (name, value) => {
    draft = { name, value };
    if (name === "tags") {
      const tag = value.trim();
      if (!tag || now.tags.some((one) => one.tag === tag)) return cancel();
      return save({ tags: [...now.tags.map((one) => one.tag), tag] }, { tags: [...now.tags, { tag, shown: tag }] });
    }
    if (value.trim() === now[name].trim()) return cancel();
    return save({ [name]: value }, name === "label" ? { label: value, shown: value.trim() || null, score: null } : { note: value });
  };
  const without = (tag) => save({ tags: now.tags.map((one) => one.tag).filter((one) => one !== tag) }, { tags: now.tags.filter((one) => one.tag !== tag) });
  const button = (text, name, testid, run, more = {}) => h("button", { type: "button", class: "small", title: name, "data-testid": testid, onclick: run, ...more }, text);

  function labelLine() {
    if (editing === "label") {
      const input = field("label", h("input", { type: "text", value: text("label"), maxlength: 500, "aria-label": "Label", "data-testid": "label-input" }));
      return h("p", { class: "labelling" }, input, button("Save", "Save the label (Enter)", "label-save", () => commit("label", input.value)), button("Cancel", "Leave the label as it was (Escape)", "label-cancel", cancel));
    }
    const shown = now.shown ? h("span", { class: "labelled", "data-testid": "card-label" }, now.shown) : h("span", { class: "quiet" }, "no label yet");
    return h("p", { class: "labelling" }, shown, scoreOf(now.score), can_edit ? button(now.shown ? "Edit" : "Label it", "Write a label (l)", "label-edit", () => api.edit("label")) : null);
  }

  function tagLine() {
    const chips = now.tags.map(({ tag, shown }) => h("span", { class: "chip", "data-testid": "tag" }, shown,
      can_edit ? h("button", { type: "button", "aria-label": `Remove the tag ${shown}`, onclick: () => without(tag) }, "×") : null));
    if (editing !== "tags") return h("span", { class: "tags" }, chips, can_edit ? button("+ tag", "Add a tag (t)", "tag-add", () => api.edit("tags")) : null);
    const input = field("tags", h("input", { type: "text", value: text("tags"), maxlength: 60, "aria-label": "New tag", placeholder: "tag", "data-testid": "tag-input" }));
    return h("span", { class: "tags" }, chips, input, button("Add", "Add the tag (Enter)", "tag-save", () => commit("tags", input.value)));
  }

  function noteLine() {
    if (editing === "note") {
      const area = field("note", h("textarea", { rows: 4, maxlength: 20000, "aria-label": "Note", "data-testid": "note-input" }, text("note")));
      return h("div", { class: "noting" }, area, h("div", { class: "tools" }, button("Save", "Save the note (Ctrl+Enter)", "note-save", () => commit("note", area.value)), button("Cancel", "Leave the note as it was (Escape)", "note-cancel", cancel)));
    }
    return now.note ? h("p", { class: "note", "data-testid": "note" }, now.note) : null;
  }

  function history() {
    if (!can("history")) return null;
    const list = h("details", { class: "bare history", "data-testid": "history" }, h("summary", {}, "History"), h("div", {}));
    list.addEventListener("toggle", () => list.open && fillHistory(list));
    return list;
  }

  async function fillHistory(list) {
    const told_by = await act("history", { store, latent }).catch((error) => ({ error: error.message, changes: [] }));
    const lines = told_by.changes.map((change) => h("li", { class: change.is_undone ? "undone" : null }, h("time", { datetime: change.time }, change.time.replace("T", " ").slice(0, 19)),
      change.author ? ` ${change.author}` : "", change.is_undo ? " undid" : "", change.fields.map(({ name, before, after }) =>
        h("span", { class: "change" }, ` ${words(name)}: `, h("del", {}, before || "nothing"), " → ", h("ins", {}, after || "nothing")))));
    list.lastChild.replaceChildren(told_by.error ? h("p", { class: "wrong" }, told_by.error)
      : lines.length ? h("ol", { class: "plain" }, lines) : h("p", { class: "quiet" }, "Nothing was ever said of it."));
  }

  const past = history();
  function draw() {
    const active = box.contains(document.activeElement) ? document.activeElement : null;
    const [focused, caret] = [active?.dataset.testid, active?.selectionStart];
    box.replaceChildren(...[labelLine(), h("div", { class: "tools" },
      can_edit ? h("button", { type: "button", class: "small star", "aria-pressed": String(now.star), "aria-label": "Star (s)", title: "Star (s)", "data-testid": "star", onclick: () => api.star() }, now.star ? "★" : "☆")
        : now.star ? h("span", { class: "star", "data-testid": "star" }, "★") : null,
      tagLine(), can_edit && !now.note ? button("+ note", "Write a note (n)", "note-add", () => api.edit("note")) : null,
      can_edit && now.note && editing !== "note" ? button("Edit note", "Edit the note (n)", "note-add", () => api.edit("note")) : null,
      can_edit ? button("Undo", "Take the latest change back (u)", "undo", () => api.undo()) : null, told), noteLine(), past].filter(Boolean));
    const again = focused ? box.querySelector(`[data-testid="${focused}"]`) : null;
    again?.focus({ preventScroll: true });
    if (typeof caret === "number") again?.setSelectionRange?.(caret, caret);
  }
  const api = {
    edit(name) {
      if (!can_edit) return;
      editing = name;
      if (draft?.name !== name) draft = null;
      draw();
      const input = box.querySelector("input, textarea");
      input?.focus();
      input?.setSelectionRange?.(input.value.length, input.value.length);
    },
    star() { if (can_edit) save({ star: !now.star }, { star: !now.star }); },
    undo() { if (can_edit) save({ undo: true }, {}); },
  };
  editor.current = api;
  draw();
  return box;
}
