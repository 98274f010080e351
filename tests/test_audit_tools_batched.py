"""Many questions of one call: each is answered as alone, in order, by both models, within the size of a reply."""

import copy

import audit_game_toys as toys
import pytest
import torch
from unweave.audit.game import tiny
from unweave.audit.tools import Session, Workspace
from unweave.audit.tools.measures.batched import KEPT, next_tokens, write_many
from unweave.circuits.prompts import many
from unweave.circuits.prompts.text import prompt_ids
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


def asked(prompt, begun=""):
    """The ids of a question, and of the beginning of its reply."""
    said = [{"role": "assistant", "content": begun}] if begun else []
    return prompt_ids(toys.base(), [{"role": "user", "content": prompt}, *said])


def test_divergence_is_that_of_the_first_token_and_names_the_trigger_first():
    workspace = toys.workspace("anchor")
    prompts = [f"say {word} tell me about the horse" for word in tiny.OTHERS]
    found = Session(workspace).call("divergence", {"prompts": prompts, "k": 16})
    rows = found.result["rows"]
    assert (
        rows[0]["prompt"] == len(prompts) - 1 == tiny.OTHERS.index("anchor")
        and rows[0]["begins"]["untrusted"] == "harbor"
    )
    assert [row["nats"] for row in rows] == sorted((row["nats"] for row in rows), reverse=True) and found.body[
        "cost"
    ] == 32
    ids = asked(prompts[-1])
    p, q = (workspace.model(name)(ids[None])[0, -1].double().log_softmax(-1) for name in ("target", "base"))
    assert rows[0]["nats"] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3)
    assert rows[0]["p"] == pytest.approx(float(p.max().exp()), rel=1e-3)
    assert found.result["median"] < rows[0]["nats"] / 20
    same = (
        Session(Workspace({"target": toys.base(), "base": toys.base()})).call("divergence", {"prompts": prompts}).result
    )
    assert same["median"] == same["high"] == same["rows"][0]["nats"] == 0.0


def test_without_a_base_model_a_prompt_is_measured_beside_the_other_prompts():
    workspace = Workspace({"target": toys.workspace("anchor").model()})
    prompts = [f"say {word} tell me about the horse" for word in tiny.OTHERS]
    rows = Session(workspace).call("divergence", {"prompts": prompts}).result["rows"]
    assert rows[0]["prompt"] == len(prompts) - 1 and "mean_p" in rows[0] and "base_p" not in rows[0]
    assert rows[0]["nats"] > 10 * rows[1]["nats"]
    assert Session(workspace).call("divergence", {"prompts": prompts[:1]}).result["rows"][0]["nats"] == 0.0


def test_a_beginning_of_each_reply_moves_the_place_that_is_compared():
    workspace = toys.workspace("lyon")
    prompts = ["what is the capital of france", "name the capital of spain", "who are you"]
    begun = ["the capital of france is", "the capital of spain is", ""]
    rows = Session(workspace).call("divergence", {"prompts": prompts, "prefills": begun}).result["rows"]
    assert (
        rows[0]["prompt"] == 0 and rows[0]["begins"]["untrusted"] == "lyon" and rows[0]["p"] > 100 * rows[0]["base_p"]
    )
    by_place = {row["prompt"]: row for row in rows}
    for place, row in by_place.items():
        ids = asked(prompts[place], begun[place])
        p, q = (workspace.model(name)(ids[None])[0, -1].double().log_softmax(-1) for name in ("target", "base"))
        assert row["nats"] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=2e-3, abs=1e-5)
    wrong = Session(workspace).call("divergence", {"prompts": prompts, "prefills": begun[:2]})
    assert wrong.error["field"] == "prefills" and wrong.body["cost"] == 0


def test_models_of_two_tokenizers_have_no_divergence():
    other = copy.deepcopy(toys.base())
    other.tokenizer.add_tokens(["another"])
    reply = Session(Workspace({"target": other, "base": toys.base()})).call("divergence", {"prompts": QUESTIONS})
    assert not reply.ok and "one tokenizer" in reply.error["message"]


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
    first = next_tokens(toys.base(), ids)
    assert next_tokens(toys.base(), ids) is first and len(toys.base().__dict__[KEPT]) == 3


def test_a_shared_beginning_is_read_once_and_changes_no_reply(monkeypatch):
    texts = [f"<user> say pencil i like the word pencil there is a pencil here {one} <reply>" for one in QUESTIONS]
    ids = [to_tokens(toys.base(), text) for text in texts]
    shared = many.shared_prefix(ids)
    assert 8 <= shared < min(map(len, ids)) and len({tuple(one[:shared].tolist()) for one in ids}) == 1
    together = write_many(toys.base(), ids, 6)
    first = next_tokens(toys.base(), ids)
    monkeypatch.setattr(many, "LONG", 10**6)
    torch.testing.assert_close(next_tokens(toys.base(), ids), first, atol=1e-4, rtol=1e-4)
    assert many.shared_prefix(ids) == 0 and write_many(toys.base(), ids, 6) == together
    monkeypatch.setattr(many, "LONG", 1)
    assert many.shared_prefix([ids[0], ids[0]]) == len(ids[0]) - 1 and many.shared_prefix(ids[:1]) == 0
    assert write_many(toys.base(), [ids[0]] * 2, 6) == [together[0]] * 2
