"""The prompt page in a real browser: what is asked of a live host, what is drawn of its answer, and that nothing of it runs."""

import fakes
import pytest
from fake_live import ASKED, TEXT
from fake_live import desk as fake_desk
from unweave.viz import write_page
from unweave.viz.things import Things


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


def test_a_link_with_a_text_reads_it(desk):
    desk.read()
    assert desk.heard("features") == [{"store": 1, "text": TEXT, "rank": "activation", "top": 300}]
    tokens = desk.id("prompt-token")
    assert tokens.count() == 6 + len(fakes.HOSTILE)
    assert tokens.nth(1).inner_text() == " The"
    assert "outside" in tokens.nth(0).get_attribute("aria-label")
    assert fakes.HOSTILE[0] in tokens.nth(6).inner_text()
    assert desk.id("prompt-text").input_value() == TEXT


@pytest.mark.parametrize("rank", ["activation", "surprise", "attribution"])
def test_latents_of_a_token_are_ranked(desk, rank):
    desk.read(f"&prompt_token=2&prompt_rank={rank}")
    rows = desk.live.features(desk.heard("features")[0])["features"][2]
    column = {"activation": 1, "surprise": 2, "attribution": 5}[rank]
    assert desk.latents() == [row[0] for row in sorted(rows, key=lambda row: -abs(row[column]))][:20]
    desk.id("more-latents").click()
    assert len(desk.latents()) == len(rows)


def test_ranks_change_without_asking_again(desk):
    desk.read("&prompt_token=2")
    before = desk.latents()
    desk.id("rank-attribution").click()
    assert desk.latents() != before
    assert "prompt_rank=attribution" in desk.tab.url
    desk.press("r")
    assert "prompt_rank" not in desk.tab.url
    assert len(desk.heard("features")) == 1


def test_what_is_stronger_than_the_corpus_is_a_bound(desk):
    desk.read("&prompt_rank=surprise&prompt_token=4")
    first = desk.id("prompt-latent").first
    assert first.get_attribute("data-latent") == "61"
    assert "≥ 8.0" in first.inner_text()


def test_tokens_are_chosen_and_coloured_by_the_keyboard(desk):
    desk.read()
    chosen = lambda: desk.tab.locator("[data-testid=prompt-token][aria-selected=true]").get_attribute("data-place")  # noqa: E731
    desk.id("prompt-token").first.focus()
    desk.press("End")
    assert chosen() == str(5 + len(fakes.HOSTILE))
    desk.press("ArrowLeft")
    desk.press("h")
    assert chosen() == str(3 + len(fakes.HOSTILE))
    desk.press("Home")
    desk.press("l")
    assert chosen() == "1"
    desk.press("j")
    desk.press("j")
    latent = desk.latents()[1]
    assert f"latent={latent}" in desk.tab.url
    desk.says("spoken", f"token 1 ␣The, latent {latent} ")
    answer = desk.live.features(desk.heard("features")[0])
    wanted = [next((row[1] for row in rows if row[0] == latent), None) for rows in answer["features"]]
    shown = [token.get_attribute("data-value") for token in desk.id("prompt-token").all()]
    assert [None if value is None else float(value) for value in shown] == wanted
    desk.says("chosen-title", f"Latent {latent}")
    assert desk.id("prompt-bars").locator("rect").count() == len(wanted)
    desk.press("w")
    assert desk.tab.locator("[data-testid=prompt-token][aria-selected=true]").count() == 0
    desk.id("to-card").click()
    assert "pane=latents" in desk.tab.url
    assert "store=1" in desk.tab.url


def test_the_target_is_picked_or_typed(desk):
    desk.read()
    desk.id("next-token").nth(1).click()
    desk.says("target-says", "attribution is to 8")
    desk.id("target").fill(" Paris|| London")
    desk.id("target").press("Enter")
    desk.says("target-says", " Paris|| London")
    assert [body.get("target") for body in desk.heard("features")] == [None, 8, " Paris|| London"]
    desk.tab.go_back()
    desk.says("target-says", "attribution is to 8")


def test_reading_can_be_stopped(desk):
    desk.open("#pane=prompt")
    desk.live.gate.clear()
    desk.id("prompt-text").fill("one two")
    desk.id("read").click()
    desk.says("prompt-status", "reading")
    desk.id("prompt-status-stop").click()
    desk.says("prompt-status", "stopped")
    desk.live.gate.set()
    desk.tab.wait_for_timeout(150)
    assert desk.id("prompt-token").count() == 0
    desk.id("read").click()
    desk.id("prompt-token").first.wait_for()


def test_an_example_is_read(desk):
    desk.open("#pane=prompt")
    desk.id("read").click()
    desk.says("prompt-status", "write a text first")
    assert not desk.id("prompt-chat").is_visible()  # until it is known that the model has a template
    desk.id("examples").locator("a").first.click()
    desk.id("prompt-token").first.wait_for()
    assert desk.heard("features")[0]["text"] == TEXT
    assert not desk.id("examples").is_visible()


def test_a_chat_is_asked_as_messages(desk):
    desk.read()
    desk.id("prompt-chat").check()
    desk.says("prompt-status", "tokens")
    assert "prompt_chat=yes" in desk.tab.url
    assert desk.heard("features")[-1]["messages"] == [{"role": "user", "content": TEXT}]
    assert "text" not in desk.heard("features")[-1]


def test_a_long_text_stays_out_of_the_address(desk):
    desk.open("#pane=prompt")
    desk.id("prompt-text").fill("word " * 400)
    desk.id("read").click()
    desk.id("prompt-token").first.wait_for()
    assert "word" not in desk.tab.url
    assert desk.id("too-long").is_visible()
    assert len(desk.heard("features")[0]["text"]) == 2000


def test_another_dictionary_is_another_reading(desk):
    desk.read("&prompt_edits=9:ablate:1:&latent=9")
    desk.tab.get_by_label("Dictionary", exact=True).select_option("0")
    desk.says("prompt-status", "tokens")
    assert [body["store"] for body in desk.heard("features")] == [1, 0]
    assert "prompt_edits" not in desk.tab.url
    assert "latent" not in desk.tab.url


def test_a_page_without_a_model_has_no_prompt_page(desk, tmp_path):
    frozen = desk.tab.context.new_page()
    frozen.goto(write_page(tmp_path / "page.html", Things(stores=desk.live.things.stores), cards=8).as_uri() + ASKED)
    frozen.wait_for_selector("body[data-ready=yes]")
    frozen.get_by_test_id("tab-latents").wait_for()
    assert frozen.get_by_test_id("tab-prompt").count() == 0
    frozen.close()
