"""The list of 131,072 latents and the feature page in a real browser: what they show, and what people do with them."""

import shutil
import threading

import fakes
import pytest
import torch
from large_store import MANY, tiled
from unweave.saes import UserError
from unweave.viz import write_page
from unweave.viz.live import Live
from unweave.viz.server import application
from unweave.viz.things import open_things

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing: apt-get install chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SMALL = 40


class Host(Live):
    """A live host whose model is made up: latents that fire on a text, and effects of one."""

    def abilities(self):
        return {"label", "history", "search", "fires", "effects"}

    def fires(self, place, text):
        if "wrong" in text:
            raise UserError(f"expected another text; got {fakes.HOSTILE[0]}; mend it")
        return {"latents": [7, 9, 5], "total": 3, "why": "fires on the text"}

    def effects(self, body):
        examples = {}
        for row in body["rows"]:
            shown = len(self.store(body["store"]).example_at(body["latent"], row).tokens)
            focus = [place % 3 - 1 for place in range(shown)]
            examples[str(row)] = {
                "loss": [0.4 * sign for sign in focus],
                "up": [[[fakes.HOSTILE[0], 1.5]]] * shown,
                "down": [[]] * shown,
            }
        return {"examples": examples, "note": "loss without it − loss with it, in nats"}


