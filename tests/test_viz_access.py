"""The whole browser for who does not point, or sees little contrast: every pane audited in both colour schemes, and walked by keys.

What is checked of a page as it stands is in access_audit.js (names, ids, roles, headings, pictures, keys, sizes, contrast); the data
are hostile, so that names and structure hold whatever is shown.
"""

import re
from pathlib import Path

import fake_live
import fakes
import pytest
import torch
from fake_live import TEXT, launched, serving
from saes_toys import cached, dictionary, model
from unweave.circuits import Graph, QKTable
from unweave.circuits.attention.qk import Pair
from unweave.saes import FeatureStore, collect
from unweave.saes.errors import UserError
from unweave.saes.latents.maps import Layout, write_map
from unweave.viz import write_page
from unweave.viz.things import Things, open_things

expect = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright").expect
AUDIT = (Path(__file__).parent / "access_audit.js").read_text("utf-8").split("\n(only) =>", 1)[1]
LISTEN = """window.__clicked = new Set();
const add = EventTarget.prototype.addEventListener;
EventTarget.prototype.addEventListener = function (type, ...rest) {
  if (type === "click" && this instanceof Element) window.__clicked.add(this);
  return add.call(this, type, ...rest);
};"""
ASKED = f"pane=prompt&store=1&prompt={TEXT.replace(' ', '%20')}"


class Host(fake_live.Fake):
    """A live host that can do everything, with a made-up model."""

    def abilities(self):
        return {"features", "fires", "steer", "generate", "effects", "validate", "qk", "view", "label", "history", "search", "map", "match"}  # fmt: skip

    def effects(self, body):
        examples = {}
        for row in body["rows"]:
            shown = len(self.store(body["store"]).example_at(body["latent"], row).tokens)
            examples[str(row)] = {
                "loss": [(place % 3 - 1) * 0.4 for place in range(shown)],
                "up": [[[fakes.HOSTILE[0], 1.5]]] * shown,
                "down": [[]] * shown,
            }
        return {"examples": examples, "note": "loss without it less loss with it, in nats"}

    def validate(self, place, nodes):
        size = [0.1 * (number + 1) for number in range(len(nodes))]
        alone = {"nodes": nodes, "predicted": size, "measured": [-one for one in size]}
        together = {"top_predicted": 1.0, "top_measured": 0.5, "control_measured": [0.1, 0.2]}
        return alone | together | {"node_controls": [[0.01]] * len(nodes), "spearman": -1.0, "interval": [-1.0, 1.0], "warnings": [fakes.HOSTILE[0]]}  # fmt: skip

    def qk(self, place, layer, head, query, key):
        nodes = self.graph(place).nodes[:24]
        factors = torch.randn(2, 24, 4, generator=torch.Generator().manual_seed(head), dtype=torch.float64)
        score = float(factors[0].sum(0) @ factors[1].sum(0))
        return QKTable(layer, head, query, key, score, 0.0, None, nodes, tuple(range(24)), (Pair(0, 1, 0.5),), *factors)


