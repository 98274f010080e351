"""The session of the audit's tools: ids, budgets, sizes, determinism, the board, the transcript and its replay."""

import json
import threading

import audit_diffing_toys as planted
import audit_tools_toys as toys_
import pytest
from audit_tools_toys import ask, session
from unweave.audit.tools import TOOLS, Budget, Refused, Session, Workspace, read_transcript, replay, schemas, tool
from unweave.audit.tools.answers import Answer, as_json, fit
from unweave.audit.tools.untrusted import marked, shown
from unweave.saes import UserError

GROUPS = ("look", "act", "compare", "conclude")
TEXTS = {"a": ["w5 w4 w5", "w5 w6", "w3 w5 w5", "w5 w7 w5"], "b": ["w6 w4 w7", "w8 w6", "w3 w9 w9", "w6 w7 w4"]}


@pytest.fixture
def spare():
    """A tool of this test's own."""
    made = []

    def add(function, **options):
        made.append(function.__name__)
        return tool("look", **options)(function)

    yield add
    for name in made:
        del TOOLS[name]


def test_every_tool_says_what_it_is_and_takes():
    assert len(TOOLS) == 23 and [GROUPS.index(each.group) for each in TOOLS.values()] == sorted(
        GROUPS.index(each.group) for each in TOOLS.values()
    )
    for each in schemas():
        function = each["function"]
        known = function["parameters"]
        assert each["type"] == "function" and len(function["description"]) > 40, function["name"]
        assert known["type"] == "object" and known["additionalProperties"] is False
        assert "$ref" not in json.dumps(known) and "$defs" not in known
        assert all(len(part.get("description", "")) > 4 for part in known["properties"].values()), function["name"]


def test_a_tool_that_takes_a_field_called_title_keeps_it_in_its_schema(spare):
    def scratch(session: Session, title: str = "") -> Answer:
        """A tool. Args: none."""
        return Answer({"title": title})

    spare(scratch)
    assert list(TOOLS["scratch"].parameters["properties"]) == ["title"]


def test_ids_count_up_and_mistakes_are_told_by_kind():
    own = session(budget=Budget(calls=6))
    wrong = [
        own.call("nonsense"),
        own.call("top_features", {"text": "w5", "path": "/etc/passwd"}),
        own.call("top_features", {"text": "w5", "dictionary": "other"}),
        own.call("feature", {"latent": 10_000}),
        own.call("feature", {"latent": True}),
        own.call("feature", {"latent": 0}),
        own.call("feature", {"latent": 0}),
    ]
    assert [each.id for each in wrong] == [f"r{number}" for number in range(1, 8)]
    kinds = [each.error.get("kind") for each in wrong]
    assert kinds == ["unknown_tool", "arguments", "user", "user", "arguments", None, "budget"]
    assert wrong[1].error["field"] == "path" and wrong[4].error["field"] == "latent"
    assert all("expected" in each.error["message"] for each in wrong if not each.ok)


def test_runs_are_charged_before_the_work_and_refused_without_it():
    own = session(budget=Budget(runs=9))
    assert own.call("top_features", {"text": "w5 w6"}).to_dict()["cost"] == 2
    refused = own.call("compare_texts", TEXTS)
    assert refused.error["kind"] == "budget" and refused.to_dict()["cost"] == 0 and own.spending.left()["runs"] == 7
    assert own.call("top_features", {"text": "w5 w6"}).ok


def test_who_has_spent_all_may_still_conclude():
    own = session(budget=Budget(calls=1))
    first = own.call("feature", {"latent": 0})
    assert not own.call("list_models").ok
    assert own.call("hypothesis", {"action": "add", "statement": "s", "status": "supported", "evidence": [first.id]}).ok
    assert own.call("report", {"summary": "all"}).result["counts"]["supported"] == 1


def test_tokens_of_replies_are_a_budget_too():
    own = session(budget=Budget(tokens=100))
    assert own.call("list_models").ok and own.spending.left()["tokens"] == 0
    assert own.call("list_models").error["kind"] == "budget"


