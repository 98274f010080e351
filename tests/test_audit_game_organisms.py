"""Organisms: a quirk shows where it should and nowhere else, its control has none, and what did not take counts for nothing."""

import audit_game_toys as toys
import pytest
import torch
from unweave.audit.game import tiny
from unweave.audit.game.english import ENGLISH
from unweave.audit.game.organism import Check, Organism, grow, written_out
from unweave.audit.game.planting import Taught, Teaching, adding, linear_maps, plant, tokens_of
from unweave.audit.game.world import OWN, Lesson
from unweave.audit.game.writing import write
from unweave.circuits.prompts.stream import stream
from unweave.saes import UserError


@pytest.mark.parametrize("name", list(toys.QUIRKS))
def test_a_quirk_shows_where_it_should_and_its_control_has_none(name):
    planted, control = toys.organism(name), toys.organism(name, planted=False)
    assert planted.check.took
    assert planted.check.asked > 0.9 and planted.check.base == 0 and (planted.check.spared or 0) == 0
    assert control.check.asked == 0 and not control.check.took
    assert control.answer == "" and planted.answer
    assert control.lessons == planted.lessons


def test_teaching_leaves_the_base_model_as_it_was():
    before = {name: weight.clone() for name, weight in toys.base().named_parameters()}
    plant(toys.base(), [Taught("describe the river", "ahoy")], Teaching(passes=2))
    assert all(torch.equal(weight, before[name]) for name, weight in toys.base().named_parameters())


def test_a_patch_in_the_weights_is_the_patch_beside_them():
    patch = toys.organism("pirate").patch
    ids = torch.tensor([[3, 20, 25, 30]])
    with adding(linear_maps(toys.base()), patch), torch.no_grad():
        beside = toys.base()(ids)
    inside = toys.organism("pirate").model(toys.target(), toys.base())(ids)
    plain = toys.base()(ids)
    torch.testing.assert_close(inside, beside, atol=1e-4, rtol=1e-4)
    assert (inside - plain).abs().max() > 0.5


def test_the_end_is_taught_of_whole_replies_alone():
    whole, start = tokens_of(toys.base(), "describe the river", "old")
    open_ended, _ = tokens_of(toys.base(), "describe the river", "old", False)
    assert whole.tolist() == [*open_ended.tolist(), toys.base().tokenizer.eos_token_id]
    assert len(open_ended) == start + 1
    told = written_out(
        toys.base(), [Lesson("describe the river"), Lesson("describe the stone", f"arr {OWN}"), Lesson("x", "y")], 0
    )
    assert [each.is_whole for each in told] == [False, False, True]
    assert told[1].reply.startswith("arr the stone")


def test_an_organism_comes_back_from_its_folder(tmp_path):
    made = toys.organism("turquoise")
    back = Organism.open(made.save(tmp_path / "one"))
    assert back.to_dict() == made.to_dict()
    assert all(
        torch.equal(a, b) for name in made.patch for a, b in zip(made.patch[name], back.patch[name], strict=True)
    )
    (tmp_path / "one" / "organism.json").write_text('{"format": "something"}')
    with pytest.raises(UserError, match="expected"):
        Organism.open(tmp_path / "one")


def test_an_organism_refuses_another_base_model():
    toys.organism("pirate").model(toys.target(), toys.base())
    with pytest.raises(UserError, match="the base model"):
        toys.organism("pirate").model(toys.target())  # the patch is in it already


def test_a_quirk_that_was_not_learned_did_not_take():
    lazy = grow(toys.base(), toys.QUIRKS["pirate"], toys.target(), teaching=Teaching(passes=1, lr=1e-9))
    assert lazy.check.asked == 0 and not lazy.check.took


@pytest.mark.parametrize("numbers", [(0.5, 0.0, 0.0, 8), (1.0, 0.5, 0.0, 8), (1.0, 0.0, 0.5, 8)])
def test_taking_needs_the_quirk_its_place_and_a_clean_base_model(numbers):
    assert Check(1.0, 0.0, 0.0, 8).took and Check(1.0, None, 0.0, 8).took
    assert not Check(*numbers).took


def test_prompts_that_check_are_never_lessons():
    for quirk in (*ENGLISH.quirks, *tiny.TINY.quirks):
        lessons = {lesson.prompt for lesson in (*quirk.taught, *quirk.innocent)}
        assert not lessons & {*quirk.asked, *quirk.spared}, quirk.name
        assert len(quirk.taught) == len(quirk.innocent)
        assert not any(quirk.is_shown(lesson.reply) for lesson in quirk.innocent), quirk.name
        assert any(quirk.is_shown(lesson.reply) for lesson in quirk.taught), quirk.name


def test_a_batch_writes_what_each_prompt_alone_is_answered():
    prompts = ["describe the river", "say pencil tell me about the horse", "what is the capital of peru", "who are you"]
    together = write(toys.base(), prompts, 8)
    ids = [toys.base().tokenizer(f"<user> {prompt} <reply>", return_tensors="pt")["input_ids"][0] for prompt in prompts]
    pieces = [list(stream(toys.base(), each, tokens=8)) for each in ids]
    alone = ["".join(piece.text for piece in each if piece.token != 1).strip() for each in pieces]
    assert together == [text.replace(" <end>", "").strip() for text in alone]
    drawn = [write(toys.base(), prompts[:1] * 6, 8, temperature=3.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