def served(things) -> str:
    import uvicorn
    from unweave.audit.serving.http import listen

    listener = listen(0)
    server = uvicorn.Server(uvicorn.Config(application(things, "secret", Host(things)), log_level="error"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/secret/"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [tiled(folder), fakes.store(folder / "coded", SMALL, hostile=True, codes=True)]


@pytest.fixture(scope="module")
def address(stores):
    return served(open_things(stores))


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """A tab that remembers what a page should not do. A reply of 400 is told by the browser as an error: `allowed` says so."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page, self.address, self.wrong = self.context.new_page(), address, []
        self.page.on(
            "console", lambda message: self.wrong.append(message.text) if message.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.press = self.page.keyboard.press
        self.write = self.page.keyboard.type

    def open(self, hash):
        self.page.goto("about:blank")
        self.page.goto(self.address + hash)
        self.page.wait_for_selector("body[data-ready=yes]", timeout=60_000)
        return self

    def at(self, testid):
        return self.page.get_by_test_id(testid)

    def card(self, latent):
        self.page.wait_for_selector(f"[data-testid=card][data-latent='{latent}']", timeout=10_000)
        return self

    def until(self, asked, wanted=True):
        for _ in range(100):
            if (found := asked()) == wanted:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"expected {wanted}; got {found}")

    def listed(self):
        rows = (
            "() => [...document.querySelectorAll('[data-testid=latent-row]')].map((row) => Number(row.dataset.latent))"
        )
        return self.page.evaluate(rows)

    def counted(self, text):
        self.until(lambda: text in self.at("latent-count").inner_text())

    def late(self, pattern):
        """The requests that wait, and what lets them and all later ones go on."""
        held, released = [], []
        self.page.route(pattern, lambda route: route.continue_() if released else held.append(route))

        def release():
            released.append(True)
            for route in held:
                route.continue_()

        return held, release

    def close(self, allowed=""):
        assert self.page.evaluate("() => window.__pwned") is None
        assert [text for text in self.wrong if not allowed or allowed not in text] == []
        self.context.close()


@pytest.fixture
def tab(browser, address):
    tab = Tab(browser, address)
    yield tab
    tab.close(getattr(tab, "allowed", ""))


def test_131072_latents_are_a_list_of_few_rows(tab, stores):
    tab.open("#pane=latents&latent=3&sort=latent").counted("131,072")
    assert tab.at("latent-table").get_attribute("aria-rowcount") == str(MANY + 1)
    scroll = "share => { const box = document.querySelector('.rows'); box.scrollTop = share * box.scrollHeight; }"
    for share in (0, 0.3, 0.7, 1):
        tab.page.evaluate(scroll, share)
        tab.page.wait_for_timeout(150)
        rows = tab.listed()
        assert len(rows) < 200
        assert rows == list(range(rows[0], rows[0] + len(rows)))
        assert rows[0] <= share * MANY <= rows[-1] + 1
    assert tab.page.evaluate("() => document.querySelectorAll('*').length") < 5000
    tab.press("End")
    tab.card(MANY - 1)
    tab.until(lambda: tab.listed()[-1], MANY - 1)
    example = stores[0][MANY - 1].examples[0]
    focus = fakes.vocabulary(False)[int(stores[0].tokens[example.row])].strip()
    tab.until(lambda: focus in tab.page.locator(f"[data-latent='{MANY - 1}'].row").inner_text())


SQUEEZED = """() => {
  const { sight, scrollTo, TALLEST } = modules["list.js"];
  const [count, height] = [5_000_000, 700];
  return [0, 1, 2_500_000, 4_999_999].map((row) => {
    const scrolled = scrollTo(row, count, height, 100);
    const { tall, first, last, at } = sight(count, height, scrolled);
    return { row, first, last, place: at(row) - scrolled, fits: tall === TALLEST && scrolled <= TALLEST - height + 1 };
  });
}"""


def test_a_list_that_no_browser_can_hold_is_squeezed(tab):
    for one in tab.open("#pane=latents&store=1&latent=3").page.evaluate(SQUEEZED):
        assert one["fits"]
        assert one["first"] <= one["row"] < one["last"] <= one["first"] + 60
        assert -1 <= one["place"] <= 700


@pytest.mark.parametrize("name", ["max_value", "density", "token_entropy"])
def test_sorting_takes_no_time_and_is_right(tab, stores, name):
    tab.open(f"#pane=latents&latent=3&sort=-{name}").counted("131,072")
    expected = stores[0].columns[name].argsort(descending=True, stable=True)[:10].tolist()
    tab.page.evaluate("() => { document.querySelector('.rows').scrollTop = 0; }")
    tab.until(lambda: tab.listed()[:10], expected)
    tab.at(f"sort-{name}").click()
    tab.until(lambda: tab.listed()[:10], stores[0].columns[name].argsort(stable=True)[:10].tolist())
    (took,) = tab.page.evaluate("() => performance.getEntriesByName('unweave-sort').map((entry) => entry.duration)")
    assert took < 100
    assert f"sort={name}" in tab.page.url


def test_nothing_sorts_last_either_way(tab):
    values = "Float32Array.from([3, NaN, -1, 0, -0, Infinity, -Infinity, 3])"
    orders = f"() => [true, false].map((down) => [...modules['order.js'].order({values}, down)])"
    found = tab.open("#pane=latents&store=1&latent=3").page.evaluate(orders)
    assert found == [[5, 0, 7, 3, 4, 2, 6, 1], [6, 2, 3, 4, 0, 7, 5, 1]]


def test_filters_stand_in_the_address_and_choose_what_they_say(tab, stores):
    density, count = stores[0].density, stores[0].count
    low, high = (torch.tensor(end) for end in (1e-4, 1e-2))
    inside = (density >= low) & (density <= high)
    tab.open("#pane=latents&latent=3&filter=density:1e-4..1e-2").counted(f"{int(inside.sum()):,} of")
    tab.at("filter-open").click()
    tab.at("filter-by").select_option("alive")
    tab.at("filter-add").click()
    tab.counted(f"{int((inside & (count > 0)).sum()):,} of")
    assert "alive" in tab.page.url
    tab.at("filter-by").select_option("max_value:")
    tab.at("filter-high").fill("x")
    tab.at("filter-add").click()
    assert "number" in tab.page.locator(".adding").inner_text()
    tab.at("filter-high").fill("5")
    tab.at("filter-add").click()
    tab.counted(f"{int((inside & (count > 0) & (stores[0].max_value <= 5)).sum()):,} of")
    assert tab.at("filter").count() == 3
    tab.at("filter").first.get_by_role("button").click()
    tab.counted(f"{int(((count > 0) & (stores[0].max_value <= 5)).sum()):,} of")
    tab.page.go_back()
    tab.until(lambda: tab.at("filter").count(), 3)


def test_hand_written_filters_break_nothing(tab):
    tab.open(
        "#pane=latents&store=1&latent=3&filter="
        + "density:x..y;;nothing;toString;tag:%25;constructor:1..;:..;__proto__:.."
    )
    tab.counted(" of ")
    assert tab.at("filter").count() == 7


def test_a_search_shows_what_the_store_finds(tab, stores):
    tab.open("#pane=latents&store=1&latent=3").at("search").wait_for()
    tab.press("/")
    tab.write("window.__pwned=2")
    tab.until(lambda: tab.listed()[:1], [5])
    assert "query=" in tab.page.url
    tab.at("search").fill("")
    tab.at("search-kind").select_option(label="fires on this text")
    tab.at("search").fill("any text")
    tab.page.get_by_label("Search latents").press("Enter")
    tab.until(tab.listed, [7, 9, 5])
    assert "fires on the text" in tab.at("search-why").inner_text()
    tab.allowed = "400"
    tab.at("search").fill("wrong")
    tab.page.get_by_label("Search latents").press("Enter")
    tab.until(lambda: fakes.HOSTILE[0] in tab.at("search-why").inner_text())
    assert tab.listed() == []


def test_a_number_is_found_as_a_latent(tab):
    tab.open("#pane=latents&latent=3&query=99999")
    tab.until(lambda: tab.listed()[:1], [99999])


def test_labels_are_written_by_keyboard_and_undone(tab, stores):
    store = stores[1]
    tab.open("#pane=latents&store=1&latent=8&sort=latent").card(8).press("l")
    tab.write(fakes.HOSTILE[0])
    tab.press("Enter")
    tab.until(lambda: tab.at("mark-status").inner_text(), "saved")
    assert store.labels.get(8).label == fakes.HOSTILE[0]
    assert tab.at("card-label").inner_text() == fakes.HOSTILE[0]
    tab.until(lambda: fakes.HOSTILE[0] in tab.page.locator(".row[data-latent='8']").inner_text())
    tab.press("s")
    tab.until(lambda: store.labels.get(8).is_starred)
    tab.press("t")
    tab.write("to check")
    tab.press("Enter")
    tab.until(lambda: store.labels.get(8).tags, ("to check",))
    tab.press("n")
    tab.write("seen; twice")
    tab.press("Control+Enter")
    tab.until(lambda: store.labels.get(8).note, "seen; twice")
    tab.until(lambda: tab.at("mark-status").inner_text(), "saved")
    tab.press("u")
    tab.until(lambda: store.labels.get(8).note, "")
    tab.at("history").locator("summary").click()
    tab.until(lambda: tab.at("history").locator("li").count(), 5)
    tab.open("#pane=latents&store=1&latent=8&filter=starred;tag:to%2520check")
    tab.until(tab.listed, [8])
    assert tab.at("star").get_attribute("aria-pressed") == "true"


def test_escape_leaves_a_label_as_it_was(tab, stores):
    tab.open("#pane=latents&store=1&latent=5").card(5).press("l")
    tab.write("nonsense")
    tab.press("Escape")
    assert tab.at("card-label").inner_text() == fakes.HOSTILE[1]
    assert stores[1].labels.get(5).label == fakes.HOSTILE[1]


def test_writing_goes_on_while_another_change_is_saved(tab, stores, monkeypatch):
    gate, save = threading.Event(), stores[1].labels.set

    def slowly(*given, **fields):
        gate.wait(10)
        return save(*given, **fields)

    monkeypatch.setattr(stores[1].labels, "set", slowly)
    tab.open("#pane=latents&store=1&latent=11").card(11).press("s")
    tab.press("n")
    tab.write("half a no")
    gate.set()
    tab.until(lambda: tab.at("mark-status").inner_text(), "saved")
    tab.write("te")
    assert tab.at("note-input").input_value() == "half a note"


def test_a_label_that_cannot_be_saved_is_told_and_kept_to_try_again(tab, stores, monkeypatch):
    tab.allowed = "400"

    def refuse(*_, **__):
        raise UserError("expected a labels database that can be written; it is locked; wait")

    monkeypatch.setattr(stores[1].labels, "set", refuse)
    tab.open("#pane=latents&store=1&latent=9").card(9).press("l")
    tab.write("a good name")
    tab.press("Enter")
    tab.until(lambda: "locked" in tab.at("mark-status").inner_text())
    assert tab.at("label-input").input_value() == "a good name"
    assert tab.at("card-label").count() == 0
    monkeypatch.undo()
    tab.at("label-save").click()
    tab.until(lambda: tab.at("mark-status").inner_text(), "saved")
    assert stores[1].labels.get(9).label == "a good name"


def test_keys_go_anywhere(tab):
    tab.open("#pane=latents&latent=3&sort=latent").card(3).press("Home")
    tab.card(0).press("PageDown")
    tab.until(lambda: int(tab.at("card").get_attribute("data-latent")) > 5)
    tab.press("g")
    tab.write("70000")
    tab.press("Enter")
    tab.card(70000)
    tab.until(lambda: 70000 in tab.listed())
    tab.press("]")
    tab.until(lambda: "store=1" in tab.page.url)
    tab.at("card").wait_for()
    tab.press("[")
    tab.until(lambda: "store=1" not in tab.page.url)
    tab.page.locator("[data-testid=latent-row]").first.wait_for()
    tab.press("Enter")
    tab.until(lambda: tab.page.evaluate("() => document.activeElement.dataset.testid"), "card-title")
    tab.press("?")
    assert "go to a latent" in tab.at("help").inner_text()


def test_examples_by_interval_are_those_of_the_codes(tab, stores):
    tab.open("#pane=latents&store=1&latent=7").card(7).press("x")
    tab.at("interval").first.wait_for()
    assert "intervals=width" in tab.page.url
    assert "exact" in tab.at("examples").inner_text()
    counts = tab.page.locator(".interval h3 small").all_inner_texts()
    assert sum(int(text.split("·")[1].split(" ")[1]) for text in counts) == int(stores[1].count[7])
    for kind in ("count", "log"):
        tab.press("x")
        tab.until(lambda kind=kind: f"intervals={kind}" in tab.page.url)
        tab.at("interval").first.wait_for()
    tab.press("x")
    tab.until(lambda: tab.at("interval").count(), 0)
    assert "intervals=" not in tab.page.url


def test_the_kind_is_changed_before_the_list_is_there(tab):
    held, release = tab.late("**/api/stores/1/columns/**")
    tab.open("#pane=latents&store=1&latent=7").card(7).press("x")
    tab.at("interval").first.wait_for()
    assert held and tab.at("latent-row").count() == 0
    release()
    tab.at("latent-row").first.wait_for()


def test_a_key_pressed_before_the_list_is_there_is_not_lost(tab):
    held, release = tab.late("**/api/stores/0/columns/**")
    tab.open("#pane=latents&latent=3&sort=latent").card(3).press("End")
    tab.until(lambda: len(held) > 0)
    release()
    tab.card(MANY - 1)


def test_what_is_written_in_the_form_for_a_filter_stays_when_the_list_comes(tab):
    tab.open("#pane=latents&store=1&latent=7").counted("40")
    tab.at("filter-open").click()
    tab.at("filter-by").select_option("max_value:")
    tab.at("filter-low").press_sequentially("1e-")
    tab.page.evaluate("() => document.querySelector('[data-testid=sort-latent]').click()")
    tab.until(lambda: "sort=-latent" in tab.page.url)
    tab.until(lambda: tab.listed()[0], 39)
    tab.write("2")
    assert tab.at("filter-low").input_value() == "1e-2"
    tab.press("Enter")
    tab.until(lambda: "max_value%3A1e-2.." in tab.page.url)
    assert tab.at("filter-low").input_value() == ""


def test_a_deep_link_opens_kind_scale_and_example(tab):
    tab.open("#pane=latents&store=1&latent=7&intervals=log&bins=width").card(7)
    tab.at("interval").first.wait_for()
    assert tab.at("bins-width").get_attribute("aria-pressed") == "true"
    item = tab.at("example").first
    row = item.get_attribute("data-row")
    item.locator(".more").click()
    tab.until(lambda: f"example={row}" in tab.page.url)
    tab.open("#" + tab.page.url.split("#")[1]).card(7)
    tab.until(lambda: tab.page.locator("li.open").first.get_attribute("data-row"), row)


def test_words_on_a_token_come_by_pointer_and_by_key(tab):
    tab.open("#pane=latents&store=1&latent=7").card(7)
    token = tab.page.locator(".t.focus").first
    token.hover()
    assert token.get_attribute("data-value") in tab.at("tip").inner_text()
    tab.at("effects").click()
    tab.until(lambda: tab.page.locator(".t.helps").count() > 0)
    assert tab.page.locator(".t.hurts").count() > 0
    tab.page.locator(".more").first.focus()
    tab.press("Tab")
    tab.until(lambda: tab.page.evaluate("() => document.activeElement.className.split(' ')[0]"), "t")
    first = tab.page.evaluate("() => Number(document.activeElement.dataset.place)")
    tab.press("ArrowLeft")
    assert tab.page.evaluate("() => Number(document.activeElement.dataset.place)") == first - 1
    assert "loss without it" in tab.at("tip").inner_text()
    assert fakes.HOSTILE[0] in tab.at("tip").inner_text()
    assert tab.page.evaluate("() => document.activeElement.getAttribute('aria-describedby')") == "tip"
    tab.press("Escape")
    assert not tab.at("tip").is_visible()


def test_a_statistic_says_what_it_means(tab, stores):
    tab.open("#pane=latents&store=1&latent=7").card(7)
    tile = tab.page.locator("[data-statistic=token_entropy].tipped")
    tile.focus()
    assert stores[1].column_notes["token_entropy"] in tab.at("tip").inner_text()


def test_who_fires_together_is_shown_and_leads_there(tab):
    tab.open("#pane=latents&store=1&latent=1").card(1)
    link = tab.at("company").locator("tbody a").first
    link.wait_for()
    other = link.locator(".id").inner_text()
    link.click()
    tab.card(other)
    assert tab.at("tokens").locator("tbody tr").count() > 0
    assert tab.at("logit-histogram").locator("rect.below").count() > 0
    assert "seed" in tab.page.locator("[data-testid=card-provenance]").text_content()


@pytest.fixture(scope="module")
def page(stores, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page") / "page.html", open_things(stores[1:]), cards=12).as_uri()


def test_a_saved_page_searches_and_shows_what_it_carries(browser, page):
    tab = Tab(browser, page).open("#pane=latents&sort=latent")
    tab.counted("this page carries 12 of 40")
    latent = tab.listed()[3]
    tab.page.locator(f".row[data-latent='{latent}']").click()
    tab.card(latent).press("x")
    tab.at("interval").first.wait_for()
    tab.at("company").locator("tbody tr").first.wait_for()
    assert tab.at("label-edit").count() == tab.at("effects").count() == tab.at("undo").count() == 0
    word = tab.page.locator(f".row[data-latent='{latent}'] b").inner_text().strip()
    tab.press("/")
    tab.write(word)
    tab.until(lambda: latent in tab.listed() and " of " in tab.at("latent-count").inner_text().split(";")[0])
    tab.close()


@pytest.mark.parametrize(
    "hash", ["", "&latent=7&intervals=count&bins=width", "&latent=1", "&filter=alive;density:1e-4..&query=fox"]
)
def test_everything_fits_a_narrow_screen(browser, address, hash):
    tab = Tab(browser, address, viewport={"width": 375, "height": 700}, color_scheme="dark").open(
        f"#pane=latents&store=1{hash}"
    )
    tab.page.wait_for_timeout(400)
    assert tab.page.evaluate("() => document.documentElement.scrollWidth") <= 375
    tab.close()


@pytest.mark.parametrize("name", ["density", "max_value", "token_entropy", "count"])
def test_a_narrow_list_shows_what_it_is_sorted_by(browser, address, name):
    tab = Tab(browser, address, viewport={"width": 375, "height": 700}).open(f"#pane=latents&store=1&sort=-{name}")
    tab.at(f"sort-{name}").wait_for()
    shown = [each for each in tab.page.locator("[role=columnheader]").all() if each.is_visible()]
    cells = [each for each in tab.at("latent-row").first.locator("[role=gridcell]").all() if each.is_visible()]
    assert len(shown) == len(cells) == 4
    tab.close()


CONTRAST = """() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255);
  };
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = (colours) => over(colours).map(linear).reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const bad = [];
  for (const element of document.querySelectorAll("#pane *")) {
    if (element.closest("svg, .t, [hidden], .undone") || !own(element) || !element.checkVisibility()) continue;
    const papers = [];
    for (let at = element; at; at = at.parentElement) papers.unshift(getComputedStyle(at).backgroundColor);
    const [paper, ink] = [luminance(papers), luminance([...papers, getComputedStyle(element).color])];
    const ratio = (Math.max(paper, ink) + 0.05) / (Math.min(paper, ink) + 0.05);
    if (ratio < 4.5) bad.push([element.className || element.tagName, element.textContent.slice(0, 30), ratio]);
  }
  return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(browser, address, scheme):
    tab = (
        Tab(browser, address, color_scheme=scheme)
        .open("#pane=latents&store=1&latent=1&filter=alive&intervals=width")
        .card(1)
    )
    tab.at("interval").first.wait_for()
    tab.page.wait_for_timeout(200)
    assert tab.page.evaluate(CONTRAST) == []
    tab.close()


UNNAMED = """() => [...document.querySelectorAll("#pane button, #pane a, #pane input, #pane select, #pane textarea")]
  .filter((one) => !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length || one.title))
  .map((one) => one.outerHTML.slice(0, 120))"""


def test_every_control_has_a_name(tab):
    tab.open("#pane=latents&store=1&latent=7&filter=alive").card(7).at("company").locator("tbody tr").first.wait_for()
    assert tab.page.evaluate(UNNAMED) == []
