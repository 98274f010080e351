"""The whole browser for who does not point, or sees little contrast: every pane audited in both colour schemes, and walked by keys.

What is checked of a page as it stands is in access_audit.js (names, ids, roles, headings, pictures, keys, sizes, contrast); the data
are hostile, so that names and structure hold whatever is shown.
"""

import re

import fake_live
import fakes
import pytest
from access_host import STATES, Host, Tab, everything
from fake_live import serving
from unweave.viz import write_page
from unweave.viz.things import Things, open_things


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Things:
    return everything(tmp_path_factory.mktemp("access"))


@pytest.fixture(scope="module")
def live(things):
    with serving(Host(things)) as address:
        yield address


@pytest.fixture
def tab(browser, live):
    tab = Tab(browser, live)
    yield tab
    tab.close()


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
    shown = Things("Saved", things.stores, things.graphs, diffs=things.diffs, audits=things.audits)
    address = write_page(tmp_path / "page.html", shown, cards=30).as_uri()
    tab, wrong = Tab(browser, address), {}
    states = [
        "",
        "pane=latents&latent=5",
        "pane=latents&latent=63",
        "pane=latents&store=2&latent=1&intervals=log",
        "pane=circuit&sheet=validation",
        "pane=circuits",
        "pane=map&store=1",
        "pane=diff&diff=2&diff_row=3",
        "pane=audit&audit_call=r1",
    ]
    for hash in states:
        if found := tab.open(hash).audited():
            wrong[hash] = found
    assert not wrong, "\n".join(f"{name}: {each}" for name, found in wrong.items() for each in found)
    tab.close()


TABBABLE = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")]
  .filter((one) => one.tabIndex === 0 && !one.disabled && one.checkVisibility({ visibilityProperty: true })
    && !one.closest("dialog:not([open])")).length"""
MARK = """() => { const one = document.activeElement; if (one === document.body) return null;
  window.__met ??= new Map(); if (!window.__met.has(one)) window.__met.set(one, window.__met.size);
  const { width, top, bottom, left, right } = one.getBoundingClientRect();
  const isSeen = width > 0 && bottom > 0 && top < innerHeight && right > 0 && left < innerWidth;
  return [window.__met.get(one), isSeen, one.outerHTML.slice(0, 120)]; }"""


@pytest.mark.parametrize(
    "name", ["overview", "card", "prompt", "pins", "circuits", "compare", "diff", "audit", "map", "training"]
)
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


@pytest.mark.parametrize("name", ["card", "prompt", "circuit", "compare", "diff", "map"])
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
    tab.page.route("**/api/graphs", lambda route: route.fulfill(status=400, json={"error": fakes.HOSTILE[0]}))
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
