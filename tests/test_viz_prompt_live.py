"""The prompt page against a real (tiny) model: what it shows is what the library computes."""

import inspect

import pytest
from fake_live import Desk, launched, serving
from saes_toys import cached, dictionary
from saes_toys import model as toy
from unweave.circuits.prompts.rank import rank_features
from unweave.circuits.prompts.steering import steer_prompt
from unweave.circuits.prompts.stream import stream
from unweave.circuits.prompts.wishes import Wish, latent_edits
from unweave.saes.latents.effect.effects import effects
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


def test_only_likely_tokens_are_listed_as_moved(made, monkeypatch):
    """With a model that is sure of itself, most of the vocabulary has a probability that nobody would see."""
    own, _ = made
    model = toy()
    monkeypatch.setattr(model.W_U, "data", 30 * model.W_U.data)
    edits = latent_edits(model, own, TEXT, [Wish(rank_features(model, own, TEXT).totals[0].latent)])
    options = {"controls": 2, "latents": 2, "top": 200}
    found = steer_prompt(model, TEXT, edits, own, **options)
    everything = steer_prompt(model, TEXT, edits, own, least_probability=0.0, **options)
    for changed, whole in zip(found.changed, everything.changed, strict=True):
        before, after = found.probabilities, changed.probabilities
        likely = {token for token in range(len(before)) if max(before[token], after[token]) >= 1e-3}
        assert 0 < len(likely) < len(before) / 2
        for name, sign in (("raised", 1), ("lowered", -1)):
            some, every = getattr(changed, name), getattr(whole, name)
            assert some == [moved for moved in every if moved.id in likely]
            assert all(sign * moved.change > 0 for moved in every)
        assert len(whole.raised) + len(whole.lowered) > len(before) / 2


def test_what_counts_as_likely_is_one_number():
    numbers = [inspect.signature(each).parameters["least_probability"].default for each in (steer_prompt, effects)]
    assert numbers == [1e-3, 1e-3]


def test_what_the_model_cannot_do_is_told(desk):
    opened(desk, "&prompt_edits=9999:ablate:1:")
    desk.id("run-edits").click()
    desk.says("steer-status", "expected a latent below 24")
    desk.id("target").fill("two words that are no token")
    desk.id("use-target").click()
    desk.says("prompt-status", "expected")
    assert desk.id("prompt-latent").count() > 0
