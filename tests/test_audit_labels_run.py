"""The verb as a whole: better than its baselines where the truth is known, resumable, and polite to people's labels."""

import json
from pathlib import Path

import audit_labels_toys as toy
import pytest
from unweave.audit.labels import Draws, Scripted, label
from unweave.audit.labels import labelling as verb
from unweave.audit.labels.command import label as command
from unweave.audit.labels.records import Records
from unweave.audit.labels.writing import write_label
from unweave.saes import FeatureStore, UserError

KNOWN = [toy.CAT, toy.NUMBER, toy.OF_THE, toy.DOG]


@pytest.fixture
def store(tmp_path):
    return toy.store(tmp_path / "store")


def test_known_rules_score_far_above_shuffled_labels_and_noise_does_not(store):
    found = label(store, [*KNOWN, toy.NOISE], progress=False)
    by_latent = {row["latent"]: row for row in found.rows}
    for latent in KNOWN:
        assert by_latent[latent]["detection_random"] == by_latent[latent]["fuzzing_random"] == 1.0
        assert by_latent[latent]["detection_hard"] == 1.0
        assert by_latent[latent]["auc"] == 1.0
    assert by_latent[toy.NOISE]["low"] < 0.5 + 0.15 and by_latent[toy.NOISE]["detection_all"] < 0.7
    one = found.means["detection"]["all"]
    assert one["shuffled"]["high"] < 0.7 < one["label"]["low"]
    assert one["gain"]["mean"] == pytest.approx(one["label"]["mean"] - one["shuffled"]["mean"])
    assert one["top_token"]["mean"] < one["label"]["mean"]


def test_label_stands_in_the_store_with_its_score(store):
    found = label(store, KNOWN, progress=False)
    assert found.written == 4 and not found.kept
    mark = store.labels.get(toy.NUMBER)
    assert mark.label == "numbers (promotes " + mark.label.partition("(promotes ")[2]
    assert mark.score is not None and mark.score["value"] == 1.0 and mark.score["low"] <= 1.0
    assert mark.score["method"] == "heuristic, judged by machine" and mark.score["chance"] == 0.5
    assert store.labels.history(toy.NUMBER)[0].author == "unweave label"


def test_nothing_is_written_where_it_is_not_wanted(store):
    assert label(store, [toy.CAT], write=False, progress=False).written == 0
    assert store.labels.all() == {}


def test_a_label_of_a_person_stays(store):
    store.labels.set(toy.CAT, label="my cat", author="Ada")
    store.labels.set(toy.DOG, label="anonymous")
    found = label(store, KNOWN, progress=False)
    assert found.kept == [toy.CAT, toy.DOG] and found.written == 2
    assert (store.labels.get(toy.CAT).label, store.labels.get(toy.DOG).label) == ("my cat", "anonymous")
    assert store.labels.get(toy.CAT).score is None


def test_our_own_label_is_renewed_and_tags_of_people_do_not_guard_it(store):
    label(store, KNOWN, progress=False)
    store.labels.tag(toy.CAT, add=["seen"], author="Ada")
    score = dict(method="new", value=0.9, low=0.8, high=1.0, n=10)
    assert write_label(store, toy.CAT, "cats", score, "unweave label")
    assert store.labels.get(toy.CAT).label == "cats" and store.labels.get(toy.CAT).tags == ("seen",)
    store.labels.set(toy.CAT, label="felines", author="Ada")
    assert not write_label(store, toy.CAT, "cats", score, "unweave label")


def test_a_person_who_speaks_in_between_wins(store, monkeypatch):
    """Between the look at the label and its change, Ada writes hers."""
    from unweave.audit.labels import writing

    look = writing.is_ours

    def meanwhile(*args):
        answer = look(*args)
        FeatureStore.open(store.folder).labels.set(toy.CAT, label="my cat", author="Ada")
        return answer

    monkeypatch.setattr(writing, "is_ours", meanwhile)
    store.labels.set(toy.CAT, label="old", author="unweave label")
    before = store.labels.get(toy.CAT)
    monkeypatch.setattr(store.labels, "get", lambda latent, get=store.labels.get: before)  # what was seen at the look
    score = dict(method="new", value=0.9, low=0.8, high=1.0, n=10)
    assert not write_label(store, toy.CAT, "cats", score, "unweave label")
    assert FeatureStore.open(store.folder).labels.get(toy.CAT).label == "my cat"


def test_too_few_places_are_told_and_get_no_label(store):
    found = label(store, [toy.CAT, toy.DEAD, toy.RARE, toy.DENSE], progress=False)
    assert sorted(found.too_few) == [toy.DEAD, toy.DENSE, toy.RARE]
    assert [row["latent"] for row in found.rows] == [toy.CAT]
    assert found.rows[0]["partner"] is None and found.rows[0]["shuffled"] is None
    assert store.labels.get(toy.DENSE).label is None
    assert "silent windows" in found.to_dict()["too_few"][str(toy.DENSE)]


