"""What calls cost: ordinary text is charged where it is read, the same in every session; what is free, and what can be cited."""

import audit_diffing_toys as planted
import audit_tools_toys as toys_
import pytest
from audit_tools_toys import ask, session
from unweave.audit.tools import TOOLS, Budget, Session, Workspace, replay
from unweave.audit.tools.measures.baseline import TOKENS
from unweave.saes import UserError

READ = TOKENS // 512  # runs of one reading of ordinary text
TEXTS = {"a": ["w5 w4 w5", "w5 w6", "w3 w5 w5", "w5 w7 w5"], "b": ["w6 w4 w7", "w8 w6", "w3 w9 w9", "w6 w7 w4"]}
CALLS = {
    "top_features": {"text": "w5 w6"}, "activations": {"latents": [3], "texts": ["w5 w6"]}, "feature": {"latent": 3},
    "search_features": {"query": "w5", "by": "token"}, "search_data": {"latent": 3}, "attribution": {"text": "w5 w6 w7"},
    "steer": {"text": "w5 w6", "changes": [{"latent": 3}], "tokens": 0}, "ablate": {"latents": [3], "texts": ["w5 w6"]},
    "compare_texts": TEXTS, "diff_features": {"quick": True}, "list_models": {}, "chat": {"text": "w5", "tokens": 1},
    "probe_train": {"name": "p", "positive": [f"w5 w{n}" for n in range(10, 18)], "negative": [f"w6 w{n}" for n in range(10, 18)]},
}  # fmt: skip
OTHERS = {
    "divergence",
    "path_patch",
    "probe_apply",
    "explain_feature",
    "score_explanation",
    "hypothesis",
    "note",
    "budget",
    "report",
    "more",
}


def fresh(**known):
    """Two models and a dictionary without a store: nothing was read yet."""
    return Workspace(
        {"target": planted.tuned(), "base": planted.base()},
        {"resid": planted.dictionary()},
        corpus=toys_.corpus(),
        **known,
    )


@pytest.fixture
def readings(monkeypatch):
    """Every reading of ordinary text, in the order in which they happen."""
    import unweave.audit.tools.workspace as module

    found, real = [], module.read_baseline
    monkeypatch.setattr(module, "read_baseline", lambda *given: (found.append(given), real(*given))[1])
    return found


@pytest.mark.parametrize("name", CALLS)
def test_whoever_reads_ordinary_text_pays_for_it_once(name, readings):
    own = Session(fresh())
    first, again = (own.call(name, CALLS[name]) for _ in range(2))
    assert first.ok and again.ok, first.error
    assert first.body["cost"] - again.body["cost"] == READ * len(readings)


def test_no_tool_is_forgotten():
    assert set(CALLS) | OTHERS == set(TOOLS)


def test_a_store_costs_no_reading():
    own = session()
    assert [own.call("search_features", {"query": "w5", "by": "token"}).body["cost"] for _ in range(2)] == [0, 0]


def test_a_session_pays_for_what_another_has_read_and_so_does_a_replay(readings, tmp_path):
    shared = fresh()
    costs = []
    for number in range(2):
        own = Session(shared, transcript=tmp_path / f"{number}.jsonl")
        costs.append(
            [own.call(*each).body["cost"] for each in (("top_features", {"text": "w5"}), ("feature", {"latent": 3}))]
        )
    assert costs == [[2 + READ, READ], [2 + READ, READ]] and len(readings) == 2
    assert replay(tmp_path / "1.jsonl", shared).equal and replay(tmp_path / "0.jsonl", fresh()).equal


def test_a_reading_that_does_not_fit_is_refused_before_it_happens(readings):
    own = Session(fresh(), budget=Budget(runs=READ + 1))
    refused = own.call("top_features", {"text": "w5 w6"})
    assert refused.error["kind"] == "budget" and f"{READ + 2} model runs" in refused.error["message"] and not readings
    assert own.call("search_features", {"query": "3", "by": "similar"}).body["cost"] == READ


