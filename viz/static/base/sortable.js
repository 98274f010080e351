// A table whose columns can be sorted by their headings.
import { h, number } from "./dom.js";

// `columns`: [{ title, value(row) → what is sorted and shown, show(row) → element, optional, note }]; the first names the row.
export function sortable(columns, rows, { testid = null, by = null, descending = true } = {}) {
  let [column, down] = [by, descending];
  const body = h("tbody", {});
  const head = h("tr", {});
  const compare = (a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    if (x === null || x === undefined || y === null || y === undefined) return (x ?? null) === null ? ((y ?? null) === null ? 0 : 1) : -1;
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return down ? -order : order;
  };
  const draw = () => {
    const order = column ? [...rows].sort(compare) : rows;
    head.replaceChildren(...columns.map((each) => h("th", { scope: "col", "aria-sort": each === column ? (down ? "descending" : "ascending") : "none", title: each.note },
      h("button", { type: "button", onclick: () => { down = each === column ? !down : typeof each.value(rows[0] ?? {}) === "number"; column = each; draw(); } },
        each.title, each === column ? (down ? " ↓" : " ↑") : ""))));
    body.replaceChildren(...order.map((row) => h("tr", {}, columns.map((each, place) => {
      const content = each.show ? each.show(row) : number(each.value(row));
      return place ? h("td", {}, content) : h("th", { scope: "row" }, content);
    }))));
  };
  draw();
  return h("div", { class: "scroll sortable-box", tabindex: 0, role: "region", "aria-label": testid ?? "table" }, h("table", { class: "grid sortable", "data-testid": testid }, h("thead", {}, head), body));
}

// The same as data for a file.
export function tableData(columns, rows) {
  return { columns: columns.map(({ title }) => title), rows: rows.map((row) => columns.map(({ value }) => value(row))) };
}
