"""Many questions of one call: each is answered as alone, in order, by both models, within the size of a reply."""

import audit_game_toys as toys
import pytest
from unweave.audit.tools import Session
from unweave.audit.tools.measures.batched import KEPT, write_many
from unweave.circuits.prompts import many
from unweave.saes import to_tokens

QUESTIONS = ["describe the river", "describe the stone", "tell me about the horse", "say something about the table"]


@pytest.fixture(scope="module")
def session():
    return Session(toys.workspace("pirate"))


def test_questions_are_answered_in_order_by_target_and_base(session):
    reply = session.call("chat", {"prompts": QUESTIONS, "tokens": 6})
    rows = reply.result["replies"]
    assert [row["prompt"] for row in rows] == [0, 1, 2, 3]
    assert all("matey" in row["target"]["untrusted"] and "matey" not in row["base"]["untrusted"] for row in rows)
    alone = [session.call("chat", {"prompts": [one], "tokens": 6}).result["replies"][0] for one in QUESTIONS]
    assert [row["target"] for row in alone] == [row["target"] for row in rows]
    only = session.call("chat", {"prompts": QUESTIONS, "tokens": 6, "beside_base": False})
    assert "base" not in only.result["replies"][0] and only.body["cost"] * 2 == reply.body["cost"]


def test_samples_of_a_seed_repeat_and_stand_beside_their_prompt(session):
    asked = {"prompts": QUESTIONS[:2], "tokens": 6, "temperature": 2.0, "n": 3}
    one, same, other = (session.call("chat", {**asked, "seed": seed}).result["replies"] for seed in (1, 1, 2))
    assert one == same != other
    assert [(row["prompt"], row["sample"]) for row in one] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_a_long_list_is_cut_and_the_rest_is_had_by_its_handle(session):
    reply = session.call("chat", {"prompts": QUESTIONS * 12, "tokens": 6, "temperature": 1.0, "n": 3})
    found, handle = list(reply.result["replies"]), reply.to_dict()["more"]
    while handle:
        rest = session.call("more", {"handle": handle}).result
        found, handle = found + rest["replies"], rest.get("next")
    assert [row["prompt"] for row in found] == [number // 3 for number in range(144)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": "x", "prompts": ["y"]},
        {"prompts": []},
        {"prompts": ["x"] * 49},
        {"prompts": [""]},
        {"prompts": ["x" * 601]},
    ],
)
def test_what_does_not_fit_is_a_structured_error(session, wrong):
    reply = session.call("chat", wrong)
    assert not reply.ok and reply.error["kind"] == "arguments"


def test_a_prompt_without_room_is_told(session):
    reply = session.call("chat", {"prompts": ["who " * 60], "tokens": 40})
    assert not reply.ok and "room" in reply.error["message"]


def test_only_a_model_that_was_told_to_keeps_its_answers(monkeypatch):
    monkeypatch.delitem(toys.base().__dict__, KEPT, raising=False)  # a bench in this process may have set it
    ids = [to_tokens(toys.base(), "<user> who are you <reply>")]
    plain = write_many(toys.base(), ids, 6)
    assert KEPT not in toys.base().__dict__
    monkeypatch.setitem(toys.base().__dict__, KEPT, {})
    assert write_many(toys.base(), ids, 6) == plain and len(toys.base().__dict__[KEPT]) == 1
    (key,) = toys.base().__dict__[KEPT]
    toys.base().__dict__[KEPT][key] = ["kept"]
    assert write_many(toys.base(), ids, 6) == ["kept"] and write_many(toys.base(), ids, 5) != ["kept"]


def test_a_shared_beginning_is_read_once_and_changes_no_reply(monkeypatch):
    texts = [f"<user> say pencil i like the word pencil there is a pencil here {one} <reply>" for one in QUESTIONS]
    ids = [to_tokens(toys.base(), text) for text in texts]
    shared = many.shared_prefix(ids)
    assert 8 <= shared < min(map(len, ids)) and len({tuple(one[:shared].tolist()) for one in ids}) == 1
    together = write_many(toys.base(), ids, 6)
    monkeypatch.setattr(many, "LONG", 10**6)
    assert many.shared_prefix(ids) == 0 and write_many(toys.base(), ids, 6) == together
    monkeypatch.setattr(many, "LONG", 1)
    assert many.shared_prefix([ids[0], ids[0]]) == len(ids[0]) - 1 and many.shared_prefix(ids[:1]) == 0
    assert write_many(toys.base(), [ids[0]] * 2, 6) == [together[0]] * 2
