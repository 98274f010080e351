// Files made in the page, and tables as CSV.

// Hand a text or a blob to the browser as a file that is called by `name`.
export function saved(name, ending, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type: `${type};charset=utf-8` }));
  const link = document.createElement("a");
  link.href = address;
  link.download = `${name.toWellFormed().replace(/[^\p{L}\p{N}._ -]+/gu, "_").trim().slice(0, 80) || "unweave"}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// RFC 4180. A spreadsheet would run a text that begins like a formula, so such a text gets an apostrophe before it.
function cell(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  const text = String(value).toWellFormed();
  const tame = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(tame) ? `"${tame.replaceAll('"', '""')}"` : tame;
}

export function csv({ columns, rows }) {
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