def test_records_hold_disjoint_documents_and_another_partner(store):
    label(store, KNOWN, progress=False)
    records = Records(store.folder / "labels-heuristic-judged-by-machine", lines(store)[0]["settings"])
    explain = {one for line in records.found["explanation"].values() for one in line["documents"]}
    score = {one for line in records.found["score"].values() for one in line["documents"]}
    assert explain and score and not explain & score
    assert sorted(line["partner"] for line in records.found["score"].values()) == KNOWN
    assert all(line["partner"] != latent for latent, line in records.found["score"].items())
    records.close()


def lines(store):
    file = store.folder / "labels-heuristic-judged-by-machine" / "records.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_killed_run_goes_on_and_gives_the_same_lines(store, tmp_path, monkeypatch):
    whole = label(store, KNOWN, tmp_path / "whole", write=False, progress=False)
    explained = []
    explain = verb._explain

    def killed(records, method, store, found):
        if len(explained) == 2:
            raise KeyboardInterrupt
        explained.append(found.latent)
        explain(records, method, store, found)

    monkeypatch.setattr(verb, "_explain", killed)
    with pytest.raises(KeyboardInterrupt):
        label(store, KNOWN, tmp_path / "cut", write=False, progress=False)
    monkeypatch.setattr(verb, "_explain", lambda *args: (explained.append(args[-1].latent), explain(*args)))
    file = tmp_path / "cut" / "records.jsonl"
    file.write_text(file.read_text() + '{"kind": "explanation", "latent": 2, "te')
    again = label(store, KNOWN, tmp_path / "cut", write=False, progress=False)
    assert explained == KNOWN
    assert {**again.to_dict(), "out": ""} == {**whole.to_dict(), "out": ""}
    texts = [(tmp_path / name / "records.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    assert len(texts[0]) == len(texts[1]) == 9
    label(store, KNOWN, tmp_path / "cut", write=False, progress=False)
    assert file.read_text().splitlines() == texts[1]


def test_other_settings_and_foreign_lines_are_refused(store, tmp_path):
    label(store, KNOWN, tmp_path / "out", progress=False)
    with pytest.raises(UserError, match=r"others \(draws\)"):
        label(store, KNOWN, tmp_path / "out", draws=Draws(seed=1), progress=False)
    file = tmp_path / "out" / "records.jsonl"
    file.write_text(file.read_text() + "[]\n")
    with pytest.raises(UserError, match="line 10 is none"):
        label(store, KNOWN, tmp_path / "out", progress=False)


def test_unreadable_answers_are_counted(store):
    model = Scripted(lambda chat: "cats" if "What do the marked" in chat[0]["content"] else "I would rather not say")
    found = label(store, KNOWN, explainer=model, progress=False)
    assert found.failures == found.judged > 200
    assert {row["detection_all"] for row in found.rows} == {0.5}


def test_empty_explanations_are_told(store):
    found = label(store, KNOWN, explainer=Scripted(lambda chat: " \n"), progress=False)
    assert found.empty == KNOWN and not found.rows
    assert found.to_dict()["means"]["detection"]["all"]["label"]["mean"] is None
    assert "none" in str(found)


def test_command_gives_plain_json(store):
    found = command(store.folder, latents=(toy.CAT, toy.NUMBER), least=4)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["scored"] == 2 and found["chance"] == 0.5 and found["means"]["fuzzing"]["hard"]["shuffled"]["n"] == 2
    drawn = command(store.folder, number=3, out=store.folder / "drawn", write=False)
    assert drawn["scored"] + len(drawn["too_few"]) == 3


def test_wrong_commands_are_refused(store):
    with pytest.raises(UserError, match="expected --model"):
        command(store.folder, explainer="model")
    with pytest.raises(UserError, match="no --url"):
        command(store.folder, url="http://localhost:1/v1")
    with pytest.raises(UserError, match="expected latents"):
        command(store.folder, latents=(99,))


@pytest.mark.parametrize("number", [0, -3])
def test_no_latents_are_not_drawn(number, tmp_path):
    with pytest.raises(UserError, match="1 or more"):
        verb.choose(toy.store(tmp_path), number, 0)


def test_a_machine_cannot_judge_what_a_model_explains():
    with pytest.raises(UserError, match="leave --judge out"):
        command(Path("store"), explainer="model", judge="machine", model="m")


def test_a_seed_beyond_what_draws_can_take_is_refused():
    with pytest.raises(UserError, match="seed of 0 to"):
        Draws(seed=2**40)