def compared(base: Path) -> list[FeatureStore]:
    """Two stores of one text, which can be matched by correlation."""
    shards = cached(base / "shards", count=20)
    found = []
    for place in range(2):
        own = dictionary(latents=24, seed=place, dtype=torch.float32)
        own.save(base / f"toy-{place}")
        found.append(collect(own, shards, base / f"store-{place}", model(), progress=False))
    return found


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Things:
    base = tmp_path_factory.mktemp("access")
    folder = fakes.demo(base / "demo", hostile=True)
    mapped = FeatureStore.open(folder / "features" / "embed-0")
    places = torch.arange(64)
    layout = Layout(torch.stack([places % 8, places // 8], 1).float(), "umap", {"metric": "cosine", "neighbours": 15, "seed": 0})  # fmt: skip
    write_map(mapped, layout, "e" * 16)
    mapped.labels.set(5, label=fakes.HOSTILE[0], note=fakes.HOSTILE[1], tags=[fakes.HOSTILE[2][:40]], is_starred=True, score={"value": 0.8, "low": 0.7, "high": 0.9, "n": 40, "method": fakes.HOSTILE[1]})  # fmt: skip
    opened = open_things([folder, fakes.store(base / "coded", 40, hostile=True, codes=True), *compared(base)])
    graph = fakes.graph(hostile=True, seed=1)
    heads = [{"target": graph.targets[0], "source": 70, "layer": 0, "heads": [1.0, -0.5], "bypass": 0.1}]
    opened.graphs["split"] = Graph(list(graph.nodes), graph.edges, graph.row_values, graph.metadata | {"heads": heads})
    opened.files = {"circuit": folder / "circuit.graph"}
    return opened


@pytest.fixture(scope="module")
def live(things):
    with serving(Host(things)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


class Tab:
    """One tab: opens states, and remembers what the page should not have said."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page, self.address, self.wrong = self.context.new_page(), address, []
        self.page.add_init_script(LISTEN)
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.press = self.page.keyboard.press

    def open(self, hash="", wait=None):
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}#{hash}")
        self.page.wait_for_selector("body[data-ready=yes]", timeout=20_000)
        if wait:
            self.page.locator(wait).first.wait_for(timeout=20_000)
        return self

    def at(self, testid):
        return self.page.get_by_test_id(testid)

    def focused(self, what="dataset.testid"):
        return self.page.evaluate(f"() => document.activeElement.{what}")

    def audited(self):
        """What is wrong with the page as it stands, its colours in light and dark; a key is pressed before, so that the focus is shown."""
        self.page.wait_for_timeout(150)
        self.press("Tab")
        found = self.page.evaluate("(only) =>" + AUDIT, False)
        self.page.emulate_media(color_scheme="dark")
        self.page.wait_for_timeout(100)
        found += [f"dark: {each}" for each in self.page.evaluate("(only) =>" + AUDIT, True)]
        self.page.emulate_media(color_scheme="light")
        return found

    def close(self):
        assert self.page.evaluate("window.__pwned") is None
        assert not [text for text in self.wrong if "404" not in text]  # the browser tells of it where a latent is asked for that is none
        self.context.close()


@pytest.fixture
def tab(browser, live):
    tab = Tab(browser, live)
    yield tab
    tab.close()


def written(tab):
    tab.at("run-edits").click()
    tab.at("steer-table").wait_for()
    tab.at("write").click()
    expect(tab.at("generate-status")).to_have_text("written", timeout=10_000)


def marked(tab):
    tab.at("effects").click()
    tab.page.locator(".t.helps").first.wait_for()
    tab.at("history").locator("summary").click()
    tab.press("n")


def validated(tab):
    tab.at("validate").click()
    tab.at("scatter").wait_for()
    tab.page.get_by_text("Numbers", exact=True).click()


def explained(tab):
    tab.at("qk-look").click()
    tab.at("qk-heat").wait_for()


def saving(tab):
    tab.page.locator(".exports > summary").first.click()


def helped(tab):
    tab.press("?")


# Every pane and what can be opened in it: the address, what to wait for, what to do then.
STATES = {
    "overview": ("", "[data-testid=graphs]", None),
    "list": ("pane=latents&store=2&query=fox&sort=-max_value&filter=alive;density:1e-4..", "[data-testid=latent-row]", saving),
    "card": ("pane=latents&latent=5", "[data-testid=examples] .t", marked),
    "intervals": ("pane=latents&store=2&latent=1&intervals=width&bins=width", "[data-testid=company] td", None),
    "no such latent": ("pane=latents&latent=9999", "[data-testid=empty]", helped),
    "no prompt": ("pane=prompt", "[data-testid=examples]", None),
    "prompt": (f"{ASKED}&latent=9&prompt_token=2&prompt_edits=9:steer:2:;11:ablate:1:3-4", "[data-testid=edit]", written),
    "circuit": ("pane=circuit&node=80", "[data-testid=incoming]", None),
    "pins": ("pane=circuit&graph=1&node=80&pins=80.81.90&groups=both:82.83&sheet=heads", "[data-testid=pinned-picture]", None),
    "scores": ("pane=circuit&sheet=qk", "[data-testid=qk-look]", explained),
    "experiment": ("pane=circuit&pins=80.81.90&sheet=validation", "[data-testid=validate]", validated),
    "figures": ("pane=circuit&sheet=figures", ".main-svg", None),
    "traced": ("pane=circuit&sheet=traced", "[data-testid=sheet] .facts", None),
    "circuits": ("pane=circuits", ".main-svg", None),
    "compare": ("pane=compare&store=3&compare_with=4&compare_by=correlation&latent=3", "[data-testid=pair-facts]", None),
    "no match": ("pane=compare", "[data-testid=compare-why]", None),
    "map": ("pane=map&latent=5", "[data-testid=map-box][data-drawn]", None),
    "no map": ("pane=map&store=1", "[data-testid=no-map]", None),
    "training": ("pane=training", ".main-svg", None),
}  # fmt: skip


def test_every_pane_can_be_used_by_everyone(tab):
    wrong = {}
    for name, (hash, wait, then) in STATES.items():
        tab.open(hash, wait)
        if then:
            then(tab)
        if found := tab.audited():
            wrong[name] = found
    assert not wrong, "\n".join(f"{name}: {each}" for name, found in wrong.items() for each in found)


def test_a_saved_page_can_be_used_by_everyone(browser, things, tmp_path):
    shown = Things("Saved", things.stores, things.graphs)
    address = write_page(tmp_path / "page.html", shown, cards=30).as_uri()
    tab, wrong = Tab(browser, address), {}
    states = ["", "pane=latents&latent=5", "pane=latents&latent=63", "pane=latents&store=2&latent=1&intervals=log", "pane=circuit&sheet=validation",
              "pane=circuits", "pane=map&store=1"]  # fmt: skip
    for hash in states:
        if found := tab.open(hash).audited():
            wrong[hash] = found
    assert not wrong, "\n".join(f"{name}: {each}" for name, found in wrong.items() for each in found)
    tab.close()


TABBABLE = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")]
  .filter((one) => one.tabIndex === 0 && !one.disabled && one.checkVisibility({ visibilityProperty: true }) && !one.closest("dialog:not([open])") && (one.type !== "radio" || one.checked)).length"""
MARK = """() => { const one = document.activeElement; if (one === document.body) return null;
  window.__met ??= new Map(); if (!window.__met.has(one)) window.__met.set(one, window.__met.size);
  const box = one.getBoundingClientRect();
  return [window.__met.get(one), box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth, one.outerHTML.slice(0, 120)]; }"""


@pytest.mark.parametrize("name", ["overview", "card", "prompt", "pins", "circuits", "compare", "map", "training"])
def test_the_tab_key_reaches_everything_and_leaves_again(tab, name):
    hash, wait, _ = STATES[name]
    tab.open(hash, wait).page.wait_for_timeout(300)
    tab.page.evaluate("() => { document.activeElement.blur(); window.scrollTo(0, 0); }")
    count, met = tab.page.evaluate(TABBABLE), set()
    for _ in range(count + 8):
        tab.press("Tab")
        found = tab.page.evaluate(MARK)
        if found is None:
            break
        met.add(found[0])
        assert found[1], f"the focus is out of sight: {found[2]}"
    assert len(met) >= count


def test_tabs_are_walked_by_arrows_and_opened_by_enter(tab):
    tab.open().at("tab-overview").focus()
    tab.press("ArrowRight")
    assert tab.focused() == "tab-latents"
    assert tab.at("view-overview").is_visible()
    tab.press("Enter")
    tab.at("view-latents").wait_for()
    assert tab.focused() == "tab-latents"
    assert tab.at("tab-latents").get_attribute("aria-selected") == "true"
    tab.press("End")
    tab.press("Space")
    tab.at("view-training").wait_for()
    tab.press("4")
    tab.at("view-circuit").wait_for()


@pytest.mark.parametrize("name", ["card", "prompt", "circuit", "compare", "map"])
def test_the_help_lists_the_keys_of_the_pane(tab, name):
    hash, wait, _ = STATES[name]
    tab.open(hash, wait).press("?")
    said = tab.at("help").inner_text()
    assert "Here" in said and "Everywhere" in said and "these keys" in said
    pane = re.search(r"pane=(\w+)", hash)[1]
    listed = tab.page.evaluate("name => modules['keys.js'].keysOf(name)", pane)
    assert len(listed) > 4 and all(meaning in said for meaning in listed)
    tab.press("Escape")
    assert not tab.at("help").is_visible()


def test_a_menu_closes_by_escape_and_when_the_focus_leaves(tab):
    tab.open("pane=latents&latent=5", "[data-testid=card]")
    menu = tab.page.locator(".card .exports").first
    menu.locator("summary").focus()
    tab.press("Enter")
    assert menu.get_attribute("open") is not None
    tab.press("Tab")
    assert str(tab.focused()).startswith("export-")
    tab.press("Escape")
    assert menu.get_attribute("open") is None
    assert tab.focused("localName") == "summary"
    tab.press("Enter")
    tab.page.mouse.click(5, 5)
    assert menu.get_attribute("open") is None


def test_what_goes_wrong_is_said_in_the_page(browser, live):
    tab = Tab(browser, live)
    tab.page.route("**/api/stores/1/map", lambda route: route.fulfill(status=500, body="no"))
    tab.page.route("**/api/graphs", lambda route: route.fulfill(status=400, json={"error": str(UserError(fakes.HOSTILE[0]))}))
    tab.open("pane=circuits", "[data-testid=empty]")
    assert fakes.HOSTILE[0] in tab.at("empty").inner_text()
    assert tab.audited() == []
    tab.open("", ".wrong")
    assert fakes.HOSTILE[0] in tab.page.locator(".wrong").inner_text()
    tab.open("pane=map&store=1", "[data-testid=no-map]")
    assert tab.page.evaluate("window.__pwned") is None
    tab.context.close()


def test_the_first_page_says_what_is_open_and_leads_there(tab, things):
    tab.open("", "[data-testid=graphs]")
    stores = tab.at("stores").locator("tbody tr")
    assert stores.count() == len(things.stores)
    assert f"{len(things.stores['coded']):,}" in stores.nth(2).inner_text()
    assert "0.21" in tab.at("runs").locator("tbody tr").first.inner_text()
    assert fakes.HOSTILE[0] in tab.at("graphs").locator("tbody tr").first.inner_text()
    tab.page.locator("[data-testid=stores] a", has_text="1").first.click()
    tab.at("view-latents").wait_for()
    tab.page.go_back()
    tab.at("view-overview").wait_for()
    tab.page.locator("[data-testid=graphs] a").nth(1).click()
    tab.at("view-circuit").wait_for()
    assert "graph=1" in tab.page.url


def test_the_first_page_says_what_is_missing(browser, tmp_path):
    with serving(fake_live.Live(open_things([fakes.store(tmp_path / "one", 12)]))) as address:
        tab = Tab(browser, address).open("", "[data-testid=hints]")
        said = tab.at("hints").inner_text()
        for command in ("show STORE DICTIONARY", "show STORE OTHER_STORE", "unweave trace", "codes-mib", "show RUN"):
            assert command in said
        assert tab.audited() == []
        tab.close()
