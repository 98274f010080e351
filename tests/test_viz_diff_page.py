"""The page of a Diff in a browser: it sorts, filters, marks, follows links and saves, on a server and as a file."""

import csv
import io

import fake_audits
import fake_diffs
import fakes
import pytest
from fake_live import Desk, serving
from unweave.viz import write_page
from unweave.viz.live import Live
from unweave.viz.page import first_pane
from unweave.viz.things import Things, open_things
from unweave.viz.widget import Browser

FINGERPRINT = "a" * 16
METHODS = ["crosscoder", "mean", "lens"]


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    store = fakes.store(tmp_path_factory.mktemp("diff") / "features", fingerprint=FINGERPRINT)
    return Things(
        stores={"features": store},
        diffs={method: fake_diffs.diff(method, fingerprint=FINGERPRINT) for method in METHODS},
    )


@pytest.fixture(scope="module")
def page(things, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page") / "page.html", things, cards=64).as_uri()


def opened(desk, hash):
    desk.open(f"#pane=diff{hash}")
    desk.id("diff-row").first.wait_for()
    return desk


def rows(desk):
    return [int(row.get_attribute("data-row")) for row in desk.id("diff-row").all()]


def saved(desk, menu, form):
    menu.locator("summary").click()
    with desk.tab.expect_download() as download:
        menu.get_by_test_id(f"export-{form}").click()
    return download.value.path().read_text("utf-8")


def test_the_header_says_what_was_compared_and_what_to_know(desk, things):
    found = things.diffs["crosscoder"]
    opened(desk, "")
    said = desk.id("view-diff").inner_text()
    for words in (
        "small",
        "small-tuned",
        "blocks.3.hook_resid_post",
        f"{found.discoveries} of {len(found)}",
        "rate of 0.05",
        "30",
    ):
        assert words in said
    assert found.notes[0] in desk.id("diff-warnings").inner_text()


@pytest.mark.parametrize("place", range(3))
def test_rows_stand_in_the_order_of_the_diff(desk, things, place):
    found = list(things.diffs.values())[place]
    shown = rows(opened(desk, f"&diff={place}"))
    assert len(shown) > 8
    assert shown == found.order()[: len(shown)]


def test_a_heading_sorts_both_ways_and_gives_the_rank_back(desk, things):
    values = things.diffs["mean"].columns["d"]
    opened(desk, "&diff=1")
    falling = values.argsort(descending=True).tolist()
    for order in (falling, falling[::-1], things.diffs["mean"].order()):
        desk.id("diff-sort-d").click()
        shown = rows(desk)
        assert shown == order[: len(shown)]


def test_filters_leave_what_they_say(desk, things):
    found = things.diffs["crosscoder"]
    isfound, kinds, q = (found.columns[name].tolist() for name in ("is_found", "class", "q"))
    opened(desk, "").id("diff-show-found").click()
    assert sorted(rows(desk)) == [row for row in range(64) if isfound[row]]
    desk.tab.get_by_label("Class").select_option(label="only B (11)")
    assert sorted(rows(desk)) == [row for row in range(64) if isfound[row] and kinds[row] == 3]
    desk.id("diff-show-all").click()
    desk.id("diff-filter-open").click()
    desk.id("diff-low").fill("0.009")
    desk.id("diff-filter-add").click()
    assert sorted(rows(desk)) == [row for row in range(64) if q[row] >= 0.009 and kinds[row] == 3]
    assert "diff_filter=q" in desk.tab.url
    desk.id("diff-filter").get_by_role("button").click()
    desk.id("diff-search").fill("w21")
    desk.tab.get_by_text("1 of 64 latents", exact=True).wait_for()
    assert rows(desk) == [21]
    desk.id("diff-search").fill("3")  # a whole number is a latent, not a part of its tokens
    desk.tab.locator("[data-row='3']").wait_for()
    assert rows(desk) == [3]
    opened(desk, "&diff=2&diff_show=less")
    assert all(things.diffs["lens"].columns["score"][row] < 0 for row in rows(desk))


def test_keys_and_dots_choose_a_row_and_its_link_opens_the_latent(desk, things):
    order = things.diffs["mean"].order()
    opened(desk, "&diff=1").press("j", "j", "k")
    assert desk.id("diff-one").get_by_role("heading").inner_text() == f"Latent {order[0]}"
    assert desk.tab.locator("[aria-selected=true][data-row]").get_attribute("data-row") == str(order[0])
    ring = desk.tab.locator(".diff-ring:not(.over)").bounding_box()
    desk.press("Escape")
    assert "Choose a row" in desk.id("diff-one").inner_text()
    desk.tab.mouse.click(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    assert f"diff_row={order[0]}" in desk.tab.url
    desk.press("o")
    desk.id("card").wait_for()
    assert desk.id("card").get_attribute("data-latent") == str(order[0])
    desk.tab.go_back()
    desk.id("diff-facts").wait_for()


def test_every_number_of_a_row_is_told(desk, things):
    found = things.diffs["mean"]
    opened(desk, "&diff=1&diff_row=3")
    said = desk.id("diff-facts").inner_text().replace("−", "-")
    for name in ("score", "change", "density"):
        assert f"{float(found.columns[name][3]):.3g}".rstrip("0") in said
    assert "Patched into A: 50 % (95 %: 45 % to 54 %)" in desk.id("diff-alone").inner_text()


def test_bars_stand_for_shares_and_controls_are_all_there(desk):
    opened(desk, "&diff=1")
    picture = desk.id("causal-picture")
    widths = [float(bar.get_attribute("width")) for bar in picture.locator("rect.patched").all()]
    assert len(widths) == 3  # of four scores, one of which has no share
    assert widths[1] / widths[0] == pytest.approx(0.5 / 0.6, rel=1e-3)
    assert widths[2] / widths[0] == pytest.approx(0.9 / 0.6, rel=1e-3)
    assert picture.locator("circle.control").count() == 5 * 9
    assert "the whole activation: patched into A: 90 % (95 %: 85 % to 94 %)" in picture.get_attribute("aria-label")
    assert "p 0.1" in picture.get_attribute("aria-label")


def test_tables_and_figures_can_be_saved(desk, things):
    found = things.diffs["crosscoder"]
    opened(desk, "&diff_show=found&diff_sort=q")
    table = list(csv.DictReader(io.StringIO(saved(desk, desk.tab.locator(".diff-list .exports"), "csv"))))
    assert len(table) == found.discoveries
    for row in table:
        assert float(row["score"]) == pytest.approx(float(found.columns["score"][int(row["latent"])]), rel=1e-5)
        assert row["found"] == "true" and row["class"] in ("shared", "only A", "only B")
    assert "stroke-linecap" in saved(desk, desk.tab.locator(".diff-figure .exports"), "svg")
    scores = list(csv.DictReader(io.StringIO(saved(desk, desk.tab.locator(".diff-causal .exports"), "csv"))))
    assert [row["share"] for row in scores[:2]] == ["0.6", "0.4"]
    assert scores[0]["p"] == "0.1" and scores[-1]["random latents"] == ""


@pytest.mark.parametrize("width", [375, 1280])
def test_a_saved_page_shows_the_same(browser, address, page, width):
    texts = []
    for place in (address, page):
        desk = opened(Desk(browser, None, place, viewport={"width": width, "height": 900}), "&diff=1&diff_row=3")
        desk.id("causal-picture").wait_for()
        desk.tab.wait_for_load_state("networkidle")
        texts.append(desk.id("view-diff").inner_text())
        assert desk.tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        desk.close()
        assert not desk.wrong
    assert texts[0] == texts[1]


def test_the_first_page_leads_to_a_diff(desk):
    desk.open("")
    row = desk.id("diffs").locator("tbody tr").nth(1)
    assert "60 % p 0.1" in row.inner_text()
    row.get_by_role("link").click()
    desk.id("view-diff").wait_for()
    assert "diff=1" in desk.tab.url


@pytest.mark.parametrize("kind", ["diff", "audit"])
def test_what_is_alone_opens_at_its_own_pane(browser, tmp_path, kind):
    """On a server and as a file; the overview is a press away, and says what a saved page carries and how to open it."""
    alone = fake_diffs.diff() if kind == "diff" else fake_audits.audit(tmp_path / "audit")
    things = open_things([alone])
    page = write_page(tmp_path / "page.html", things).as_uri()
    with serving(Live(things)) as address:
        for place in (address, page):
            desk = Desk(browser, None, place).open("")
            desk.id(f"view-{kind}").wait_for()
            desk.id("tab-overview").click()
            desk.id("hints").wait_for()
            said = desk.id("hints").inner_text()
            if place == page:
                assert "latents" not in said and f"unweave show {kind.upper()}" in said
                assert ("Diff" in said, "audit with its calls" in said) == (kind == "diff", kind == "audit")
            else:
                assert f"unweave {kind} " not in said and "unweave trace" in said
            desk.close()


def test_several_things_open_at_the_overview(things, tmp_path):
    one, audit = fake_diffs.diff(), fake_audits.audit(tmp_path / "audit")
    assert [first_pane(open_things(given)) for given in ([one], [audit])] == ["diff", "audit"]
    for given in ([one, audit], [one, one], [things], [Things(stores=things.stores)], [Things(numbers={"a": 1}), one]):
        assert first_pane(open_things(given)) == "overview"
    assert 'data-pane="diff"' in Browser(open_things([one])).page


def test_axes_are_explained_and_ticked(desk):
    """What either axis means stands under the picture, and positions have a tick each."""
    opened(desk, "&diff=2")
    said = desk.id("diff-axes").inner_text()
    assert "position: tokens after the first." in said and "score: logit of the mean difference" in said
    ticks = desk.tab.locator(".grid-lines text[text-anchor=middle]").all_text_contents()
    assert ticks == ["1", "2", "3", "4", "5"]
