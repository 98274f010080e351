// Take a figure or a table away: PNG, SVG, HTML, CSV, JSON, made here from what is shown.
//
//   exports("latent 12", { svg: () => element, table: () => ({ columns, rows }), figure: () => ({ data, layout }), json: () => object })
//
// Each source is asked when its button is pressed, so that what is saved is what is seen.
import { h } from "./dom.js";
import { csv, saved } from "./save.js";
import { plotly } from "./transport.js";

const KEPT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "fill-opacity", "stroke-opacity", "font-family", "font-size", "font-weight", "text-anchor", "display"];
const SCALE = 2;   // pixels of a PNG for each of the screen's

// The picture with its computed colours written out, on the page's paper, standing alone.
function standalone(shown) {
  const copy = shown.cloneNode(true);
  const [from, to] = [[shown, ...shown.querySelectorAll("*")], [copy, ...copy.querySelectorAll("*")]];
  from.forEach((element, place) => {
    const style = getComputedStyle(element);
    for (const name of KEPT) to[place].style.setProperty(name, style.getPropertyValue(name));
  });
  const { width, height } = shown.getBoundingClientRect();
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  if (!copy.hasAttribute("viewBox")) copy.setAttribute("viewBox", `0 0 ${width} ${height}`);
  copy.style.background = getComputedStyle(document.body).backgroundColor;
  return { text: new XMLSerializer().serializeToString(copy), width, height };
}

async function picture({ text, width, height }) {
  const image = new Image();
  await new Promise((resolve, reject) => {
    image.onload = resolve;
    image.onerror = () => reject(new Error("the picture could not be drawn"));
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text.toWellFormed())}`;
  });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.ceil(width * SCALE), Math.ceil(height * SCALE)];
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.body).backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
}

// A document without scripts that holds the picture or the table; the serialiser escapes what the data hold.
function page(title, parts) {
  const made = document.implementation.createHTMLDocument(title.toWellFormed());
  const head = [["charset", "utf-8"], ["http-equiv", "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:"]];
  for (const [name, value, content] of head) {
    const meta = made.createElement("meta");
    meta.setAttribute(name, value);
    if (content) meta.content = content;
    made.head.prepend(meta);
  }
  const style = made.createElement("style");
  style.textContent = "body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem } td, th { padding: .2rem .8rem; border-bottom: 1px solid #8884; text-align: left } table { border-collapse: collapse }";
  made.head.append(style);
  made.body.append(h("h1", {}, title), ...parts);
  return `<!doctype html>\n${new XMLSerializer().serializeToString(made.documentElement)}`;
}

function tableOf({ columns, rows }) {
  return h("table", {}, h("thead", {}, h("tr", {}, columns.map((column) => h("th", {}, column)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell ?? ""))))));
}

function pictureOf({ text }) {
  return document.importNode(new DOMParser().parseFromString(text, "image/svg+xml").documentElement, true);
}

async function plotted(figure, format) {
  const [Plotly, { width, height }] = [await plotly(), figure.layout];
  return Plotly.toImage(figure, { format, width: width ?? 900, height: height ?? 500, scale: format === "png" ? SCALE : 1 });
}

async function bytesOf(address) {
  const [start, data] = [address.slice(0, address.indexOf(",")), address.slice(address.indexOf(",") + 1)];
  return start.endsWith(";base64") ? Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)) : decodeURIComponent(data);
}

// The forms in which these sources can be saved: name → what makes it.
function forms(name, { svg, table, figure, json }) {
  return Object.entries({
    PNG: (svg || figure) && (async () => saved(name, "png", "image/png", svg ? await picture(standalone(svg())) : await bytesOf(await plotted(figure(), "png")))),
    SVG: (svg || figure) && (async () => saved(name, "svg", "image/svg+xml", svg ? standalone(svg()).text : await bytesOf(await plotted(figure(), "svg")))),
    HTML: (svg || figure || table) && (async () => saved(name, "html", "text/html", page(name, [
      svg ? pictureOf(standalone(svg())) : null, figure ? pictureOf({ text: await bytesOf(await plotted(figure(), "svg")) }) : null, table ? tableOf(table()) : null].filter(Boolean)))),
    CSV: table && (async () => saved(name, "csv", "text/csv", csv(table()))),
    JSON: (json || figure) && (async () => saved(name, "json", "application/json", JSON.stringify((json ?? figure)(), null, 1))),
  }).filter(([, make]) => make);
}

// A menu: it closes when a press or the focus goes elsewhere, and by Escape; it opens to the side where there is room.
document.addEventListener("pointerdown", ({ target }) => {
  for (const menu of document.querySelectorAll(".exports[open]")) if (!menu.contains(target)) menu.open = false;
});

export function exports(name, sources) {
  const told = h("span", { class: "quiet", role: "status" });
  const button = ([form, make]) => h("button", { type: "button", "data-testid": `export-${form.toLowerCase()}`, onclick: async () => {
    told.textContent = "";
    try {
      await make();
    } catch (error) {
      told.textContent = `could not be saved: ${error.message}`;
    }
  } }, form);
  const list = h("div", { class: "tools" }, forms(name, sources).map(button), told);
  const place = () => {
    menu.classList.remove("rightwards");
    if (menu.open && list.getBoundingClientRect().left < 4) menu.classList.add("rightwards");
  };
  const leave = ({ relatedTarget }) => { if (relatedTarget && !menu.contains(relatedTarget)) menu.open = false; };
  const escape = (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    event.stopPropagation();
    menu.open = false;
    menu.querySelector("summary").focus();
  };
  const menu = h("details", { class: "exports", ontoggle: place, onfocusout: leave, onkeydown: escape },
    h("summary", { "aria-label": `Save “${name}”`, title: `Save “${name}” as a file` }, "Save"), list);
  return menu;
}
