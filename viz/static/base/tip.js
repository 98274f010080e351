// Words about an element, shown while the pointer or the focus is on it; and groups of elements that are one stop of the Tab key.
import { h } from "./dom.js";

const SAID = new WeakMap();

// `say()` gives the tip's content, when it is shown.
export function tipped(element, say) {
  SAID.set(element, say);
  element.classList.add("tipped");
  return element;
}

const BOXES = new WeakMap();

// Show the tips of what lies in `box`, which must be positioned; to be called again after its content was replaced.
export function tips(box) {
  if (!BOXES.has(box)) BOXES.set(box, listening(box));
  return BOXES.get(box).begin();
}

function listening(box) {
  const tip = h("div", { class: "tip", role: "tooltip", id: "tip", hidden: true, "data-testid": "tip" });
  let on = null;
  const hide = () => {
    on?.removeAttribute("aria-describedby");
    on = null;
    tip.hidden = true;
  };
  const show = (target) => {
    const element = target.closest?.(".tipped");
    if (element === on) return;
    hide();
    if (!element || !box.contains(element) || !SAID.has(element)) return;
    on = element;
    tip.replaceChildren(...[SAID.get(element)()].flat(Infinity).filter(Boolean));
    tip.hidden = false;
    element.setAttribute("aria-describedby", "tip");
    const [at, base] = [element.getClientRects()[0] ?? element.getBoundingClientRect(), box.getBoundingClientRect()];
    const above = at.top - base.top + box.scrollTop - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(Math.min(at.left - base.left, box.clientWidth - tip.offsetWidth - 8), 4)}px`;
    tip.style.top = `${above > box.scrollTop ? above : at.bottom - base.top + box.scrollTop + 6}px`;
  };
  box.addEventListener("pointerover", (event) => show(event.target));
  box.addEventListener("pointerleave", hide);
  box.addEventListener("focusin", (event) => show(event.target));
  box.addEventListener("focusout", hide);
  box.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  return { begin() { hide(); box.append(tip); } };
}

// Arrow keys move within `group` among the elements that `selector` finds; Tab enters at `first` and leaves it.
export function rove(group, selector, first = 0) {
  const items = () => [...group.querySelectorAll(selector)];
  const stop = (chosen) => items().forEach((item) => { item.tabIndex = item === chosen ? 0 : -1; });
  stop(items()[first] ?? items()[0]);
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    const all = items();
    const at = all.indexOf(event.target);
    if (!step || at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    all[Math.min(Math.max(at + step, 0), all.length - 1)].focus();
  });
  group.addEventListener("focusin", (event) => { if (items().includes(event.target)) stop(event.target); });
  return group;
}
