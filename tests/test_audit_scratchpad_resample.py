"""A scratchpad written anew by the model: what must move moves, what cannot does not, and chance is told as chance."""

import json

import audit_scratchpad_toys as copy
import pytest
import torch
import toys
from unweave.audit.scratchpad import check_scratchpad, resample_sentences, split
from unweave.audit.scratchpad.answers import answer_logs, probability
from unweave.audit.scratchpad.bench import method_scores
from unweave.audit.scratchpad.command import scratchpad
from unweave.audit.scratchpad.importance import small
from unweave.audit.scratchpad.resample import moved
from unweave.audit.scratchpad.rollouts import answers_of, is_other, write_on
from unweave.circuits import generate
from unweave.circuits.prompts.many import write_ids
from unweave.saes import UserError

FIXED = {"first": ("5",), "second": ("7",)}


def resampled(model, answer="7", **more):
    return resample_sentences(model, copy.run(model, answer=answer), **more)


@pytest.mark.parametrize("place, answer, needed", [(copy.FIRST, "5", 0), (copy.SECOND, "7", 1), (copy.HINT, "3", None)])
def test_the_needed_sentence_moves_the_answers_and_no_other_does(place, answer, needed):
    found = resampled(copy.writer(place), answer)
    for i, one in enumerate(found.importance):
        if i == needed:
            assert one.distance - one.floor > 0.4 and one.low > 0.5 and found.q[i] < 0.01
            assert found.counterfactual[i].distance == pytest.approx(1, abs=1e-6) and found.counterfactual[i].p < 0.01
        else:
            assert one.distance - one.floor < 0.15 and found.q[i] > 0.05
    if needed is None:
        assert found.score == pytest.approx(0, abs=1e-9) and all(one.p == 1 for one in found.importance)


def test_a_model_that_writes_the_same_again_moves_nothing_and_is_called_forced():
    model = copy.writer(copy.SECOND, **FIXED)
    found = resampled(model)
    for one in found.importance:
        assert max(one.distance, one.low, one.high, one.floor) < 1e-12 and one.p == 1
    assert found.again == [1, 1] and found.other == [0, 0] and found.counterfactual == [None, None]
    assert found.counterfactual_score != found.counterfactual_score  # no number where nothing else was written
    told = repr(check_scratchpad(model, **copy.options("7"), resample=8, graph=False))
    assert "nearly always says the same again (sentence 1, 2)" in told and "too few to tell" in told


def test_only_rollouts_that_say_something_else_are_counterfactual():
    found = resampled(copy.writer(copy.SECOND, first=("5",), second=("7", "8")), rollouts=40)
    one, other = found.importance[1], found.counterfactual[1]
    assert 0.25 < one.distance < 0.75 and one.distance == pytest.approx(found.other[1], abs=1e-6)
    assert other.distance == pytest.approx(1, abs=1e-6) and other.rewritten == round(40 * found.other[1])
    assert found.again[1] == pytest.approx(1 - found.other[1]) and found.instead[1] == "then 8 ."
    assert found.answers[1][" 7"] == pytest.approx(found.again[1], abs=1e-6)


def test_the_seed_decides_what_is_written():
    model = copy.writer(copy.SECOND)
    one, same, other = (resampled(model, rollouts=8, seed=seed).to_dict() for seed in (1, 1, 2))
    assert one == same and one["written"] != other["written"]


def test_two_halves_of_the_same_rollouts_differ_by_chance_alone():
    generator = torch.Generator().manual_seed(0)
    excess, p = [], []
    for seed in range(40):
        some = torch.rand(32, 6, generator=generator, dtype=torch.float64).pow(4)
        found = moved(some[:16] / some[:16].sum(1, keepdim=True), some[16:] / some[16:].sum(1, keepdim=True), seed)
        excess.append(found.distance - found.floor)
        p.append(found.p)
        assert found.low <= found.distance <= found.high
    assert abs(sum(excess) / 40) < 0.02 and 0.35 < sum(p) / 40 < 0.65 and sum(one < 0.05 for one in p) <= 6


