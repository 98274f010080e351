// Elements from data. Strings become text nodes, never markup.
import { hashOf, set } from "./state.js";

// What would turn the text around it the other way, or is no letter at all; the same signs as in viz/text.py. No answer holds any, but
// an address may, and what is typed.
const UNSAFE = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|\p{Surrogate}/gu;
const READ = new Set(["title", "aria-label", "placeholder"]);   // attributes that are read by people

export function readable(text) {
  return String(text).replace(UNSAFE, (sign) => `⟨U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

const SVG = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "title", "polygon"]);

export function h(tag, attributes = {}, ...children) {
  const element = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : READ.has(name) ? readable(value) : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : document.createTextNode(tag === "textarea" ? String(child) : readable(child)))));
  return element;
}

// A link to another state. It is not left to the browser, which would leave a notebook's frame; but what is copied or opened in
// another tab is the state as it is by then.
export function link(changes, attributes, ...children) {
  const follow = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    set(changes, { push: true });
  };
  const renew = (event) => event.currentTarget.setAttribute("href", hashOf(changes));
  return h("a", { href: hashOf(changes), onclick: follow, onpointerdown: renew, onfocus: renew, ...attributes }, ...children);
}

// New content of an element; what is not there is left out.
export function refill(box, ...children) {
  box.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
}

const GROUPED = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

// A value as it is read: three digits, groups of thousands, and a minus that is a minus.
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  const text = Number.isInteger(value) || size >= 1000 ? GROUPED.format(value) : size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  return text.startsWith("-") ? `−${text.slice(1)}` : text;
}

// A change: with its sign, either way.
export function signed(value) {
  return value > 0 ? `+${number(value)}` : number(value);
}

export function percent(share) {
  if (share === null || share === undefined) return "–";
  return `${number(100 * share)} %`;
}

// Attributes of a part of a picture that can be pressed, by pointer and by keys.
export function pressed(run) {
  return { role: "button", tabindex: 0, onclick: run, onkeydown: (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    run(event);
  } };
}

// A number and what it is, in a box; `target` makes it a link to that state.
export function tile(value, name, target = null) {
  const content = [h("b", {}, value), h("span", {}, name)];
  return target ? link(target, { class: "tile" }, content) : h("div", { class: "tile" }, content);
}

// A few choices of which one holds: { value: text }.
export function segments(label, names, current, pick, testid, titles = {}) {
  return h("div", { class: "segments", role: "group", "aria-label": label }, Object.entries(names).map(([name, text]) =>
    h("button", { type: "button", "aria-pressed": String(name === current), "data-testid": `${testid}-${name}`, title: titles[name], onclick: () => pick(name) }, text)));
}

// A table of names and values; nested data are shown one level, dotted names outside.
export function facts(pairs, testid = null) {
  return h("table", { class: "facts", "data-testid": testid },
    h("tbody", {}, pairs.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, words(name)), h("td", {}, plain(value))))));
}

export function words(name) {
  return String(name).replaceAll("_", " ");
}

function plain(value) {
  if (Array.isArray(value)) return value.map(plain).join(", ");
  if (value !== null && typeof value === "object") return Object.entries(value).map(([key, inner]) => `${words(key)}: ${plain(inner)}`).join("; ");
  return number(value);
}

export function flat(data, prefix = "") {
  return Object.entries(data ?? {}).flatMap(([key, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value) ? flat(value, `${prefix}${key}.`) : [[prefix + key, value]]);
}

export function details(summary, ...children) {
  return h("details", {}, h("summary", {}, summary), ...children);
}

export function choice(label, names, selected, pick) {
  if (names.length < 2) return null;
  const select = h("select", { "aria-label": label, onchange: (event) => pick(Number(event.target.value)) },
    names.map((name, place) => h("option", { value: place, selected: place === selected }, name)));
  return h("label", { class: "choice" }, h("span", {}, label), select);
}

export function empty(text) {
  return h("p", { class: "empty", "data-testid": "empty" }, text);
}
