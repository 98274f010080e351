// What a reader can do with a page, done in the page at once: each kind of control is pointed at, focused and pressed, every figure
// hovered, every key struck; after each the page is looked through for what came of strings. The page's own errors, requests and dialogs
// are heard outside (test_viz_hostile_views.py). Runs before the page's own script.
(() => {
  const RAW = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|\p{Surrogate}/u;
  const MARKUP = "img, iframe, object, embed, base, b b, [onerror], [onload], [onclick], [srcdoc], [href^='javascript:' i], #pane script";
  const READ = ["title", "aria-label", "placeholder", "alt", "data-value"];
  const CONTROLS = "a[href], button, summary, select, input, textarea, [role=button], [tabindex], .tipped, [data-testid=latent-row], [data-testid=compare-row], [data-testid=diff-row]";
  const KEYS = [..."abcdefghijklmnopqrstuvwxyz+-0[]", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "PageDown", "Home", "End", "Enter", " ", "Escape", "?"];
  const TYPED = "\u202e<img src=x onerror=window.__pwned=8>";
  const wait = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
  const found = new Set();
  let doing = "";
  const tell = (fault) => found.add(`${doing}: ${fault}`);
  document.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => tell(`policy: ${violatedDirective} ${blockedURI}`));

  // What came of a payload in a part of the page: elements that no view makes, among them bold words that were a token's own markup.
  function markup(part) {
    for (const one of part.querySelectorAll(MARKUP)) tell(`markup: ${one.outerHTML.slice(0, 160)}`);
    for (const one of part.querySelectorAll("b, tspan")) if (one.textContent === "bold") tell("markup: bold");
    if (part.matches?.(MARKUP)) tell(`markup: ${part.outerHTML.slice(0, 160)}`);
  }

  // Text that a reader sees with signs in it that turn or cut it; what stands in a field is the reader's to change, and turns nothing around it.
  function raw(part) {
    if (!RAW.test(part.outerHTML)) return;
    const walker = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode())
      if (RAW.test(node.data) && !node.parentElement.closest("textarea")) tell(`raw text: ${node.parentElement.outerHTML.slice(0, 160)}`);
    for (const name of READ) for (const one of part.querySelectorAll(`[${name}]`)) if (RAW.test(one.getAttribute(name))) tell(`raw ${name}: ${one.outerHTML.slice(0, 160)}`);
  }

  // Also what stands for a moment only, such as a word beside the pointer.
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes) for (const node of addedNodes) if (node instanceof Element && !node.matches("script, style")) { markup(node); raw(node); }
  }).observe(document, { childList: true, subtree: true });

  function look() {
    markup(document);
    for (const part of [document.getElementById("pane"), document.getElementById("bar"), ...document.querySelectorAll("dialog")]) raw(part);
    if (RAW.test(document.title)) tell("raw window title");
    if (window.__pwned !== undefined) tell(`ran: ${window.__pwned}`);
  }

  const wide = () => document.documentElement.scrollWidth - innerWidth;
  const shown = () => document.querySelector("#pane > .view")?.dataset.testid;
  const wanted = (address) => `view-${/pane=(\w+)/.exec(address)[1]}`;
  let turn = 0;

  // Whether the view of an address is there; a part that means nothing makes the address a new one.
  async function go(address, selector) {
    location.hash = `${address}&turn=${turn += 1}`;
    for (let tries = 0; tries < 1000; tries += 1) {
      await wait(10);
      if (shown() === wanted(address) && document.querySelector(selector)) return true;
    }
    return false;
  }

  function point(one) {
    const { left, top, width, height } = one.getBoundingClientRect();
    const where = { bubbles: true, clientX: left + width / 2, clientY: top + height / 2, pointerId: 1 };
    for (const type of ["pointerover", "pointermove"]) one.dispatchEvent(new PointerEvent(type, where));
    for (const type of ["mouseover", "mousemove"]) one.dispatchEvent(new MouseEvent(type, where));
    one.focus?.({ preventScroll: true });
  }

  function press(one) {
    if (one.tagName === "SELECT") one.selectedIndex = (one.selectedIndex + 1) % one.options.length;
    else if (one.type === "number") one.value = "1e40";
    else if (["text", "search"].includes(one.type) || one.tagName === "TEXTAREA") one.value = TYPED;
    else return one.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
    for (const type of ["input", "change"]) one.dispatchEvent(new Event(type, { bubbles: true }));
    return undefined;
  }

  // The pointer over every chart, over the whole map, and over all that has words to show.
  async function hover() {
    for (const area of document.querySelectorAll(".nsewdrag, .map-over")) {
      const { left, top, width, height } = area.getBoundingClientRect();
      const [across, down] = area.matches(".map-over") ? [Math.ceil(width / 16), Math.ceil(height / 16)] : [5, 3];
      for (let x = 0.5; x < across; x += 1) for (let y = 0.5; y < down; y += 1) {
        const where = { bubbles: true, pointerId: 1, clientX: left + (x * width) / across, clientY: top + (y * height) / down };
        area.dispatchEvent(new MouseEvent("mousemove", where));
        area.dispatchEvent(new PointerEvent("pointermove", where));
        if (area.matches(".nsewdrag")) await wait(0);
      }
    }
    for (const part of [...document.querySelectorAll(".tipped, [data-testid=node], .edge")].slice(0, 30)) part.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    for (const part of document.querySelectorAll(".slice, .sankey-node, .sankey-link, .point")) part.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
    await wait(100);   // the map asks for the words about a point after a while, a chart does not follow every move
  }

  const kind = (one) => [one.tagName, one.dataset.testid ?? one.closest("[data-testid]")?.dataset.testid, one.getAttribute("class")?.split(" ")[0], one.getAttribute("role"), one.type].join(" ");
  const known = new Set();   // of all views: a control that stands in several is pressed in one

  // Everything in one view; tells what was wrong, and what was pressed.
  async function poke(address, selector) {
    found.clear();
    doing = "drawn";
    if (!await go(address, selector)) return { found: [`not drawn: ${shown()}`], pressed: [] };
    await hover();
    look();
    const pressed = [];
    for (;;) {
      const next = [...document.querySelectorAll(`#pane :is(${CONTROLS})`)].find((one) => !known.has(kind(one)) && one.checkVisibility());
      if (!next) break;
      doing = kind(next);
      known.add(doing);
      pressed.push(doing);
      point(next);
      press(next);
      await wait(20);
      look();
      if (shown() !== wanted(address)) await go(address, selector);
    }
    doing = "pressed";
    await go(address, selector);
    if (pressed.length) await hover();
    if (wide() > 0) tell(`wider than the screen by ${wide()} px`);
    doing = "keys";
    for (const key of KEYS) {
      document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
      await wait(0);
    }
    look();
    for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
    return { found: [...found], pressed };
  }

  window.__hostile = { go, poke, wide };
})();