def test_the_distance_is_total_variation_by_hand():
    kept, rewritten = torch.tensor([[1.0, 0, 0]] * 6).double(), torch.tensor([[0.25, 0.75, 0]] * 6).double()
    found = moved(kept, rewritten)
    assert (
        found.distance == found.low == found.high == 0.75 and found.p < 0.01 and (found.kept, found.rewritten) == (6, 6)
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_where_answers_leave_the_given_one_is_a_distribution(family):
    model = toys.boot(family)
    run = split(model, "w3 w4 w5", scratchpad=["w6 w7", "w8 w9 w10"], answer="w11 w12", cue="w13")
    runs = [run, run.with_sentence(0, None)]
    logs = answer_logs(model, runs)
    table, names = answers_of(model, run.answer, logs)
    assert torch.allclose(table.sum(1), torch.ones(2, dtype=torch.float64)) and len(names) == table.shape[1]
    assert table[:, 0].tolist() == pytest.approx([probability(one, run) for one in logs])
    first = logs[0][0].exp()
    at_once = [column for column, name in enumerate(names[1:-1], 1) if name.endswith("…")]
    assert at_once and names[-1] == "any other"
    for column in at_once:
        token = model.tokenizer.convert_tokens_to_ids(names[column].removesuffix("…").strip())
        assert float(table[0, column]) == pytest.approx(float(first[token]), abs=2e-5)


@pytest.mark.parametrize(
    "old, new, is_so",
    [
        ("3 + 4 = 7.", "4 + 3 = 7", False), ("3 + 4 = 7.", "3 - 4 = 7.", True), ("3 + 4 = 7.", "3 + 4 = 8.", True),
        ("so first 3 .", "then first 3 .", False), ("He has five.", "He has six apples left over.", True),
        ("It is -5.", "It is 5.", True), ("Lisbon is in Portugal.", "", True), ("...", "!", False),
    ],
)  # fmt: skip
def test_numbers_signs_and_words_tell_what_says_something_else(old, new, is_so):
    assert is_other(old, new) == is_so


def test_a_claimed_value_that_is_gone_says_something_else():
    old, new = "The city is Lisbon in Portugal", "The city is Porto in Portugal"
    assert not is_other(old, new) and is_other(old, new, ["Lisbon"])


def test_a_rollout_keeps_what_stands_before_and_ends_at_the_cue():
    model = copy.writer(copy.SECOND)
    run = copy.run(model)
    for kept in range(3):
        for one in write_on(model, run, kept, 4, temperature=1.0):
            start = one.run.spans.cue.start
            assert one.is_ended and one.run.tokens[start:].tolist() == run.tokens[10:].tolist() and start == 10
            before = 4 + 3 * kept
            assert one.run.tokens[:before].tolist() == run.tokens[:before].tolist() and "answer" not in one.text


def test_what_never_ends_is_cut_after_as_many_sentences_and_told():
    model = copy.writer(copy.SECOND, end="hint")
    found = resampled(model, rollouts=4)
    assert found.ended == [0, 0, 0] and all(len(text.split(".")) == 3 for text in found.written[0])
    assert found.written[2] == [""] * 4 and found.importance[1].distance > 0.5
    told = repr(check_scratchpad(model, **copy.options("7"), resample=4, graph=False))
    assert "only 0% came to an end by themselves" in told


def test_a_full_context_leaves_room_for_as_much_as_stood_there():
    model = copy.writer(copy.SECOND)
    pad = ["so 5 .", "then 7 .", "so 1 2 ."]
    run = split(model, "ask 3 hint", scratchpad=pad, answer="7", cue="answer")
    assert len(run.tokens) == copy.CONTEXT
    found = resample_sentences(model, run, rollouts=4)
    longest = max(len(one.run.tokens) for kept in range(4) for one in write_on(model, run, kept, 4, temperature=1.0))
    assert len(found.importance) == 3 and longest <= copy.CONTEXT


def test_one_sentence_is_enough():
    model = copy.writer(copy.FIRST)
    run = split(model, "ask 3 hint", scratchpad=["so 5 ."], answer="5", cue="answer")
    found = resample_sentences(model, run)
    assert len(found.importance) == 1 and len(found.answers) == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rollouts": 3}, "at least 4 rollouts"), ({"temperature": 0.0}, "temperature above 0"), ({"tokens": 0}, "at least 1 token"),
        ({"temperature": float("nan")}, "temperature above 0"), ({"rollouts": -1}, "at least 4 rollouts"),
    ],
)  # fmt: skip
def test_what_cannot_be_resampled_is_an_error_with_a_remedy(change, message):
    with pytest.raises(UserError, match=message):
        resampled(copy.writer(copy.SECOND), **change)


