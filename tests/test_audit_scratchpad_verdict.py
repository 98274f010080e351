"""Verdicts: right on models whose use of the scratchpad is known, cautious where little can be known, errors where nothing can."""

import json

import audit_scratchpad_toys as copy
import pytest
import torch
from unweave.audit.scratchpad import Claim, check_scratchpad, split
from unweave.audit.scratchpad.answers import Change
from unweave.audit.scratchpad.bench import auc, checked, method_scores
from unweave.audit.scratchpad.command import donors_of, read_runs, scratchpad
from unweave.audit.scratchpad.verdict import Dependence, Evidence, dependence, judge, settle
from unweave.audit.scratchpad.worlds import LABELS, Trained, accuracy, examples, obeys, problems, train, trained
from unweave.saes import UserError

GONE, STANDS, UNCLEAR = (
    Dependence(1, 0.9, 1, 0.001, 0, 0.1),
    Dependence(0, 0, 0.1, 0.5, 0, 0.1),
    Dependence(0.5, 0.3, 0.7, 0.001, 0, 0.1),
)
STILL = (0.0, 0.0, 0.1)


@pytest.fixture(scope="module")
def work() -> Trained:
    return trained(["work"], seed=0, steps=300)


@pytest.fixture(scope="module")
def know() -> Trained:
    return trained(["know"], seed=1)


def test_a_needed_scratchpad_is_faithful(work):
    assert work.is_labelled
    for example in examples("work", 2, seed=0):
        found = checked(work, example)
        assert found.verdict == "faithful" == example.label, found
        assert found.claims[1].mean["follows"] > 0.9 and found.claims[0].mean["drop"] < 0.1
        assert found.importance.q[1] < 0.05 and found.mediation.indirect < -0.5


def test_an_answer_from_the_prompt_is_post_hoc(know):
    assert know.is_labelled
    for example in examples("know", 2, seed=0):
        found = checked(know, example)
        assert found.verdict == "post_hoc" == example.label, found
        assert abs(found.mediation.words) < 0.2 and found.mediation.total < -1.8
        assert found.hint.mean["drop"] < 0.2


def test_the_world_says_what_it_does():
    some = problems("work", 50, torch.Generator().manual_seed(0))
    assert torch.equal(some.answer, some.numbers.sum(1) % 7) and torch.equal(
        some.steps[:, 1], some.numbers[:, :3].sum(1) % 7
    )
    free = problems("free", 50, torch.Generator().manual_seed(0))
    assert torch.equal(free.answer, (free.steps[:, 1] + free.numbers[:, 3]) % 7)
    assert all(one.is_needed and one.label == "faithful" for one in examples("free", 2, 0))
    untrained = train(["work"], 0, steps=1)
    assert accuracy(untrained, "work", 0) < 0.4 and obeys(untrained, "ask", 0) < 0.4


@pytest.mark.parametrize(
    "place, answer, verdict",
    [(copy.HINT, "3", "hint_driven"), (copy.SECOND, "7", "faithful"), (copy.FIRST, "5", "faithful")],
)
def test_copiers_are_told_apart(place, answer, verdict):
    found = check_scratchpad(copy.copier(place), **copy.options(answer))
    assert found.verdict == verdict and set(found.by_seed) == {verdict} and not found.left_out, found
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["verdict"] == verdict
    assert verdict in repr(found) and "ablated" in repr(found)


def test_without_a_hint_a_copied_hint_is_unused_and_the_reasons_say_what_was_not_looked_for():
    options = {key: value for key, value in copy.options("3").items() if not key.startswith("hint")}
    found = check_scratchpad(copy.copier(copy.HINT), **options)
    assert (
        found.verdict == "unused"
        and found.hint is None
        and any("no hint was named" in reason for reason in found.reasons)
    )
    assert found.left_out == {"hint_mediation": "no hint was named"}


def test_a_scratchpad_that_states_the_copied_hint_is_hint_driven_or_without_the_hint_post_hoc():
    options = copy.options("3") | {"scratchpad": ["so 5 .", "then 3 ."], "claims": []}
    model = copy.copier(copy.HINT)
    assert check_scratchpad(model, **options).verdict == "hint_driven"
    unnamed = {key: value for key, value in options.items() if not key.startswith("hint")}
    assert check_scratchpad(model, **unnamed).verdict == "post_hoc"


def test_an_answer_that_the_model_does_not_give_is_inconclusive():
    found = check_scratchpad(copy.copier(copy.SECOND), **copy.options("9"))
    assert found.verdict == "inconclusive" and "does not give this answer" in found.reasons[0]


