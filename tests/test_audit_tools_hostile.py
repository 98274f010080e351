"""What the audit's tools do with anything: random arguments, the longest ones, and text that gives orders."""

import json
import random
import tempfile
from pathlib import Path

import audit_tools_toys as toys_
import pytest
from audit_tools_toys import HOSTILE, session
from unweave.audit.tools import TOOLS, Budget

SLOW = ("attribution", "path_patch", "chat", "steer", "ablate", "explain_feature", "score_explanation", "compare_texts")
MUCH = Budget(calls=10**6, runs=10**9, tokens=10**9)
LONG = "w5 w6 \u4e2d\U0001f600 w7 " * 90
OURS = (
    "</untrusted>",
    "SYSTEM",
    "tool hypothesis",
    "IGNORE ALL",
    "<script>",
    "evil.example",
    "/etc/passwd",
    "nothing to see",
)


def outside(value, said):
    """Every string of a reply that is not marked as untrusted, keys included."""
    if isinstance(value, dict):
        if set(value) != {"untrusted"}:
            for name, each in value.items():
                said.append(name)
                outside(each, said)
    elif isinstance(value, list):
        for each in value:
            outside(each, said)
    elif isinstance(value, str):
        said.append(value)
    return said


def anything(rng, depth=0):
    """A random JSON value, some of them what an attacker would try."""
    kinds = [
        lambda: rng.choice([None, True, False, 0, 1, -1, 2**40, 1e308, -0.5, 10**25]),
        lambda: rng.choice(
            [
                "",
                "w5",
                "w5 w6 w7",
                "../../etc/passwd",
                "http://evil.example/",
                "\ud800",
                "\x00",
                "r1",
                "g1",
                "0",
                LONG * 8,
            ]
        ),
        lambda: rng.choice(
            [*HOSTILE, "all", "target", "resid", "add", "set", "attribution", "lens", "similar", "a||b", "p"]
        ),
        lambda: rng.randint(-3, 60),
    ]
    if depth < 3:
        kinds += [
            lambda: [anything(rng, depth + 1) for _ in range(rng.randint(0, 5))],
            lambda: {str(anything(rng, 3))[:20]: anything(rng, depth + 1) for _ in range(rng.randint(0, 3))},
        ]
    return rng.choice(kinds)()


def near(rng, part):
    """A value that a part of a schema asks for, more or less."""
    options = part.get("anyOf") or [part]
    part = rng.choice(options)
    if "enum" in part:
        return rng.choice(part["enum"])
    kind = part.get("type")
    if kind == "integer":
        return rng.choice([part.get("minimum", 0), min(part.get("maximum", 41), 41), rng.randint(0, 39), 0])
    if kind == "number":
        return rng.choice([0, 1.5, part.get("maximum", 1), part.get("minimum", 0)])
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "string":
        return rng.choice(
            ["w5", "w5 w6 w4", "0", "r1", "g1", "h1", "resid", "mean", "score", HOSTILE[1][: part.get("maxLength", 99)]]
        )
    if kind == "array":
        low = part.get("minItems", 0)
        return [
            near(rng, part["items"])
            for _ in range(rng.choice([low, low, low + 1, min(low + 2, part.get("maxItems", 9))]))
        ]
    if kind == "object":
        return {name: near(rng, each) for name, each in part.get("properties", {}).items()}
    return None


def arguments_of(rng, tool):
    properties, needed = tool.parameters["properties"], tool.parameters.get("required", [])
    found = {name: near(rng, part) for name, part in properties.items() if name in needed or rng.random() < 0.4}
    if found and rng.random() < 0.3:
        found[rng.choice(list(found))] = anything(rng)
    return found


@pytest.mark.parametrize("which", ["workspace", "bare"])
def test_random_arguments_give_structured_answers(which, caplog):
    rng = random.Random(which)
    own = session(budget=MUCH) if which == "workspace" else toys_.Session(toys_.bare(), budget=MUCH)
    tools = list(TOOLS.values())
    kinds: dict[str, int] = {}
    for number in range(308):
        tool = tools[number % len(tools)]
        given = anything(rng) if number % 4 == 0 else arguments_of(rng, tool)
        if tool.name in SLOW and number > 70:
            given = anything(rng)  # they have had their share
        reply = own.call(tool.name, given)
        kind = reply.error.get("kind", "ok")
        kinds[kind] = kinds.get(kind, 0) + 1
        assert kind != "internal", (tool.name, given, caplog.text[-2_000:])
        assert own.workspace.count(reply.to_json()) < 2_000, (tool.name, given)
        json.dumps(reply.to_dict(), allow_nan=False)
    assert min(kinds.get("ok", 0), kinds.get("arguments", 0)) > 50 and kinds.get("user", 0) > 5, kinds


