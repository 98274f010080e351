"""Changing latents on the prompt page: what is asked for, how effects and their controls are drawn, writing, errors."""

import fakes
import pytest
from fake_live import TEXT, Desk
from fake_live import desk as fake_desk


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with fake_desk(tmp_path_factory.mktemp("demo")) as desk:
        yield desk


@pytest.fixture
def desk(place):
    """The one tab of this file, with a host that has heard nothing yet."""
    place.live.heard.clear()
    place.live.gate.set()
    place.wrong.clear()
    yield place
    assert place.tab.evaluate("window.__pwned") is None
    assert not place.wrong


def test_edits_are_made_of_the_latents_maximum(desk):
    desk.read("&prompt_token=2&latent=9")
    desk.says("chosen-title", "Latent 9")
    desk.press("a")
    desk.id("add-steer").click()
    desk.id("edit-slider").fill("-2.5")
    desk.id("edit-places").nth(1).fill("1, 3-4")
    desk.id("edit-places").nth(1).blur()
    desk.id("add-scale").click()
    desk.id("edit-here").nth(2).click()
    assert "9%3Aablate%3A1%3A%3B9%3Asteer%3A-2.5%3A1%2C3-4%3B9%3Ascale%3A2%3A2" in desk.tab.url
    desk.id("steer-controls").fill("5")
    desk.id("steer-controls").blur()
    desk.press("x")
    desk.id("steer-table").wait_for()
    (body,) = desk.heard("steer")
    most = float(desk.live.store(1).columns["max_value"][9])
    assert body["edits"] == [
        {"latent": 9, "how": "ablate", "amount": 0, "positions": None},
        {"latent": 9, "how": "steer", "amount": pytest.approx(-2.5 * most), "positions": [1, 3, 4]},
        {"latent": 9, "how": "scale", "amount": 2, "positions": [2]},
    ]
    assert {name: body[name] for name in ("store", "text", "controls", "latents", "seed")} == {
        "store": 1,
        "text": TEXT,
        "controls": 5,
        "latents": 8,
        "seed": 0,
    }
    desk.id("edit-remove").first.click()
    assert desk.id("edit").count() == 2


def test_an_effect_stands_among_its_controls(desk):
    desk.read("&prompt_edits=9:ablate:1:")
    desk.id("run-edits").click()
    strip = desk.id("strip-kl-frozen")
    strip.wait_for()
    assert strip.locator("circle").count() == 16
    words = strip.locator("figcaption").inner_text()  # 0.12 among 0, .01, … .07 and 0, .05, … .35
    assert "larger than 8 of 8 random directions (p 0.111)" in words
    assert "larger than 3 of 8 other latents (p 0.667)" in words
    assert "larger than 5 of 8 other latents" in desk.id("strip-kl-free").inner_text()
    assert "−1.5" in desk.id("strip-change-free").inner_text()
    row = desk.id("steer-table").locator("tbody tr").nth(1).inner_text()
    assert ["London", "30", "%", "30", "%", "=", "10", "%", "↓"] == row.split()
    assert "1.7 × as long" in desk.id("side-free").inner_text()


def test_writing_streams_and_stops(desk):
    desk.read("&prompt_edits=9:ablate:1:")
    desk.id("generate-tokens").fill("5")
    desk.id("generate-tokens").blur()
    desk.press("g")
    desk.says("generate-status", "written")
    assert desk.id("written-changed").text_content() == "".join(f" word{place}\n" for place in range(5))
    assert desk.id("written-base").text_content().startswith(fakes.HOSTILE[0] + fakes.HOSTILE[1])
    assert desk.heard("generate")[0]["edits"] == [{"latent": 9, "how": "ablate", "amount": 0, "positions": None}]
    desk.id("generate-tokens").fill("400")
    desk.id("write").click()
    desk.says("written-changed", "word4")
    desk.id("generate-status-stop").click()
    desk.says("generate-status", "stopped")
    before = desk.id("written-changed").text_content()
    desk.tab.wait_for_timeout(150)
    assert desk.id("written-changed").text_content() == before
    assert "word399" not in before


def test_errors_are_told_and_nothing_is_lost(desk):
    desk.read()
    desk.press("e")
    desk.press("Control+a")
    desk.tab.keyboard.type("wrong text")
    desk.press("Control+Enter")
    desk.says("prompt-status", f"expected something else; got {fakes.HOSTILE[0]}; mend it")
    assert desk.id("prompt-latent").count() > 0
    desk.read("&prompt_edits=99:ablate:1:")
    desk.id("run-edits").click()
    desk.says("steer-status", "expected a latent below 64")
    desk.id("generate-seed").fill("13")
    desk.id("write").click()
    desk.says("generate-status", "luckier seed")


def test_places_and_edits_of_an_address_are_checked(desk):
    desk.read("&prompt_edits=9:ablate:1:;x:steer:1:;3:explode:1:;4:steer:NaN:;5:set:2:1-;6:set:1.5:2;__proto__:set:1:")
    assert [edit.inner_text().split()[0] for edit in desk.id("edit").all()] == ["9", "6"]
    places = desk.id("edit-places").first
    for text in ("x", "7-5", "1-", "-1", "1-9999999", "1-999999"):
        places.fill(text)
        places.press("Enter")
        assert places.evaluate("input => input.validity.customError"), text
    assert "9%3Aablate%3A1%3A%3B" in desk.tab.url or "9:ablate:1:;" in desk.tab.url
    places.fill("3, 5-7,5")
    places.press("Enter")
    desk.id("run-edits").click()
    desk.id("steer-table").wait_for()
    assert desk.heard("steer")[0]["edits"][0]["positions"] == [3, 5, 6, 7]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_is_not_wider_than_it_is(desk, scheme):
    size = {"width": 375, "height": 700}
    narrow = Desk(desk.context.browser, desk.live, desk.address, viewport=size, color_scheme=scheme)
    narrow.read("&prompt_token=8&latent=28&prompt_edits=9:steer:1:;5:set:2:1-4")
    narrow.id("run-edits").click()
    narrow.id("steer-table").wait_for()
    assert narrow.tab.evaluate("document.documentElement.scrollWidth") <= 375
    narrow.close()
