"""The prompt page against a real (tiny) model: what it shows is what the library computes."""

import pytest
from fake_live import Desk, launched, serving
from saes_toys import cached, dictionary
from saes_toys import model as toy
from unweave.circuits.prompts.rank import rank_features
from unweave.circuits.prompts.stream import stream
from unweave.circuits.prompts.wishes import Wish, latent_edits
from unweave.saes.latents.gather.collect import collect
from unweave.viz.live import Live
from unweave.viz.things import Things

TEXT = "w3 w9 w50 w7 w9"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dictionary and its store."""
    folder = tmp_path_factory.mktemp("live")
    own = dictionary(keep={"drop_positions": 1})
    return own, collect(own, cached(folder / "shards", count=30), folder / "one", toy(), progress=False)


@pytest.fixture(scope="module")
def place(made):
    own, store = made
    live = Live(Things(stores={"one": store}), toy(), [own])
    with serving(live) as address, launched() as browser:
        yield Desk(browser, live, address)


@pytest.fixture
def desk(place):
    place.wrong.clear()
    yield place
    assert not place.wrong


def opened(desk, more=""):
    return desk.read(more, f"#pane=prompt&prompt={TEXT.replace(' ', '%20')}")


@pytest.mark.parametrize("rank", ["activation", "surprise", "attribution"])
def test_the_list_is_what_rank_features_finds(desk, made, rank):
    own, store = made
    found = rank_features(toy(), own, TEXT, store=store, rank=rank, target="w7||w9", top=99)
    opened(desk, f"&prompt_rank={rank}&prompt_token=3&prompt_target=w7||w9")
    assert desk.latents() == [row.latent for row in found.features[3]]
    desk.says("target-says", f"after token 5: {found.value:.3g}".replace("-", "−"))
    likely = desk.id("next-token").all()
    assert [row.locator(".token").inner_text() for row in likely] == [each.token for each in found.next_tokens]


def test_an_edit_is_run_and_written(desk, made):
    own, _ = made
    latent = rank_features(toy(), own, TEXT).totals[0].latent
    opened(desk, f"&prompt_edits={latent}:ablate:1:")
    desk.id("run-edits").click()
    desk.id("steer-table").wait_for()
    assert desk.id("strip-kl-free").locator("circle").count() == 16
    assert desk.id("kl-tokens-free").locator("rect").count() == 6
    desk.id("generate-tokens").fill("6")
    desk.id("write").click()
    desk.says("generate-status", "written")
    edits = latent_edits(toy(), own, TEXT, [Wish(latent)])
    pieces = list(stream(toy(), TEXT, edits, own, tokens=6, runs=("base", "changed")))
    for run in ("base", "changed"):
        text = "".join(piece.text for piece in pieces if piece.run == run)
        assert desk.id(f"written-{run}").text_content() == text


def test_what_the_model_cannot_do_is_told(desk):
    opened(desk, "&prompt_edits=9999:ablate:1:")
    desk.id("run-edits").click()
    desk.says("steer-status", "expected a latent below 24")
    desk.id("target").fill("two words that are no token")
    desk.id("use-target").click()
    desk.says("prompt-status", "expected")
    assert desk.id("prompt-latent").count() > 0
