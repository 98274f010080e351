"""Every view, on every host, over data in which every string attacks: nothing of them runs, nothing breaks, nothing is turned around."""

import contextlib
import functools
import itertools
import re
from pathlib import Path

import pytest
from hostile_host import HOSTS, LACKS, STATES, hostile_things
from unweave.viz.bundle import assets

POKE = (Path(__file__).parent / "hostile_poke.js").read_text("utf-8")
MISSING = ("status of 404", "status of 400")  # the browser tells of an answer that there is none, and of a refusal


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    return hostile_things(tmp_path_factory.mktemp("hostile"))


class Reader:
    """A tab in which a reader does everything; `wrong` is what was heard that the page must not do."""

    def __init__(self, browser, host, address, prepare):
        self.context = browser.new_context(viewport={"width": 1280, "height": 800})
        self.tab, self.host, self.address, self.wrong = self.context.new_page(), host, address, []
        self.context.on("page", lambda other: self.wrong.append(f"window: {other.url}"))
        self.tab.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.tab.on("pageerror", lambda error: self.wrong.append(f"error: {error.stack}"))
        self.tab.on("console", self._console)
        self.tab.on("request", self._request)
        self.tab.add_init_script(POKE)
        prepare(self.tab)
        self.tab.goto(address)
        handle = self.tab.wait_for_selector("iframe") if host == "frame" else None
        self.frame = handle.content_frame() if handle else self.tab.main_frame
        self.frame.wait_for_selector("body[data-ready=yes]", timeout=60_000)

    def _console(self, message):
        if message.type in ("error", "warning") and not any(part in message.text for part in MISSING):
            self.wrong.append(f"console: {message.text}")

    def _request(self, request):
        url = request.url.split("#")[0]
        own = ("api/", "static/") if self.host == "server" else ()
        if url != self.address and not url.startswith(
            ("about:", "blob:", "data:", *(self.address + part for part in own))
        ):
            self.wrong.append(f"request: {url[:200]}")

    def call(self, name, *values):
        return self.frame.evaluate(f"(values) => window.__hostile.{name}(...values)", list(values))


def views(host):
    return [name for name in STATES if name not in LACKS[host]]


@pytest.fixture(scope="module")
def readers(browser, things, tmp_path_factory):
    """The one reader of each host, made when it is first asked for."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def reader(host):
            made = Reader(browser, host, *stack.enter_context(HOSTS[host](things, tmp_path_factory.mktemp(host))))
            stack.callback(made.context.close)
            return made

        yield reader


@pytest.mark.parametrize(("host", "name"), [(host, name) for host in HOSTS for name in views(host)])
def test_nothing_runs_and_nothing_breaks(readers, host, name):
    reader = readers(host)
    reader.wrong.clear()
    told = reader.call("poke", *STATES[name])
    for _ in range(8):
        reader.tab.keyboard.press("Tab")
    assert not told["found"]
    assert not reader.wrong
    assert told["pressed"] or name != "overview"  # elsewhere a control may have been pressed in another view


@pytest.mark.parametrize("host", HOSTS)
def test_no_name_makes_a_view_wider_than_a_narrow_screen(readers, host):
    reader = readers(host)
    reader.wrong.clear()
    reader.tab.set_viewport_size({"width": 375, "height": 800})
    wide = {}
    for name in views(host):
        assert reader.call("go", *STATES[name]), name
        reader.tab.wait_for_timeout(80)
        wide[name] = reader.call("wide")
    assert max(wide.values()) <= 0, wide
    assert not reader.wrong


# What names a thing that every object has, and a text that is no choice.
NAMES = ["__proto__", "constructor", "-toString"]
BASES = {
    "latents": "list",
    "compare": "compare",
    "diff": "lens",
    "audit": "audit",
    "circuit": "pins",
    "prompt": "prompt",
    "map": "map",
}


def keys(pane):
    """The texts of an address that a pane declares."""
    source = "".join(
        path.read_text("utf-8") for path in assets().values() if path.parent.name == pane and path.suffix == ".js"
    )
    return [key for texts in re.findall(r"declare\(\{([^}]*)\}", source) for key in re.findall(r"(\w+):", texts)]


def test_an_address_may_hold_the_names_of_what_every_object_has(browser, things, tmp_path):
    with HOSTS["server"](things, tmp_path) as (address, prepare):
        reader = Reader(browser, "server", address, prepare)
        for pane, name in BASES.items():
            assert keys(pane)
            for key, value in itertools.product(keys(pane), NAMES):
                assert reader.call("go", f"{STATES[name][0]}&{key}={value}", "#pane > .view"), (key, value)
                reader.tab.wait_for_timeout(25)
                assert not reader.wrong, (key, value)
                assert not reader.frame.get_by_text("Something is amiss").count(), (key, value)
        reader.context.close()
