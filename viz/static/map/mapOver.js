// What lies over the points: the chosen one, the one that is pointed at, labels with room around them, the selection being drawn.
import { colour } from "../base/plots.js";

const MOST = 60;         // labels in one picture
export const FEW = 40;   // so many points in sight are all named, if only by number
const LONGEST = 28;      // characters of a label on the map

function short(text) {
  const letters = [...text];
  return letters.length > LONGEST ? `${letters.slice(0, LONGEST - 1).join("")}…` : text;
}

// Boxes that are taken, in cells, so that a new label looks at its neighbours only.
function room(width, height) {
  const [cell, taken] = [40, new Map()];
  const cells = ({ left, top, right, bottom }) => {
    const found = [];
    for (let x = Math.floor(left / cell); x <= Math.floor(right / cell); x += 1) for (let y = Math.floor(top / cell); y <= Math.floor(bottom / cell); y += 1) found.push(`${x},${y}`);
    return found;
  };
  return (box) => {
    if (box.left < 2 || box.right > width - 2 || box.top < 2 || box.bottom > height - 2) return false;
    const near = cells(box);
    const apart = (one) => one.right < box.left || one.left > box.right || one.bottom < box.top || one.top > box.bottom;
    if (!near.every((name) => (taken.get(name) ?? []).every(apart))) return false;
    for (const name of near) taken.set(name, [...(taken.get(name) ?? []), box]);
    return true;
  };
}

function ring(context, x, y, radius, ink, paper) {
  for (const [width, stroke] of [[4, paper], [2, ink]]) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.lineWidth = width;
    context.strokeStyle = stroke;
    context.stroke();
  }
}

function written(context, text, x, y, ink, paper) {
  context.lineWidth = 3.5;
  context.lineJoin = "round";
  context.strokeStyle = paper;
  context.strokeText(text, x, y);
  context.fillStyle = ink;
  context.fillText(text, x, y);
}

// The places whose names are drawn, best first: starred, labelled, and where few points are in sight all of these.
function named({ marked, few, seen, stars, labels, ids }) {
  const score = (place) => (stars.has(ids(place)) ? 2 : 0) + (labels.has(ids(place)) ? 1 : 0);
  const found = [...new Set([...marked.filter(seen), ...few])];
  return found.sort((a, b) => score(b) - score(a) || a - b).slice(0, 4 * MOST);
}

// Draw everything over the points. `marks` are { place, kind: "chosen" | "focus" }; `path` the outline of a selection in pixels.
export function drawOver(canvas, ratio, { width, height, at, radius, marks, path, naming }) {
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const [ink, paper, accent, heat] = ["--ink", "--paper", "--accent", "--heat"].map(colour);
  context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "middle";
  const free = room(width, height);
  const ringed = (place) => (marks.some((mark) => mark.place === place) ? 5 : 0);
  let drawn = 0;
  for (const place of named(naming)) {
    if (drawn >= MOST) break;
    const latent = naming.ids(place);
    const label = naming.labels.get(latent);
    const text = `${naming.stars.has(latent) ? "★ " : ""}${label ? short(label) : latent}`;
    const [x, y] = at(place);
    const wide = context.measureText(text).width;
    const box = { left: x + radius + 5 + ringed(place), top: y - 8, right: x + radius + 7 + ringed(place) + wide, bottom: y + 8 };
    if (!free(box)) continue;
    written(context, text, box.left, y, ink, paper);
    drawn += 1;
  }
  for (const { place, kind } of marks) ring(context, ...at(place), radius + (kind === "chosen" ? 5 : 4), kind === "chosen" ? heat : ink, paper);
  if (path.length > 1) outline(context, path, accent);
  return drawn;
}

function outline(context, path, accent) {
  context.beginPath();
  path.forEach(([x, y], place) => (place ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.closePath();
  context.globalAlpha = 0.12;
  context.fillStyle = accent;
  context.fill();
  context.globalAlpha = 1;
  context.lineWidth = 1.5;
  context.strokeStyle = accent;
  context.stroke();
}

// The places inside an outline, by the even-odd rule.
export function inside(path, points, [per, right, down]) {
  if (path.length < 3) return [];
  const [xs, ys] = [path.map(([x]) => x), path.map(([, y]) => y)];
  const [left, edge, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const found = [];
  for (let place = 0; place < points.x.length; place += 1) {
    const px = points.x[place] * per + right;
    const py = down - points.y[place] * per;
    if (px < left || px > edge || py < top || py > bottom) continue;
    let odd = false;
    for (let i = 0, j = path.length - 1; i < path.length; j = i, i += 1) {
      if (ys[i] > py !== ys[j] > py && px < ((xs[j] - xs[i]) * (py - ys[i])) / (ys[j] - ys[i]) + xs[i]) odd = !odd;
    }
    if (odd) found.push(place);
  }
  return found;
}
