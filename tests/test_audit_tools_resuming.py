"""A session that was killed goes on as if it had not been: the same ids, costs, board and replies, and no call is made twice in vain."""

import json

import pytest
from audit_tools_toys import session, workspace
from unweave.audit.tools import Budget, Session, replay
from unweave.saes import UserError

WORDS = [f"w{number}" for number in range(8, 16)]
PROBE = {"name": "p", "positive": [f"w5 {word}" for word in WORDS], "negative": [f"w6 {word}" for word in WORDS]}
CALLS = [
    ("list_models", {}),
    ("search_data", {"query": "w5", "k": 50}),
    ("more", {"handle": "r2/2"}),
    ("search_data", {"query": "the w5 w6", "by": "meaning"}),  # the corpus by meaning is paid for once
    ("feature", {"latent": "no number"}),
    ("probe_train", PROBE),
    ("search_data", {"query": "w6", "k": 50}),
    ("hypothesis", {"action": "add", "statement": "w5", "status": "supported", "evidence": ["r2"]}),
    ("probe_apply", {"name": "p", "texts": ["w5 w5"]}),
    ("more", {"handle": "r7/2"}),
    ("search_data", {"query": "w7 w8", "by": "meaning"}),
    ("note", {"text": "that was all", "evidence": ["r7"]}),
    ("budget", {}),
]


def called(own, calls=CALLS):
    return [own.call(*each).to_dict() for each in calls]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The replies, the file and the report of a session that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole") / "t.jsonl"
    own = session(seed=4, transcript=path)
    replies = called(own)
    assert {each["id"] for each in replies if "more" in each} == {"r2", "r7"}
    return replies, path.read_bytes(), own.report().to_dict()


@pytest.mark.parametrize("lines, is_cut", [(1, False), (3, True), (5, False), (8, True), (11, False), (13, False)])
def test_a_killed_session_goes_on_to_the_same_bytes(whole, tmp_path, lines, is_cut):
    replies, written, report = whole
    path = tmp_path / "t.jsonl"
    parts = written.splitlines(keepends=True)
    path.write_bytes(b"".join(parts[:lines]) + (parts[lines][:40] if is_cut else b""))
    own = session(seed=4, transcript=path, resume=True)
    own.catch_up()
    assert own.log().encode() == b"".join(parts[:lines]) and len(own.results) == lines - 1
    assert called(own, CALLS[lines - 1 :]) == replies[lines - 1 :]
    assert path.read_bytes() == written and own.report().to_dict() == report
    assert replay(path, workspace()).equal


def test_what_keeps_nothing_is_not_called_again(whole, tmp_path, monkeypatch):
    replies, written, _ = whole
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"".join(written.splitlines(keepends=True)[:10]))
    made = []
    real = Session._answered
    monkeypatch.setattr(Session, "_answered", lambda own, id, *rest: (made.append(id), real(own, id, *rest))[1])
    own = session(seed=4, transcript=path, resume=True)
    assert called(own) == replies
    # The probe and the board are kept in the session, r7 was not read to its end; the last four were never made.
    assert made == ["r6", "r7", "r8", "r10", "r11", "r12", "r13"]


def test_other_calls_and_other_beginnings_are_refused(whole, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(whole[1])
    with pytest.raises(UserError, match="got other seed"):
        session(seed=5, transcript=path, resume=True)
    with pytest.raises(UserError, match="got other budget"):
        session(seed=4, budget=Budget(calls=3), transcript=path, resume=True)
    with pytest.raises(UserError, match="is there already"):
        session(seed=4, transcript=path)
    own = session(seed=4, transcript=path, resume=True)
    with pytest.raises(UserError, match="got another r1; give the same flags"):
        own.call("budget", {})
    assert path.read_bytes() == whole[1]
    broken = json.loads(whole[1].splitlines()[1])
    del broken["reply"]["left"]
    path.write_bytes(whole[1].splitlines(keepends=True)[0] + json.dumps(broken).encode() + b"\n")
    with pytest.raises(UserError, match="damaged"):
        session(seed=4, transcript=path, resume=True)
    fresh = session(transcript=tmp_path / "new.jsonl", resume=True)  # nothing to go on with: it begins
    assert fresh.call("budget", {}).id == "r1" and len((tmp_path / "new.jsonl").read_text().splitlines()) == 2


def test_a_list_that_was_being_read_is_read_on(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace(), "count", len)  # so that the list has many parts
    calls = [("search_data", {"query": "w5", "k": 50}), ("more", {"handle": "r1/2"}), ("more", {"handle": "r1/3"})]
    replies = called(session(), calls)
    assert all(each["ok"] for each in replies) and replies[1]["result"]["next"] == "r1/3"
    called(session(transcript=tmp_path / "t.jsonl"), calls[:2])
    own = session(transcript=tmp_path / "t.jsonl", resume=True)
    own.catch_up()
    assert called(own, calls[2:]) == replies[2:]