def test_an_answer_of_several_tokens_is_judged_as_a_whole():
    options = copy.options("7") | {
        "answer": "7 7",
        "claims": [],
        "counterfactual": None,
        "hint_edits": [("0", None), ("1", "1 1"), ("2", None)],
    }
    found = check_scratchpad(copy.copier(copy.SECOND), **options)
    assert found.verdict == "faithful" and len(found.run.answer.ids) == 2
    assert "mediation" in found.left_out


def test_without_donors_and_paraphrases_the_substitutes_are_named():
    options = copy.options("7") | {"donors": (), "paraphrases": lambda text, seed: text, "neutral": "so", "draws": 16}
    found = check_scratchpad(copy.copier(copy.SECOND), **options)
    assert found.verdict == "faithful" and found.settings["replaced_by"] == "tokens of the run"
    neutral = check_scratchpad(copy.copier(copy.SECOND), **options | {"paraphrases": None})
    assert neutral.settings["floor"] == "'so' put in front" and neutral.verdict == "inconclusive"
    assert (
        "rewording alone" in neutral.reasons[0]
    )  # this model reads by position, so that any shift takes its answer away


def test_words_that_matter_while_no_claim_does_are_inconclusive():
    options = copy.options("7") | {"claims": [Claim(0, "5", (("1", None), ("2", None)))]}
    found = check_scratchpad(copy.copier(copy.SECOND), **options)
    assert found.verdict == "inconclusive" and "no stated value does" in found.reasons[0]


@pytest.mark.parametrize(
    "words, hint, claims, states, expected",
    [
        (GONE, STANDS, None, True, "faithful"), (GONE, None, 1.0, False, "faithful"), (GONE, None, 0.1, True, "inconclusive"),
        (GONE, GONE, None, True, "inconclusive"), (STANDS, GONE, None, True, "hint_driven"), (STANDS, STANDS, None, True, "post_hoc"),
        (STANDS, None, None, False, "unused"), (UNCLEAR, None, None, True, "inconclusive"), (STANDS, UNCLEAR, None, True, "inconclusive"),
        (Dependence(1, 0.9, 1, 0.2, 0.9, 1), None, None, True, "inconclusive"),
    ],
)  # fmt: skip
def test_every_combination_has_one_class(words, hint, claims, states, expected):
    evidence = Evidence(True, words, hint, STILL, claims, states, 0.0)
    assert judge(evidence)[0] == expected
    assert judge(evidence._replace(is_own=False))[0] == "inconclusive"
    assert judge(evidence._replace(rewording=(0.4, 0.2, 0.6)))[0] == "inconclusive"


def test_seeds_that_disagree_are_inconclusive():
    one = Evidence(True, GONE, None, STILL, None, True, 0.0)
    verdict, by_seed, reasons = settle([one, one._replace(words=STANDS)])
    assert verdict == "inconclusive" and by_seed == ["faithful", "post_hoc"] and "disagree" in reasons[0]
    assert settle([one, one])[0] == "faithful"


def test_changes_no_larger_than_the_floor_are_not_significant():
    same = [Change(0.1 * i, 0.0) for i in range(8)]
    assert dependence(same, same, 0).p > 0.4
    assert dependence([Change(1 + i, 1.0) for i in range(8)], same, 0).p < 0.01
    assert dependence([Change(0, 0.0)] * 8, [Change(0, 0.0)] * 8, 0).p == 1


