"""The local server under requests that nobody's page would send: every path, every action, every field of every body.

Each reply is one of those that the server is meant to give, holds no traceback and is short where it refuses; every line of a stream is
JSON and the last one says how it ended.
"""

import json
import math

import fake_audits
import fake_diffs
import fakes
import pytest
import torch
from saes_toys import cached, dictionary
from saes_toys import model as toy
from starlette.testclient import TestClient
from toys import prompt
from unweave.circuits import trace
from unweave.saes import collect
from unweave.saes.errors import UserError
from unweave.viz import text
from unweave.viz.actions import ACTIONS, STREAMS
from unweave.viz.answers.registry import _ANSWERS
from unweave.viz.live import Live
from unweave.viz.server import application
from unweave.viz.things import open_things

MEANT = (200, 400, 403, 404, 405, 421)
TEXT = "w3 w9 w50"
EDIT = {"latent": 3, "how": "set", "amount": 1.0, "positions": [1, 2]}

NUMBERS = [
    "0", "2", "-1", "000001", "999999", "9999999", "1.5", "1e1", "٣", "۰۰۱", "𝟘", "²", "%00", "0%00", "NaN", "", "+1", " 1", "0x1",
    "..", "%2e%2e", "%2f", "a" * 3000, "9" * 3000, "%ff", "%ed%a0%80", "%F0%9F%98%80", "0;1", "0?x=1", "{0}", "*", "\\",
]  # fmt: skip
PATHS = [
    "stores/{}", "stores/{}/columns/density", "stores/0/columns/{}", "stores/{}/columns/cosine_score_{}", "stores/{}/map",
    "stores/{}/marks", "stores/0/rows/{}", "stores/0/rows/1,{}", "stores/0/latents/{}", "stores/0/latents/{}/intervals/width",
    "stores/0/latents/3/intervals/{}", "stores/0/latents/{}/histogram", "stores/0/latents/{}/company", "compare/{}/{}",
    "compare/0/{}", "compare/0/1/latents/{}", "compare/0/1/pairs/{}-{}", "compare/0/1/pairs/1-{}/texts", "graphs/{}",
    "graphs/0/drawn/{}", "graphs/{}/labels", "graphs/{}/view", "graphs/0/nodes/{}", "graphs/0/find/{}", "graphs/{}/groups",
    "graphs/0/pinned/{}", "graphs/0/pinned/30,{}", "graphs/0/pinned/30-{},31", "graphs/{}/heads", "graphs/0/figures/{}",
    "graphs/0/figures/ledger/{}", "graphs/{}/neuronpedia", "runs/{}",
    "diffs/{}", "diffs/{}/columns/score", "diffs/0/columns/{}", "audits/{}", "audits/{}/calls/r1", "audits/0/calls/r{}",
    "{}", "index/{}", "overview/{}",
]  # fmt: skip
FIXED = ["graphs", "graphs/figures/dashboard", "index", "overview", "graphs/0/figures/paths", "stores/0/columns/map_x"]