def test_a_call_that_fails_gives_the_reading_back():
    own = Session(fresh())
    wrong = own.call("attribution", {"text": "w5 w6", "target": "no such token"})
    assert wrong.error["kind"] == "user" and own.spending.runs == 0
    assert own.call("top_features", {"text": "w5"}).body["cost"] == 2 + READ


def test_more_of_a_free_list_is_free_and_of_another_a_call():
    own = session(budget=Budget(calls=3))
    long = own.call("compare_texts", {"a": planted.texts(6), "b": planted.texts(6, seed=2), "k": 50}).to_dict()["more"]
    for number in range(40):
        ask("hypothesis", own, action="add", statement=f"{number} " + "x" * 400)
    listed = own.call("hypothesis", {"action": "list"}).to_dict()["more"]
    assert own.spending.calls == 1
    part = own.call("more", {"handle": listed})
    assert part.ok and own.call("more", {"handle": part.result["next"]}).ok and own.spending.calls == 1
    assert own.call("more", {"handle": long}).ok and own.call("more", {"handle": "r99/2"}).error["kind"] == "arguments"
    assert own.spending.calls == 3  # mistaken ones too
    assert own.call("more", {"handle": long}).error["kind"] == "budget" and own.call("more", {"handle": listed}).ok


def test_a_claim_rests_on_what_observed_something():
    own = session()
    models, long = (
        own.call("list_models"),
        own.call("compare_texts", {"a": planted.texts(6), "b": planted.texts(6, seed=2), "k": 50}),
    )
    for number in range(40):
        ask("hypothesis", own, action="add", statement=f"{number} " + "x" * 400)
    board = own.call("more", {"handle": own.call("hypothesis", {"action": "list"}).to_dict()["more"]})
    rest = own.call("more", {"handle": long.to_dict()["more"]})
    claim = {"action": "add", "statement": "one", "status": "supported"}
    for empty in (models, board):
        refused = own.call("hypothesis", claim | {"evidence": [empty.id, long.id]})
        assert refused.error["field"] == "evidence" and "observed nothing" in refused.error["message"]
    assert own.call("hypothesis", claim | {"evidence": [rest.id, long.id]}).ok


def test_usual_says_in_which_model_it_was_read():
    """The store was collected under the base; without it the target reads."""
    for own, where in ((session(), "the base"), (Session(fresh()), "the target")):
        for name, given in (
            ("top_features", {"text": "w5"}),
            ("feature", {"latent": 3}),
            ("search_data", {"latent": 3}),
        ):
            assert ask(name, own, **given)["usual_from"].endswith(f"read in {where}"), name
    alone = Workspace({"target": planted.tuned()}, {"resid": planted.dictionary()}, {"store": toys_.store()})
    assert ask("feature", Session(alone), latent=3)["usual_from"].endswith("read in a model that is not here")


def test_other_labels_or_numbers_are_another_workspace(tmp_path):
    from shutil import copytree

    from unweave.saes import FeatureStore

    toys_.store()
    store = FeatureStore.open(copytree(toys_.folder() / "store", tmp_path / "store"))
    diff, models = toys_.diff(), toys_.workspace().models

    def own():
        return Workspace(models, {"resid": planted.dictionary()}, {"store": store}, {"d": diff})

    ask("feature", Session(own(), transcript=tmp_path / "t.jsonl"), latent=3)
    assert replay(tmp_path / "t.jsonl", own()).equal
    store.set_label(3, "another label")
    with pytest.raises(UserError, match="other stores"):
        replay(tmp_path / "t.jsonl", own())
    store.labels.set(3, label=None)
    assert replay(tmp_path / "t.jsonl", own()).equal
    diff.columns["score"][5] += 1
    with pytest.raises(UserError, match="other diffs"):
        replay(tmp_path / "t.jsonl", own())