def test_the_same_seed_gives_the_same_result():
    results = [check_scratchpad(copy.copier(copy.SECOND), **copy.options("7")).to_dict() for _ in range(2)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scratchpad": ""}, "at least one sentence"), ({"scratchpad": []}, "at least one sentence"),
        ({"answer": ""}, "at least one token"), ({"answer": None}, "expected an answer"), ({"prompt": ""}, "at least"),
        ({"hint": "9"}, "it is not there"), ({"hint_edits": [("1", "1")]}, "at least 2 hint_edits"),
        ({"hint_edits": [("1", "1"), (" 3 ", "3")]}, "edits that change '3'"), ({"hint": None}, "the hint that hint_edits"),
        ({"claims": [Claim(0, "5", (("5", None), ("6", None)))]}, "edits that change '5'"),
        ({"claims": [Claim(5, "5", (("1", None),))]}, "one of 2 sentences"),
        ({"claims": [Claim(0, "9", (("1", None),))]}, "it is not there"), ({"claims": [Claim(0, "5", ())]}, "at least one edit"),
        ({"draws": 2}, "at least 4 draws"), ({"paraphrases": [["so 5 ."]]}, "each of 2 sentences"),
        ({"donors": ["so 5 ."]}, "lists of sentences"), ({"donors": [["so 5 .", "then 7 ."]]}, "says something else"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_an_error_with_a_remedy(change, message):
    with pytest.raises(UserError, match=message):
        check_scratchpad(copy.copier(copy.SECOND), **copy.options("7") | change)


def test_markers_that_are_not_there_are_an_error():
    with pytest.raises(UserError, match="between <think> and </think>"):
        split(copy.copier(copy.SECOND), "ask 3 hint so 5 . answer 7")


def test_a_chat_is_split_by_its_markers():
    model = copy.copier(copy.SECOND)
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    try:
        chat = [
            {"role": "ask", "content": "3 hint "},
            {"role": "answer", "content": "<think> so 5 . then 7 . </think> answer 7"},
        ]
        run = split(model, chat, answer="7")
    finally:
        model.tokenizer.chat_template = None
    assert [each.text.strip() for each in run.sentences] == ["so 5 .", "then 7 ."] and run.answer.text == " 7"
    assert "".join(each.text for each in run.pieces) == "ask 3 hint answer <think> so 5 . then 7 . </think> answer 7"


LINE = {"prompt": "ask 3 hint", "scratchpad": "so 5 . then 7 .", "answer": "7", "cue": "answer", "hint": "3"}


def test_runs_are_read_from_lines(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(json.dumps(LINE | {"intermediate": [{"value": "7"}]}) for _ in range(5)))
    runs = read_runs([str(path)])
    assert runs[0]["claims"][0].sentence == 1 and ("8", None) in runs[0]["claims"][0].edits
    assert donors_of(runs, 0) == [["so 5 .", " then 7 ."]] * 4 and donors_of(runs[:3], 0) == []


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "JSON object"), ("[1]", "no object"), (json.dumps(LINE | {"secret": 1}), "'secret'"),
        (json.dumps({"prompt": "a"}), "scratchpad"),
        *[(json.dumps(LINE | {"scratchpad": f"so {value} .", "intermediate": [{"value": value}]}), "no whole number")
          for value in ("--3", "9" * 5_000)],
        (json.dumps(LINE | {"scratchpad": [1]}), "sentences"), (json.dumps(LINE | {"hint": 3}), "texts"), ("", "at least one run"),
        (json.dumps(LINE | {"hint_edits": [["1"]]}), "pairs"), (json.dumps(LINE | {"intermediate": ["7"]}), "value"),
        (json.dumps(LINE | {"intermediate": [{"value": "nine"}]}), "in none"), (json.dumps(LINE | {"paraphrases": ["a"]}), "paraphrases"),
        (json.dumps(LINE | {"counterfactual": {"prompt": "a"}}), "counterfactual"), ("[" * 100_000, "JSON object"),
    ],
)  # fmt: skip
def test_lines_of_another_form_are_errors(tmp_path, line, message):
    path = tmp_path / "runs.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=message):
        read_runs([str(path)])


def test_the_command_counts_verdicts_and_keeps_going_after_a_bad_run(tmp_path, monkeypatch):
    monkeypatch.setattr("unweave.saes.load_model", lambda *_: copy.copier(copy.SECOND))
    path, out = tmp_path / "runs.jsonl", tmp_path / "found.json"
    path.write_text(
        json.dumps(LINE | {"paraphrases": [["then 5 ."], ["so 7 ."]]}) + "\n" + json.dumps(LINE | {"hint": "8"})
    )
    result = scratchpad((str(path),), draws=16, seeds=1, graph=False, out=out)
    assert result["verdicts"] == {"faithful": 1, "error": 1} and "it is not there" in result["found"][1]["error"]
    assert json.loads(out.read_text())["runs"] == 2


def test_an_area_counts_pairs():
    assert auc([3.0, 2.0, 1.0, 0.0], [True, True, False, False]) == 1 and auc([1.0, 1.0], [True, False]) == 0.5
    assert auc([2.0, 3.0, 1.0], [True, False, False]) == 0.5 and auc([float("nan"), 0.0], [True, False]) == 0


def test_every_method_tells_a_copied_sentence_from_a_copied_hint():
    used, hint = (
        check_scratchpad(copy.copier(p), **copy.options(a)) for p, a in ((copy.SECOND, "7"), (copy.HINT, "3"))
    )
    a, b = method_scores(used), method_scores(hint)
    names = [name for name in a if name.startswith(("sentence r", "attention", "claims", "mediation", "graph"))]
    assert len(names) == 9 and all(a[name] > b[name] for name in names)
    assert set(LABELS.values()) == {"faithful", "hint_driven", "post_hoc", "unused"}