VALUES = [
    "null", "true", "-1", "1", "99999", "1" + "0" * 400, "9223372036854775808", "1e400", "NaN", "1.5", '""', '"0"',
    '"\\ud800"', '"\\u0000"', '"' + "a" * 30_000 + '"', "[]", '["\\ud800"]', "{}", "[0.5, null, true, {}]",
    "[" * 300 + "]" * 300, "[" + "1," * 5000 + "1]",
]  # fmt: skip
# Whole numbers that no tensor and no float can hold, up to the digits that Python reads, alone and where several are asked for.
HUGE = ["1" + "0" * zeros for zeros in (19, 150, 400, 4299)] + ["-1" + "0" * 400, "-9223372036854775809", "-1e400"]
VALUES += [*HUGE, *(f"[{number}]" for number in [*HUGE, "-1", "99999"]), f"[{HUGE[0]}, 1]", f'{{"0": {HUGE[2]}}}']


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two stores, a traced circuit, a diff and an audit of a toy, opened from their files, with model and dictionaries."""
    folder = tmp_path_factory.mktemp("made")
    both = [dictionary(seed=seed, keep={"drop_positions": 1}) for seed in (0, 3)]
    for name, own in zip("ab", both, strict=True):
        collect(own, cached(folder / f"shards-{name}", count=20), folder / "features" / name, toy(), progress=False)
    graph = trace(toy(), prompt(), [both[0]], max_features=20)
    graph.save(folder / "c.graph")
    fake_diffs.diff().save(folder / "diff")
    fake_audits.audit(folder / "audit")
    names = ("features/a", "features/b", "c.graph", "diff", "audit")
    things = open_things([folder / name for name in names])
    return Live(things, toy(), both), [place for place, node in enumerate(graph.nodes) if node.is_feature][:3]


@pytest.fixture(scope="module")
def client(made):
    return TestClient(
        application(made[0].things, "secret", made[0]), base_url="http://127.0.0.1:8000", raise_server_exceptions=False
    )


@pytest.fixture(scope="module")
def bodies(made):
    """A body that makes sense, for each action and stream."""
    nodes = made[1]
    return {
        "label": {"store": 0, "latent": 3, "label": "a", "note": "b", "tags": ["x"], "star": True, "undo": False},
        "history": {"store": 0, "latent": 3},
        "search": {"store": 0, "kind": "any", "query": "w3"},
        "fires": {"store": 0, "text": TEXT},
        "effects": {"store": 0, "latent": 3, "rows": [3]},
        "features": {"store": 0, "text": TEXT, "messages": None, "rank": "activation", "target": "w3", "top": 5},
        "steer": {"store": 0, "text": TEXT, "edits": [EDIT], "target": "w3", "controls": 1, "latents": 0, "seed": 0},
        "view": {"graph": 0, "view": {"pins": nodes, "groups": [["x", *nodes[:2]]], "keep": 3, "drawn": 100}},
        "validate": {"graph": 0, "nodes": nodes[:1]},
        "qk": {"graph": 0, "layer": 1, "head": 0, "query": 3, "key": 1},
        "generate": {"store": 0, "text": TEXT, "edits": [EDIT], "tokens": 1, "temperature": 0.0, "seed": 0, "attention": "free"},
        "map": {"store": 0, "method": "pca", "seed": 0},
        "match": {"a": 0, "b": 1, "method": "cosine"},
    }  # fmt: skip


def post(client, name, body):
    """The reply, after a look at whether it is one that the server is meant to give."""
    url = f"/secret/api/{'act' if name in ACTIONS else 'stream'}/{name}"
    reply = client.post(url, content=body, headers={"content-type": "application/json"})
    said = name, body[:300]
    assert reply.status_code in MEANT, said
    assert "Traceback" not in reply.text, said
    if reply.status_code == 400:
        assert len(reply.json()["error"]) < 1000, said
    if name in STREAMS and reply.status_code == 200:
        last = json.loads(reply.text.splitlines()[-1])
        assert "done" in last or len(last["error"]) < 1000, said
        assert not last.get("error", "").startswith("this failed"), (said, last)  # which is said of a traceback
    return reply


@pytest.mark.parametrize("template", PATHS)
def test_no_path_breaks_the_server(client, template):
    for number in NUMBERS:
        reply = client.get("/secret/api/" + template.format(*[number] * template.count("{}")))
        assert reply.status_code in MEANT, (template, number[:20])
        assert "Traceback" not in reply.text


def test_every_path_that_there_is_was_attacked():
    attacked = [template.replace("intervals/{}", "intervals/log").replace("{}", "1") for template in PATHS]
    for pattern, _ in _ANSWERS:
        assert any(map(pattern.fullmatch, [*attacked, *FIXED])), pattern.pattern


def test_only_ascii_digits_are_numbers_and_texts_stay_texts(client):
    assert (
        client.get("/secret/api/stores/٣").status_code
        == client.get("/secret/api/stores/0/latents/٣").status_code
        == 404
    )
    assert (
        client.get("/secret/api/graphs/0/find/0000").json()["total"] == 0
    )  # no node is called so, though some are called 0


def test_every_action_there_is_was_attacked(bodies):
    assert bodies.keys() == ACTIONS.keys() | STREAMS.keys()


@pytest.mark.parametrize("name", [*ACTIONS, *STREAMS])
def test_no_body_breaks_the_server(client, bodies, name, monkeypatch):
    monkeypatch.setattr(
        "unweave.saes.latents.across.maps.has_umap", lambda: False
    )  # pca is as good a map here, and quicker
    body = bodies[name]
    assert "error" not in post(client, name, json.dumps(body)).text[:10]
    for key in body:
        rest = json.dumps({other: value for other, value in body.items() if other != key})[:-1]
        post(client, name, rest + "}")
        for value in VALUES:
            post(client, name, f'{rest}{"," if len(body) > 1 else ""}"{key}":{value}}}')


@pytest.mark.parametrize(("name", "field"), [("steer", "edits"), ("view", "view")])
def test_no_part_of_a_body_breaks_the_server(client, bodies, name, field):
    rest = json.dumps({other: value for other, value in bodies[name].items() if other != field})[:-1]
    inner = EDIT if field == "edits" else bodies[name][field]
    for key in inner:
        part = json.dumps({other: value for other, value in inner.items() if other != key})[:-1]
        for value in VALUES:
            whole = f'{part},"{key}":{value}}}'
            post(client, name, f'{rest},"{field}":{f"[{whole}]" if field == "edits" else whole}}}')


@pytest.mark.parametrize("name", ["label", "map"])
@pytest.mark.parametrize("place", ["7", "-1", '"0"', "null", "true", "0.0"])
def test_what_is_not_open_is_told_by_actions_and_streams_alike(client, name, place):
    reply = post(client, name, f'{{"store": {place}, "latent": 1}}')
    told = reply.json() if name == "label" else json.loads(reply.text)
    assert told["error"].startswith("expected something that is open here")


def test_a_model_is_not_loaded_for_a_circuit_whose_dictionaries_are_nowhere(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr("unweave.viz.live.load_model", loaded.append)
    live = Live(open_things([fakes.graph(), fakes.store(tmp_path / "s", 8)]))
    features = live.graph(0).of_kind("latent").tolist()
    for run in (lambda: live.validate(0, features[:2]), lambda: live.qk(0, 1, 0, 2, 1), lambda: live.fires(0, "x")):
        with pytest.raises(UserError, match="dictionar"):
            run()
    assert not loaded


def test_an_error_about_a_file_of_a_strange_name_can_be_sent(tmp_path):
    store = fakes.store(tmp_path / "a\udcff", 8)
    (store.folder / "map.safetensors").write_bytes(b"no map")
    client = TestClient(
        application(open_things([store]), "secret"), base_url="http://127.0.0.1:8000", raise_server_exceptions=False
    )
    assert client.get("/secret/api/stores/0/columns/map_x").status_code == 400
    assert client.get("/secret/api/index").status_code == 200


def test_numbers_that_json_has_not_never_leave(client, made):
    assert math.isnan(float(made[0].graph(0).row_values.min())) or torch.isnan(made[0].graph(0).row_values).any()
    for path in ("graphs/0", "graphs/0/neuronpedia", "stores/0/latents/0", "graphs/0/figures/scores", "compare/0/1"):
        assert not {"NaN", "Infinity"} & set(client.get(f"/secret/api/{path}").text.replace(",", ":").split(":"))


@pytest.mark.parametrize("value", [10**400, -(10**400), math.inf, math.nan, "9" * 400, True, None, []])
def test_what_no_float_holds_is_no_number(value):
    assert text.number(value) is None


def test_whole_numbers_that_a_browser_would_round_are_shown_as_they_are():
    assert text.number(2**53) == 2**53
    assert text.jsonable([2**53, 2**53 + 1, -(10**30), True]) == [2**53, str(2**53 + 1), str(-(10**30)), True]