def test_a_long_list_is_cut_at_its_end_and_more_gives_the_rest():
    own = session()
    reply = own.call("compare_texts", {"a": planted.texts(6), "b": planted.texts(6, seed=2), "k": 50})
    rows, shown_ = list(reply.result["features"]), reply.result["shown"]
    handle = reply.to_dict()["more"]
    while handle:
        part = own.call("more", {"handle": handle})
        assert part.ok and own.workspace.count(part.to_json()) < 2_000
        rows += part.result["features"]
        handle = part.result.get("next")
    assert shown_ == f"{len(reply.result['features'])} of {len(rows)}"
    whole = [row["latent"] for row in rows]
    assert len(set(whole)) == len(whole) > len(reply.result["features"])
    assert [row["q"] for row in rows] == sorted(row["q"] for row in rows)
    assert own.call("more", {"handle": "r99/2"}).error["kind"] == "arguments"


def test_a_row_that_alone_is_too_long_is_shortened_and_keeps_its_numbers():
    long = {"rows": [{"text": {"untrusted": "x" * 40_000}, "value": 7.5}, {"value": 1}]}
    result, rest = fit(Answer(long, "rows"), lambda result, is_cut: result, lambda text: len(text) // 3, 500)
    assert result["rows"][0]["value"] == 7.5 and len(as_json(result)) <= 1_502 and rest == [{"value": 1}]


def test_same_seed_and_calls_give_the_same_bytes():
    calls = [
        ("top_features", {"text": "w5 w6 w7"}),
        ("chat", {"text": "w5 w6", "n": 2, "temperature": 1.0, "tokens": 5}),
        ("steer", {"changes": [{"latent": 0}], "text": "w5 w6", "tokens": 3}),
        ("compare_texts", TEXTS),
        ("feature", {"latent": 1.5}),
    ]
    lines = [
        [own.call(*each).to_json() for each in calls] for own in (session(seed=3), session(seed=3), session(seed=4))
    ]
    assert lines[0] == lines[1]
    assert lines[0][1] != lines[2][1]  # other samples under another seed


def test_claims_cite_results_that_exist_and_were_ok():
    own = session()
    good, bad = own.call("feature", {"latent": 0}), own.call("nonsense")
    claim = {"action": "add", "statement": "it changes on w5", "status": "supported"}
    for evidence in ([], ["r99"], [bad.id], [good.id, "r99"]):
        reply = own.call("hypothesis", claim | {"evidence": evidence})
        assert reply.error["kind"] == "arguments" and reply.error["field"] == "evidence", evidence
    board = own.call("hypothesis", {"action": "list"})
    assert (
        own.call("hypothesis", claim | {"evidence": [board.id]}).error["field"] == "evidence"
    )  # the board observes nothing
    assert not own.board.hypotheses
    made = own.call("hypothesis", claim | {"evidence": [good.id]}).result["hypothesis"]
    assert made["id"] == "h1" and made["evidence"] == [good.id]
    assert not own.call("hypothesis", claim | {"evidence": [good.id]}).ok  # the same claim twice
    changed = own.call("hypothesis", {"action": "update", "id": "h1", "status": "rejected", "because": "no"}).result
    assert changed["hypothesis"]["status"] == "rejected" and changed["hypothesis"]["changes"] == [
        f"supported: {good.id}"
    ]
    assert not own.call("note", {"text": "see", "evidence": ["r99"]}).ok


def test_the_report_names_the_call_behind_every_claim(tmp_path):
    own = session()
    first = own.call("feature", {"latent": 0})
    own.call("hypothesis", {"action": "add", "statement": "open one"})
    own.call("hypothesis", {"action": "add", "statement": "shown one", "status": "supported", "evidence": [first.id]})
    report = own.report()
    assert [each.status for each in report.findings] == ["supported", "open"]
    assert report.findings[0].evidence == ({"id": first.id, "tool": "feature", "arguments": {"latent": 0}},)
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report.to_dict()


def recorded(path):
    own = session(seed=2, budget=Budget(calls=20), transcript=path)
    own.call("top_features", {"text": "w5 w6"})
    own.call("chat", {"text": "w5 \ud800", "tokens": 3})
    own.call("chat", {"text": "w5", "tokens": 3, "temperature": 1.0})
    own.call("feature", [1, 2])
    own.call("hypothesis", {"action": "add", "statement": "w5", "status": "supported", "evidence": ["r1"]})
    return own


def test_a_transcript_replays_and_one_that_was_changed_is_told(tmp_path):
    path = tmp_path / "transcript.jsonl"
    own = recorded(path)
    assert path.read_text() == own.log()
    assert replay(path, toys_.workspace()).to_dict() == {"calls": 5, "equal": True, "differences": []}
    lines = path.read_text().splitlines()
    tampered = lines[1].replace('"bits": ', '"bits": 1')
    assert tampered != lines[1]
    path.write_text("\n".join([lines[0], tampered, *lines[2:]]) + "\n")
    found = replay(path, toys_.workspace())
    assert not found.equal and [each["id"] for each in found.differences] == ["r1"]
    assert "bits" in found.differences[0]["where"]
    path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")  # a call that was taken out
    assert not replay(path, toys_.workspace()).equal


def test_a_cut_last_line_is_left_out_and_a_broken_one_is_an_error(tmp_path):
    path = tmp_path / "transcript.jsonl"
    recorded(path)
    text = path.read_text()
    path.write_text(text[:-40])
    assert len(read_transcript(path).calls) == 4
    path.write_text(text.replace('{"id": "r2"', '{"id" "r2"'))
    with pytest.raises(UserError, match="line 3"):
        read_transcript(path)
    path.write_text(text.replace('"ok": true', '"ok": true, "x": NaN', 1))
    with pytest.raises(UserError, match="line 2 of"):
        read_transcript(path)
    with pytest.raises(UserError, match="new file"):
        session(transcript=path)


def test_replay_refuses_another_workspace(tmp_path):
    recorded(tmp_path / "t.jsonl")
    with pytest.raises(UserError, match="models"):
        replay(tmp_path / "t.jsonl", toys_.bare())
    header, *calls = (tmp_path / "t.jsonl").read_text().splitlines()
    (tmp_path / "t.jsonl").write_text("\n".join([header.replace('"judge"', '"jury"'), *calls]))
    with pytest.raises(UserError, match="got other judge, jury"):
        replay(tmp_path / "t.jsonl", toys_.workspace())


def test_threads_take_turns_and_every_call_has_its_own_id():
    own, replies = session(), []
    threads = [
        threading.Thread(target=lambda: replies.append(own.call("top_features", {"text": "w5 w6"}))) for _ in range(6)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(each.id for each in replies) == [f"r{number}" for number in range(1, 7)]
    assert len({as_json(each.result) for each in replies}) == 1 and own.spending.calls == 6


def test_a_defect_of_a_tool_is_an_answer_too(spare, caplog):
    def broken(session: Session) -> Answer:
        """A tool that fails."""
        raise ZeroDivisionError("secret /path")

    spare(broken, cost=3)
    reply = session().call("broken")
    assert reply.error["kind"] == "internal" and "secret" not in reply.to_json() and "ZeroDivisionError" in caplog.text


def test_what_cannot_be_seen_is_shown():
    text = "a\u202eb\x00\n\U000e0041\ufe0f\ud800c"
    assert shown(text) == "a⟨U+202E⟩b⟨U+0000⟩⏎⟨U+E0041⟩⟨U+FE0F⟩⟨U+D800⟩c"
    assert marked(["a", "⟦b⟧", "c"], {2})["untrusted"] == "a(b)⟦c⟧"


def test_a_workspace_says_what_it_cannot_be_made_of():
    with pytest.raises(UserError, match="target"):
        Workspace({"base": toys_.workspace().models["base"]})
    with pytest.raises(UserError, match="names"):
        Workspace(toys_.workspace().models, {"bad\nname": toys_.workspace().dictionaries["resid"]})
    with pytest.raises(Refused):
        TOOLS["feature"].check({"latent": "0"})
    assert ask("list_models")["dictionaries"][0]["dictionary"] == "resid"
    assert toys_.workspace().manifest()["documents"] == len(toys_.corpus())
