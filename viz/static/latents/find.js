// Finding latents: by what people said, by example text, by token, by logit, by what fires on a text. A saved page looks through
// what it carries.
import { act, can } from "../base/transport.js";

export const KINDS = { any: "anywhere", label: "labels, notes, tags", text: "example text", token: "tokens it fires on", logit: "tokens it promotes",
  fires: "fires on this text" };

export function kindsHere() {
  return Object.keys(KINDS).filter((kind) => (kind === "fires" ? can("fires") : can("search") || ["any", "label", "text"].includes(kind)));
}

// What a query finds: { latents (best first), total, why }, or null for no query.
export async function find(table, kind, query, signal) {
  const wanted = query.trim();
  if (!wanted) return null;
  const found = kind === "fires" && can("fires") ? await act("fires", { store: table.store, text: query }, signal)
    : can("search") ? await act("search", { store: table.store, kind: kind === "fires" ? "any" : kind, query: wanted }, signal) : carried(table, kind, wanted);
  const asNumber = /^\d{1,9}$/.test(wanted) && kind === "any" ? Number(wanted) : null;
  if (asNumber === null || !table.placeOf(asNumber) && table.placeOf(asNumber) !== 0) return found;
  return { ...found, latents: [asNumber, ...found.latents.filter((latent) => latent !== asNumber)] };
}

function carried(table, kind, query) {
  const parts = query.toLowerCase().split(/\s+/);
  const latents = Array.from(table.latents).filter((latent) => {
    const row = table.rows[latent] ?? {};
    const said = table.labelOf(latent) ?? "";
    const text = `${row.before ?? ""}${row.token ?? ""}${row.after ?? ""}`;
    const where = (kind === "label" ? said : kind === "text" ? text : `${said} ${text}`).toLowerCase();
    return parts.every((part) => where.includes(part));
  });
  return { latents, total: latents.length, why: "labels and strongest examples of the latents that this page carries" };
}
