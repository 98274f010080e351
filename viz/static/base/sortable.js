// A table whose columns can be sorted by their headings. The order stands in the address, under a key of its own.
import { h, number } from "./dom.js";
import { declare, on, set, state } from "./state.js";

const shown = {};   // key of the state → what draws the table of that key anew

// The state's key for the order of a table: a column's title, "-" before it for descending.
export function orderKey(key) {
  declare({ [key]: "" });
  on([key], () => shown[key]?.());
  return key;
}

function compared(column, down) {
  return (a, b) => {
    const [x, y] = [column.value(a) ?? null, column.value(b) ?? null];
    if (x === null || y === null) return Number(x === null) - Number(y === null);
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return down ? -order : order;
  };
}

// `columns`: [{ title, value(row) → what is sorted and shown, show(row) → element, optional, note }]; the first names the row.
// `by` is the order without a choice, as the state would have it.
export function sortable(columns, rows, { key, name, testid, by = "" }) {
  const [head, body] = [h("tr", {}), h("tbody", {})];
  const heading = (each, now) => {
    const isFalling = typeof each.value(rows[0] ?? {}) === "number";
    const next = each === now.column ? (now.down ? each.title : `-${each.title}`) : isFalling ? `-${each.title}` : each.title;
    return h("th", { scope: "col", "aria-sort": each === now.column ? (now.down ? "descending" : "ascending") : "none", title: each.note },
      h("button", { type: "button", onclick: () => set({ [key]: next }) }, each.title, each === now.column ? (now.down ? " ↓" : " ↑") : ""));
  };
  const draw = () => {
    const order = state[key] || by;
    const now = { column: columns.find(({ title }) => title === order.replace(/^-/, "")), down: order.startsWith("-") };
    const focused = [...head.children].findIndex((each) => each.contains(document.activeElement));
    head.replaceChildren(...columns.map((each) => heading(each, now)));
    body.replaceChildren(...(now.column ? [...rows].sort(compared(now.column, now.down)) : rows).map((row) => h("tr", {}, columns.map((each, place) => {
      const content = each.show ? each.show(row) : number(each.value(row));
      return place ? h("td", {}, content) : h("th", { scope: "row" }, content);
    }))));
    head.children[focused]?.querySelector("button").focus();
  };
  shown[key] = draw;
  draw();
  return h("div", { class: "scroll sortable-box", tabindex: 0, role: "region", "aria-label": name }, h("table", { class: "grid sortable", "data-testid": testid }, h("thead", {}, head), body));
}

// The same as data for a file.
export function tableData(columns, rows) {
  return { columns: columns.map(({ title }) => title), rows: rows.map((row) => columns.map(({ value }) => value(row))) };
}