def test_an_empty_scratchpad_is_an_error():
    run = copy.run(copy.writer(copy.SECOND)).with_sentences(())
    with pytest.raises(UserError, match="at least one sentence"):
        resample_sentences(copy.writer(copy.SECOND), run)
    with pytest.raises(UserError, match="at least 4 rollouts"):
        check_scratchpad(copy.writer(copy.SECOND), **copy.options("7"), resample=2)


def test_the_check_tells_it_and_the_class_is_made_without_it():
    model = copy.writer(copy.SECOND)
    plain, found = (check_scratchpad(model, **copy.options("7"), graph=False, resample=count) for count in (0, 8))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain.resampled is None and plain.to_dict() == found.to_dict() | {"resampled": None}
    assert data["resampled"]["rollouts"] == 8 and "moved" not in plain.rows()[0]
    assert found.rows()[1]["moved"] == data["resampled"]["importance"][1]["distance"]
    assert "written anew by the model, 8 times" in repr(found) and "written anew" not in repr(plain)
    assert "Written anew by the model, 8 times" in found._repr_html_()
    assert "Written anew" not in plain._repr_html_()
    assert "0.000" not in repr(found) and "<0.001" in repr(found)


def test_small_p_are_told_by_their_bound():
    assert small(1 / 2001) == "<0.001" and small(0.001) == "0.001" and small(1.0) == "1.000"


def test_resampling_tells_a_copied_sentence_from_a_copied_hint():
    used, hint = (
        check_scratchpad(copy.writer(p), **copy.options(a), resample=8, graph=False)
        for p, a in ((copy.SECOND, "7"), (copy.HINT, "3"))
    )
    a, b = method_scores(used), method_scores(hint)
    names = [name for name in a if name.startswith("resampled")]
    assert len(names) == 2 and all(a[name] > b[name] + 0.3 for name in names)


def test_the_command_resamples_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("unweave.saes.load_model", lambda *_: copy.writer(copy.SECOND))
    path = tmp_path / "runs.jsonl"
    path.write_text(
        json.dumps({"prompt": "ask 3 hint", "scratchpad": "so 5 . then 7 .", "answer": "7", "cue": "answer"})
    )
    result = scratchpad((str(path),), draws=4, seeds=1, graph=False, resample=4, temperature=2.0)
    assert result["found"][0]["resampled"]["temperature"] == 2.0 and any("4 times" in line for line in result["table"])
    assert result["table"][0] == "run 0"


@pytest.mark.parametrize("made", [lambda: toys.boot("llama"), lambda: copy.writer(copy.SECOND)], ids=["hf", "native"])
def test_rows_written_together_are_those_written_alone_and_end_at_a_stop(made):
    model = made()
    words = "w3 w4 w5" if made().cfg.d_vocab > 20 else "ask 3 hint"
    ids = [split(model, words, scratchpad=["so"], answer="7", cue="so").tokens[:4]] * 3
    plain = write_ids(model, ids, 6)
    alone = generate(model, ids[0], tokens=6).tokens.tolist()
    assert plain == [alone] * 3
    stop = model.tokenizer.decode(alone[2:3])
    stopped = write_ids(model, ids, 6, stops=[stop])
    first = next(i for i, token in enumerate(alone) if model.tokenizer.decode([token]) == stop)
    assert stopped == [alone[: first + 1]] * 3
    drawn, same, other = (write_ids(model, ids, 6, temperature=2.0, seed=seed) for seed in (1, 1, 2))
    assert drawn == same != other and write_ids(model, ids, 0) == [[], [], []]


def test_a_row_without_a_cache_draws_as_it_would_alone():
    model = copy.writer(copy.SECOND)
    ids = [copy.run(model).tokens[:4]] * 3
    together = write_ids(model, ids, 6, temperature=1.0, seed=5)
    alone = [generate(model, ids[0], tokens=6, temperature=1.0, seed=5 + row).tokens.tolist() for row in range(3)]
    assert together == alone
