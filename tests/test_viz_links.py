"""Every state of every pane stands in the address: it survives a reload, a copy, and the way back."""

import re

import pytest
from access_host import STATES, Host, Tab, everything
from fake_live import serving


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with serving(Host(everything(tmp_path_factory.mktemp("links")))) as address:
        yield address


@pytest.fixture
def tab(browser, live):
    tab = Tab(browser, live)
    yield tab
    tab.close()


# What is shown: the pane, the window's title, what is chosen, set and pressed; not where pictures and texts differ by a pixel.
SHOWN = """() => [location.hash, document.title, document.querySelector("#pane > .view")?.dataset.testid,
  ...[...document.querySelectorAll("#pane h1, #pane h2")].map((one) => one.textContent),
  ...[...document.querySelectorAll("#pane select, #pane input")].map((one) => one.type === "checkbox" ? one.checked : one.value),
  ...[...document.querySelectorAll("#pane [aria-pressed=true], #pane [aria-selected=true], #pane [aria-sort$=ending]")]
    .map((one) => one.textContent.slice(0, 80))]"""


def settled(tab):
    """What is shown once it is the pane of the address, no longer changes, and waits for no answer."""
    before, same = None, 0
    for _ in range(100):
        now = tab.page.evaluate(SHOWN)
        same = same + 1 if now == before and now[2] == f"view-{pane(now[0])}" and not tab.asking else 0
        if same == 2:
            return now
        before = now
        tab.page.wait_for_timeout(100)
    raise AssertionError(f"still changing: {before}")


def pane(hash):
    return re.search(r"pane=(\w+)|$", hash)[1] or "overview"


def arrive(tab, name):
    hash, wait, _ = STATES[name]
    tab.open(hash, wait)
    return settled(tab)


@pytest.mark.parametrize("name", [name for name in STATES if name not in ("no prompt", "no match", "no map", "traced")])
def test_a_reload_shows_the_same(tab, name):
    before = arrive(tab, name)
    tab.page.reload()
    tab.page.wait_for_selector("body[data-ready=yes]")
    tab.page.locator(STATES[name][1]).first.wait_for()
    assert settled(tab) == before


# In each pane: what is done by hand, of which the address must tell. The last is a step that the way back undoes.
DONE = {
    "list": [
        ("click", "[data-testid=sort-latent]"),
        ("select", "search-kind", "example text"),
        ("click", "[data-testid=latent-row] >> nth=2"),
    ],
    "intervals": [
        ("click", "[data-testid=bins-log]"),
        ("click", "[data-testid=examples-count]"),
        ("click", "[data-testid=neighbours] a >> nth=1"),
    ],
    "prompt": [
        ("fill", "[data-testid=steer-controls]", "3"),
        ("fill", "[data-testid=generate-temperature]", "0.7"),
        ("fill", "[data-testid=generate-seed]", "5"),
        ("click", "[data-testid=rank-attribution]"),
        ("click", "[data-testid=prompt-token] >> nth=3"),
    ],
    "circuit": [
        ("fill", "[data-testid=find-node]", "L5"),
        ("click", "[data-testid=pin-node]"),
        ("click", "[data-testid=sheet-heads]"),
        ("click", "[data-testid=incoming] a >> nth=0"),
    ],
    "scores": [
        ("fill", "[data-testid=qk-head]", "2"),
        ("click", "[data-testid=qk-look]"),
        ("click", "[data-testid=qk-by-node]"),
        ("click", "[data-testid=targets] a >> nth=0"),
    ],
    "circuits": [
        ("click", "[data-testid=circuits] th button >> nth=5"),
        ("click", "[data-testid=circuits] tbody a >> nth=1"),
    ],
    "compare": [
        ("click", "[data-testid=compare-show-mutual]"),
        ("click", "[data-testid=compare-sort-ratio]"),
        ("click", "[data-testid=compare-row] >> nth=2"),
    ],
    "diff": [
        ("click", "[data-testid=diff-sort-q]"),
        ("click", "[data-testid=diff-show-found]"),
        ("fill", "[data-testid=diff-search]", "img"),
        ("select", "y", "score"),
        ("click", "[data-testid=diff-row] >> nth=1"),
    ],
    "map": [("select", "Colour", "count"), ("fill", "[data-testid=map-search]", "fox"), ("press", "5")],
    "training": [("select", "Run", "mlp-3"), ("press", "2")],
}


def do(tab, kind, where, what=None):
    if kind == "click":
        tab.page.locator(where).first.click()
    elif kind == "fill":
        tab.page.locator(where).fill(what)
        tab.page.locator(where).dispatch_event("change")
    elif kind == "press":
        tab.page.evaluate("() => document.activeElement.blur()")
        tab.press(where)
    else:
        found = tab.at(where) if "-" in where else tab.page.get_by_label(where, exact=True)
        found.select_option(label=what if where != "Colour" else "count")


@pytest.mark.parametrize("name", DONE)
def test_what_is_done_by_hand_can_be_copied_and_left_by_the_way_back(browser, live, tab, name):
    arrive(tab, name)
    *before, last = DONE[name]
    for step in before:
        do(tab, *step)
        settled(tab)
    there, address = settled(tab), tab.page.url
    other = Tab(browser, live)
    other.page.goto(address)
    other.page.locator(STATES[name][1]).first.wait_for()
    assert settled(other) == there
    other.close()
    do(tab, *last)
    left = settled(tab)
    assert left[0] != there[0]
    tab.page.go_back()
    assert settled(tab) == there
    tab.page.go_forward()
    assert settled(tab) == left


def test_a_link_that_is_copied_has_the_state_of_now(tab):
    tab.open("pane=latents&latent=5", "[data-testid=card]").at("bins-width").click()
    link = tab.at("tab-map")
    link.dispatch_event("pointerdown")
    assert "bins=width" in link.get_attribute("href") and "latent=5" in link.get_attribute("href")


def test_the_way_back_leads_to_where_one_was_on_the_page(tab):
    tab.page.set_viewport_size({"width": 1280, "height": 400})
    tab.open("", "[data-testid=graphs]").at("provenance").first.wait_for(state="attached")
    tab.page.evaluate("() => window.scrollTo(0, 500)")
    place = tab.page.evaluate("window.scrollY")
    assert place > 100
    tab.page.locator("[data-testid=graphs] a, [data-testid=stores] a").last.click()
    tab.at("view-circuit").wait_for()
    assert tab.page.evaluate("window.scrollY") < place
    tab.page.go_back()
    tab.at("graphs").wait_for()
    tab.page.wait_for_timeout(200)
    assert abs(tab.page.evaluate("window.scrollY") - place) < 3


def test_the_window_is_called_by_what_it_shows(tab):
    assert arrive(tab, "card")[1].startswith("Latent 5 · Latents")
    tab.press("2")
    tab.press("j")
    assert tab.page.title().startswith("Latent ") and "Latent 5" not in tab.page.title()
    tab.at("tab-training").click()
    assert tab.page.title().startswith("embed-0 · Training")