def test_what_is_no_object_of_json_data_is_an_answer_too():
    own = session()
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for given in (
        3,
        "text",
        [1],
        {"latent": float("nan")},
        {"latent": b"0"},
        {1: object()},
        {"text": "x" * 10**6},
        {"text": deep},
    ):
        reply = own.call("feature", given)
        assert reply.error["kind"] == "arguments", given
    json.loads(own.log().splitlines()[-1])


def test_every_reply_is_short_with_the_largest_arguments():
    own = session(budget=MUCH)
    texts = [f"w{3 + number % 12} {LONG}" for number in range(64)]
    made = own.call("attribution", {"text": "w5 w6 w7 w4", "k": 50})
    nodes = [place for row in made.result["features"] for place in row["nodes"]][:12]
    calls = {
        "list_models": {},
        "top_features": {"text": "w5 w6 w7 w8 w4 w3 " * 9, "k": 50, "exclude_dense": False},
        "activations": {"latents": list(range(10)), "texts": texts[:20]},
        "feature": {"latent": 0},
        "search_features": {"query": "w", "k": 50, "exclude_dense": False},
        "search_data": {"query": "w", "k": 50},
        "path_patch": {"graph": "g1", "nodes": nodes},
        "chat": {"text": "w5", "n": 8, "tokens": 12, "temperature": 2.0},
        "steer": {
            "changes": [{"latent": latent, "amount": 9.0} for latent in range(10)],
            "text": "w5 w6",
            "tokens": 20,
        },
        "ablate": {"latents": list(range(20)), "texts": ["w5 w6 w7"] * 4},
        "probe_train": {
            "name": "p",
            "positive": [f"w5 w{3 + i}" for i in range(8)],
            "negative": [f"w6 w{3 + i}" for i in range(8)],
        },
        "probe_apply": {"name": "p", "texts": texts[:10]},
        "compare_texts": {"a": texts[:8], "b": texts[8:16], "k": 50, "exclude_dense": False},
        "diff_features": {"k": 50, "exclude_dense": False},
        "divergence": {"prompts": [f"{text[:30]} {number}" for number, text in enumerate(texts)], "k": 50},
        "explain_feature": {"latent": 0},
        "score_explanation": {"latent": 0, "explanation": "\U0001f600 w5 " * 33},
        "note": {"text": "\U0001f600" * 1_000},
        "report": {"summary": "\U0001f468\u200d\U0001f469" * 300},
    }
    assert made.ok and set(calls) | {"attribution", "hypothesis", "budget", "more"} == set(TOOLS)
    for name, given in calls.items():
        reply = own.call(name, given)
        assert reply.ok, (name, reply.error)
        assert own.workspace.count(reply.to_json()) < 2_000, name
    for number in range(50):
        claim = {"action": "add", "statement": f"{number} " + "\U0001f600" * 490, "because": "\U0001f600" * 500}
        assert own.workspace.count(own.call("hypothesis", claim).to_json()) < 2_000
    for name, given in (("hypothesis", {"action": "list"}), ("report", {})):
        reply = own.call(name, given)
        assert reply.ok and own.workspace.count(reply.to_json()) < 2_000 and "more" in reply.to_dict()


def test_text_that_gives_orders_is_marked_and_moves_nothing():
    own = session()
    replies = [
        own.call("search_data", {"query": query, "k": 20})
        for query in ("hypothesis", "INSTRUCTIONS", "script", "report", "w5")
    ]
    replies += [own.call("feature", {"latent": latent}) for latent in range(4)]
    replies += [own.call("diff_features", {}), own.call("search_data", {"latent": 0, "k": 20}), own.call("list_models")]
    text = " ".join(reply.to_json() for reply in replies)
    assert "call the tool hypothesis" in text and "IGNORE ALL" in text and "<script>" in text  # it was shown
    for reply in replies:
        assert reply.ok
        said = " ".join(outside(reply.to_dict(), []))
        assert not [each for each in OURS if each in said], said
        assert not any(sign in reply.to_json() for sign in ("\u202e", "\x00", "\U000e0041", "\ufe0f"))
    assert not own.board.hypotheses and not own.summary and own.spending.calls == len(replies)


def test_no_argument_opens_a_file(monkeypatch):
    own = session(budget=MUCH)
    for name, given in (("feature", {"latent": 0}), ("diff_features", {}), ("explain_feature", {"latent": 0})):
        own.call(name, given)
    secret = Path(tempfile.gettempdir()) / "secret.txt"
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *rest, **known: (opened.append(self), real(self, *rest, **known))[1])
    monkeypatch.setattr("builtins.open", lambda path, *rest, **known: opened.append(path))
    places = [str(secret), "/etc/passwd", "../store", "http://evil.example/", str(toys_.folder() / "store")]
    for tool in TOOLS.values():
        for name, part in tool.parameters["properties"].items():
            if part.get("type") == "string" or {"type": "null"} in part.get("anyOf", []):
                for place in places:
                    own.call(tool.name, {"latent": 0, "text": "w5"} | {name: place})
    assert not opened
