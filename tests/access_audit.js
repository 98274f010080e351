// What is wrong with the page as it stands, for whoever does not see it, does not point, or sees little contrast: a list of "rule: element".
//
// Run in the page (tests/test_viz_access.py). `window.__clicked` holds the elements that listen to clicks, collected by LISTEN there.
// Plotly's pictures are named as a whole, and what lies in them is not looked at. With `only` colours are checked, nothing else.
(only) => {
  const found = [];
  const tell = (rule, element, more = "") => found.push(`${rule}: ${element.outerHTML.slice(0, 160).replace(/\n/g, " ")} ${more}`.trim());
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const drawn = (element) => element.checkVisibility({ visibilityProperty: true });
  const seen = (element) => drawn(element) && !element.closest("[aria-hidden=true], noscript");
  const FOCUSABLE = "a[href], button:not([disabled]), input:not([disabled]), select:not([disabled]), textarea:not([disabled]), summary, [tabindex]";

  // The name that assistive technology gives an element, near enough: labels, then content, then title.
  const given = (element) => element.getAttribute("aria-label")?.trim() || (element.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join(" ").trim() || element.getAttribute("alt")?.trim() || "";
  const content = (element) => [...element.childNodes].map((node) => (node.nodeType === 3 ? node.textContent : node.nodeType === 1 && node.getAttribute("aria-hidden") !== "true" ? given(node) || content(node) : "")).join("").trim();
  const CALLED_BY_CONTENT = "a, button, summary, option, h1, h2, h3, [role=button], [role=tab], [role=option]";
  const name = (element) => given(element) || [...(element.labels ?? [])].map(content).join(" ").trim() || (element.matches(CALLED_BY_CONTENT) ? content(element) : "") || element.getAttribute("title")?.trim() || "";

  function names() {
    const controls = "a[href], button, input, select, textarea, summary, dialog, svg[role], [role=button], [role=tab], [role=option], [role=grid], [role=listbox], [role=application], [role=img], [role=region], [role=tablist], [role=tabpanel], [role=table], [role=group]";
    for (const one of all(controls)) if ((seen(one) || one.localName === "dialog") && !name(one)) tell("no name", one);
    for (const one of all("button[aria-label], a[aria-label], summary[aria-label]")) {
      const read = one.innerText.toLowerCase().match(/[a-z]{3,}/g) ?? [];
      if (seen(one) && !read.every((word) => one.getAttribute("aria-label").toLowerCase().includes(word))) tell("the name is not what is read", one);
    }
    if (!document.documentElement.lang) tell("no language", document.documentElement);
    if (!document.title.trim()) tell("no title", document.head);
  }

  function references() {
    const ids = all("[id]").map((one) => one.id);
    for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) found.push(`an id twice: ${id}`);
    for (const attribute of ["aria-controls", "aria-labelledby", "aria-describedby", "aria-activedescendant", "for"])
      for (const one of all(`[${attribute}]`)) for (const id of one.getAttribute(attribute).split(" ")) if (!document.getElementById(id)) tell(`${attribute} of nothing`, one);
  }

  function roles() {
    const inside = { option: "[role=listbox]", row: "[role=table], [role=grid]", cell: "[role=row]", gridcell: "[role=row]", columnheader: "[role=row]", rowgroup: "[role=table], [role=grid]", tab: "[role=tablist]" };
    const known = new Set([...Object.keys(inside), "listbox", "table", "grid", "tablist", "tabpanel", "button", "img", "group", "region", "status", "tooltip", "application"]);
    for (const one of all("[role]")) {
      if (one.closest(".js-plotly-plot") && !one.matches(".js-plotly-plot")) continue;
      const role = one.getAttribute("role");
      if (!known.has(role)) tell("unknown role", one);
      if (inside[role] && !one.parentElement.closest(inside[role])) tell("a role outside its group", one);
    }
    for (const one of all("[role=row]")) if (seen(one)) for (const child of one.children) if (!/cell|columnheader|rowheader/.test(child.getAttribute("role") ?? "")) tell("no cell in a row", child);
    for (const one of all("[role=img]")) if (seen(one) && !one.matches(".js-plotly-plot") && one.querySelector(FOCUSABLE)) tell("a control in a picture", one);
    const states = { "aria-selected": "[role=option], [role=tab], [role=row], [role=gridcell]", "aria-pressed": "button, [role=button]", "aria-sort": "th, [role=columnheader]", "aria-expanded": "button, summary, [role=button]" };
    for (const [state, where] of Object.entries(states)) for (const one of all(`[${state}]`)) if (!one.matches(where)) tell(`${state} does not belong here`, one);
    for (const one of all("[role=listbox]")) if (seen(one) && !one.querySelector("[role=option]")) tell("an empty listbox", one);
    for (const one of all("[role=listbox], [role=tablist]")) {
      const stops = all(FOCUSABLE, one).filter((each) => each.tabIndex === 0).length + (one.tabIndex === 0 ? 1 : 0);
      if (seen(one) && stops !== 1) tell(`${stops} stops in a group`, one);
    }
  }

  function structure() {
    for (const one of all("a a, a button, button button, button a, [role=option] a, [role=option] button, [role=button] button, summary a, summary button")) tell("a control in a control", one);
    for (const one of all("ul, ol")) for (const child of one.children) if (child.localName !== "li") tell("no li in a list", child);
    for (const one of all("dl")) for (const child of one.children) if (!/^(dt|dd|div)$/.test(child.localName)) tell("no dt in a dl", child);
    for (const one of all("th")) if (seen(one) && !one.getAttribute("scope")) tell("th without a scope", one);
    const headings = all("h1, h2, h3, h4, h5, h6").filter((one) => drawn(one) && !one.closest("dialog:not([open])"));
    const level = (one) => Number(one.localName[1]);
    const first = headings.filter((one) => level(one) === 1).length;
    if (first !== 1) found.push(`${first} headings h1`);
    headings.forEach((one, at) => { if (level(one) > (at ? level(headings[at - 1]) : 0) + 1) tell("a heading skips a level", one); });
    for (const one of all("svg, canvas, img")) if (seen(one) && one.id !== "js-plotly-tester" && !one.parentElement.closest("svg, [role=img]") && !(one.getAttribute("role") && name(one))) tell("a picture without a name", one);
  }

  // What hears a click can be reached by keys: itself, by something in it, or as a part of a group that hears keys.
  function keys() {
    for (const one of window.__clicked ?? []) {
      if (!one.isConnected || !seen(one) || one.closest(".js-plotly-plot")) continue;
      if (!one.matches(`${FOCUSABLE}, label, dialog, body`) && !one.querySelector(FOCUSABLE) && !one.closest("[role=listbox], [role=grid], [role=table]")) tell("a click without a key", one);
    }
    const [before, modal] = [document.activeElement, document.querySelector("dialog[open]")];
    for (const one of all(FOCUSABLE)) {
      if (!seen(one) || one.closest("dialog:not([open])") || one.tabIndex < 0 || (modal && !modal.contains(one))) continue;
      one.focus({ preventScroll: true });
      if (document.activeElement !== one) { tell("cannot be focused", one); continue; }
      const style = getComputedStyle(one);
      const shape = one.querySelector(".reach, rect");
      const isSeen = (style.outlineStyle !== "none" && Number.parseFloat(style.outlineWidth) > 0) || style.boxShadow !== "none" || (shape && getComputedStyle(shape).stroke !== "none");
      if (!isSeen) tell("focus is not seen", one);
    }
    before?.focus?.({ preventScroll: true });
  }

  // WCAG 2.2, 2.5.8: 24 px, but for what stands in a line of text or a table.
  function sizes() {
    for (const one of all("#pane button, #pane summary, #pane select, #pane input, header button, header a")) {
      const box = one.getBoundingClientRect();
      if (seen(one) && box.width && (box.width < 24 || box.height < 24) && !one.matches("td *, th *, p *, li *, [role=columnheader] *, [type=range], [type=checkbox], [type=radio]")) tell(`small, ${box.width.toFixed(0)} × ${box.height.toFixed(0)}`, one);
    }
  }

  // WCAG 1.4.3, on what lies under a text: papers of its ancestors, its own gradient, and how much of it is seen.
  function contrast() {
    const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const luminance = (layers) => {
      context.clearRect(0, 0, 1, 1);
      for (const [colour, alpha] of layers) { [context.globalAlpha, context.fillStyle] = [alpha, colour]; context.fillRect(0, 0, 1, 1); }
      const [red, green, blue] = [...context.getImageData(0, 0, 1, 1).data].map((part) => linear(part / 255));
      return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const known = new Map();
    const ratio = (papers, ink, alpha) => {
      const asked = JSON.stringify([papers, ink, alpha]);
      if (!known.has(asked)) {
        const [a, b] = [luminance(papers), luminance([...papers, [ink, alpha]])];
        known.set(asked, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
      }
      return known.get(asked);
    };
    const under = new Map([[null, { papers: [], opacity: 1 }]]);
    const beneath = (element) => {
      if (!under.has(element)) {
        const [above, its] = [beneath(element.parentElement), getComputedStyle(element)];
        const papers = /, 0\)$|transparent/.test(its.backgroundColor) ? above.papers : [...above.papers, [its.backgroundColor, 1]];
        under.set(element, { papers, opacity: above.opacity * Number(its.opacity) });
      }
      return under.get(element);
    };
    for (const one of all("body *")) {
      if (![...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) || !one.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
      if (one.closest("[hidden], :disabled, option, noscript, script, style, title, dialog:not([open]), .unseen")) continue;
      const style = getComputedStyle(one);
      const { papers, opacity } = beneath(one);
      const gradient = style.backgroundImage.includes("gradient") ? style.backgroundImage.match(/(?:rgba?|color|oklab|oklch)\([^()]*\)/g) : [];
      const ink = one.closest("svg") ? style.fill : style.color;
      const least = Math.min(ratio(papers, ink, opacity), ...gradient.map((paper) => ratio([...papers, [paper, 1]], ink, opacity)));
      const size = Number.parseFloat(style.fontSize);
      if (least < (size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5)) tell(`contrast ${least.toFixed(2)}`, one);
    }
  }

  for (const check of only ? [contrast] : [names, references, roles, structure, keys, sizes, contrast]) check();
  return found;
}
