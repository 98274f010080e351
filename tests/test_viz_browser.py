"""The front end in a real browser, over data that attack it: every view shows its data, and nothing of them runs."""

import shutil

import fakes
import pytest
from unweave.viz import serve, write_page
from unweave.viz.display import Embedded
from unweave.viz.things import Things, open_things

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    return open_things([fakes.demo(tmp_path_factory.mktemp("demo"), hostile=True)])


@pytest.fixture(scope="module", params=["page", "server"])
def address(request, things, tmp_path_factory):
    if request.param == "server":
        return serve(things, open=False, block=False)
    return write_page(tmp_path_factory.mktemp("page") / "page.html", things, cards=128).as_uri()


class Watch:
    """A tab that remembers everything a page should not do."""

    def __init__(self, browser, address: str, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.tab, self.wrong = self.context.new_page(), []
        self.tab.on(
            "console", lambda message: self.wrong.append(message.text) if message.type in ("error", "warning") else None
        )
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        base = address.rsplit("/", 1)[0]
        self.tab.on(
            "request",
            lambda request: self.wrong.append(request.url) if not request.url.startswith((base, "about:")) else None,
        )
        self.address = address

    def open(self, hash: str = ""):
        """Load the page, or, where it is open already, follow a hash inside it."""
        if self.tab.url.startswith(self.address):
            self.tab.evaluate("hash => { location.hash = hash || '#pane=overview'; }", hash)
        else:
            self.tab.goto(self.address + hash)
        self.tab.wait_for_selector("body[data-ready=yes]", timeout=60_000)
        return self

    def seen(self, testid: str, state: str = "visible"):
        found = self.tab.get_by_test_id(testid).first
        found.wait_for(timeout=10_000, state=state)
        return found

    def assert_harmless(self):
        assert self.tab.evaluate("window.__pwned") is None
        assert not self.wrong


@pytest.fixture(scope="module")
def tab(browser, address):
    watch = Watch(browser, address)
    yield watch
    watch.context.close()


@pytest.fixture
def watch(tab):
    """One tab for all tests of an address: each goes where it wants, and must have done nothing wrong in the end."""
    tab.wrong.clear()
    yield tab
    tab.tab.keyboard.press("Escape")
    tab.assert_harmless()


def test_overview_shows_metrics_and_numbers(watch):
    watch.open()
    assert "fvu" in watch.seen("metrics").inner_text()
    assert fakes.HOSTILE[0] in watch.seen("numbers").inner_text()
    assert "site" in watch.seen("provenance", "attached").text_content()


def test_training_draws_the_curves(watch):
    watch.open("#pane=training")
    watch.seen("training-plot").locator(".main-svg").first.wait_for(timeout=60_000)
    assert watch.tab.locator(".plot .scatterlayer .trace").count() == 5


def test_a_latent_is_chosen_by_click_and_by_key(watch):
    watch.open("#pane=latents")
    watch.seen("latent-row")
    rows = watch.tab.get_by_test_id("latent-row")
    first, second = rows.nth(0).get_attribute("data-latent"), rows.nth(1).get_attribute("data-latent")
    rows.nth(0).click()
    watch.tab.wait_for_selector(f"[data-testid=card][data-latent='{first}']")
    watch.tab.keyboard.press("j")
    watch.tab.wait_for_selector(f"[data-testid=card][data-latent='{second}']")
    watch.tab.keyboard.press("k")
    watch.tab.wait_for_selector(f"[data-testid=card][data-latent='{first}']")
    assert f"latent={first}" in watch.tab.url


def test_the_list_is_sorted_and_searched(watch):
    watch.open("#pane=latents&store=1&sort=-latent")
    watch.tab.wait_for_selector("[data-testid=latent-row][data-latent='63']")
    rows = watch.tab.get_by_test_id("latent-row")
    assert rows.first.get_attribute("data-latent") == "63"
    watch.seen("sort-latent").click()
    assert int(rows.first.get_attribute("data-latent")) < 2  # a page carries no latent that never fires
    watch.tab.keyboard.press("/")
    watch.tab.keyboard.type("window.__pwned=2")
    sync_api.expect(watch.tab.get_by_test_id("latent-count")).to_contain_text(" of ")
    watch.tab.locator("[data-testid=latent-row][data-latent='5']").wait_for()  # its label holds the text
    watch.tab.keyboard.press("Escape")
    watch.tab.keyboard.press("?")
    assert watch.seen("help").is_visible()


def test_the_card_shows_everything_of_a_latent(watch):
    watch.open("#pane=latents&store=1&latent=5")
    watch.tab.wait_for_selector("[data-testid=card][data-latent='5']")
    assert watch.seen("card-label").inner_text() == fakes.HOSTILE[1]
    assert watch.seen("histogram").locator("rect").count() > 5
    assert watch.seen("logits-top").locator("li").count() == 10
    assert watch.tab.get_by_test_id("example").count() == 16
    assert watch.seen("neighbours").locator("li").count() == 8
    token = watch.tab.locator(".t.focus").first
    token.hover()
    assert token.get_attribute("data-value") in watch.tab.locator(".tip").inner_text()


@pytest.mark.parametrize(("latent", "word"), [(0, "dead"), (1, "dense"), (2, "single-token")])
def test_doubtful_latents_are_warned_of(watch, latent, word):
    watch.open(f"#pane=latents&latent={latent}")
    if latent == 0 and watch.address.startswith("file"):
        watch.seen("empty")  # a page carries no card of a latent that never fires
    else:
        watch.tab.wait_for_selector(f"[data-testid=card][data-latent='{latent}']")
        assert word in watch.seen("warnings").inner_text()


def test_a_node_shows_its_edges_and_leads_to_its_card(watch):
    watch.open("#pane=circuit")
    assert watch.seen("circuit").locator(".edge").count() > 50
    assert "residual" in watch.seen("scores").inner_text()
    assert watch.seen("paths").locator("li").count() == 8
    watch.tab.locator("[data-testid=node].latent").first.click()
    assert watch.seen("incoming").locator("tr").count() > 0
    assert watch.tab.locator(".edges-chosen .edge").count() > 0
    watch.seen("incoming").locator("a").first.click()
    assert "node=" in watch.tab.url
    watch.tab.go_back()
    watch.seen("to-card").click()
    watch.seen("view-latents")
    assert "pane=latents" in watch.tab.url
    assert "store=1" in watch.tab.url


def test_a_saved_card_says_that_it_has_no_effects_on_the_loss(watch):
    watch.open("#pane=latents&latent=5")
    watch.seen("card")
    is_saved = watch.tab.evaluate("document.documentElement.dataset.host") == "page"
    assert watch.tab.get_by_test_id("no-effects").count() == int(is_saved)
    assert watch.tab.get_by_test_id("effects").count() == int(not is_saved)


def test_a_narrow_screen_is_not_wider_than_it_is(browser, address):
    watch = Watch(browser, address, viewport={"width": 375, "height": 700}, color_scheme="dark")
    for hash in (
        "",
        "#pane=training",
        "#pane=latents",
        "#pane=latents&latent=5",
        "#pane=circuit",
        "#pane=circuit&node=80",
    ):
        watch.open(hash)
        watch.tab.wait_for_timeout(200)
        assert watch.tab.evaluate("document.documentElement.scrollWidth") <= 375, hash
    watch.assert_harmless()
    watch.context.close()


def test_a_deep_link_opens_its_view(browser, address):
    watch = Watch(browser, address).open("#pane=circuit&node=80")
    watch.seen("node-details")
    watch.assert_harmless()
    watch.context.close()


def test_a_hash_that_means_nothing_is_ignored(watch):
    watch.open("#pane=%ff&latent=x&graph=99999&__proto__=1&store=4&query=%E0%A4%A")
    watch.seen("view-overview")
    watch.open("#pane=latents&latent=999999")
    watch.seen("empty")


def test_the_page_runs_inside_a_notebooks_frame(browser, things, tmp_path):
    outer = tmp_path / "notebook.html"
    outer.write_text(
        f"<!doctype html><title>x</title><body>{Embedded(Things(stores=things.stores, graphs=things.graphs))._repr_html_()}",
        encoding="utf-8",
    )
    watch = Watch(browser, outer.as_uri())
    watch.tab.goto(outer.as_uri())
    frame = watch.tab.frame_locator("iframe")
    frame.get_by_test_id("tab-circuit").click(timeout=15_000)
    frame.get_by_test_id("node").first.wait_for()
    frame.get_by_test_id("tab-latents").click()
    frame.get_by_test_id("latent-row").nth(1).click()
    frame.get_by_test_id("card").wait_for()
    watch.assert_harmless()
    watch.context.close()
