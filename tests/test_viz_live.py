"""The live host: finds models and dictionaries or says what to do, one job at a time, checked bodies, visible strings."""

import json
import math
import threading
import time
from contextlib import ExitStack

import pytest
from fakes import HOSTILE
from saes_toys import cached, dictionary
from saes_toys import model as toy
from toys import prompt, transcoder
from unweave.circuits import Graph, Node, ablate, qk_table, trace
from unweave.circuits.prompts.rank import rank_features
from unweave.circuits.prompts.selection import validate_nodes
from unweave.circuits.prompts.steering import steer_prompt
from unweave.circuits.prompts.stream import stream
from unweave.circuits.prompts.wishes import Wish, latent_edits
from unweave.saes import FeatureStore
from unweave.saes.errors import UserError
from unweave.saes.io import read_json, write_json
from unweave.saes.latents.effect.effects import effects
from unweave.saes.latents.gather.collect import collect
from unweave.viz import fields, live_answers
from unweave.viz.actions import act, run_stream
from unweave.viz.live import Live
from unweave.viz.things import Run, Things
from unweave.viz.turns import Turns

TEXT = "w3 w9 w50 w7 w9"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dictionary, its folder, its store."""
    folder = tmp_path_factory.mktemp("live")
    own = dictionary(keep={"drop_positions": 1})
    own.save(folder / "weights")
    store = collect(own, cached(folder / "shards", count=30), folder / "features" / "one", toy(), progress=False)
    return own, folder / "weights", store


@pytest.fixture
def live(made):
    own, _, store = made
    return Live(Things(stores={"one": store}), toy(), [own])


def named(made, tmp_path, **about):
    """A copy of the store whose manifest names its dictionary as `about` says."""
    _, _, store = made
    folder = tmp_path / "features" / "one"
    folder.mkdir(parents=True)
    for path in store.folder.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    manifest = read_json(folder / "manifest.json", "a manifest")
    manifest["dictionary"].pop("folder", None)
    manifest["dictionary"] |= about.pop("dictionary", {})
    write_json(folder / "manifest.json", manifest | about)
    return FeatureStore.open(folder)


def plain(answer):
    """The answer after a journey as strict JSON; no string in it may hold a control, a direction mark or half a pair."""
    text = json.dumps(answer, allow_nan=False, ensure_ascii=False)
    text.encode()
    assert not any(mark in text for mark in ("\x00", "\\u0000", "\ud800", "\\ud800", "\u202e", "\u2028"))
    return json.loads(text)


# Finding


def test_a_dictionary_is_found_wherever_it_may_stand(made, tmp_path):
    own, weights, _ = made
    wrong = tmp_path / "wrong"
    dictionary(seed=5).save(wrong)
    runs = {"wrong": Run([], {}, wrong), "right": Run([], {}, weights)}
    plans = {
        "absolute": ({"folder": str(weights)}, {}, False),
        "relative": ({"folder": "../../dictionary"}, {}, True),
        "run": ({"folder": str(wrong)}, runs, False),
        "demo": ({}, {}, False),
    }
    for name, (about, opened, is_near) in plans.items():
        store = named(made, tmp_path / name, dictionary=about)
        if is_near or name == "demo":
            near = tmp_path / name / ("dictionary" if is_near else "dictionaries/one")
            own.save(near)
        live = Live(Things(stores={"one": store}, runs=opened))
        assert "features" in live.abilities(), name
        found = live.dictionary_for(store)
        assert found.fingerprint == own.fingerprint, name
        assert live.dictionary_for(store) is found


def test_a_dictionary_that_is_nowhere_says_what_to_do(made, tmp_path):
    wrong = tmp_path / "wrong"
    dictionary(seed=5).save(wrong)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "cfg.json").write_text("{")
    for number, folder in enumerate((None, str(wrong), str(broken), "no/where", "a\0b", "x" * 5000, 7)):
        live = Live(Things(stores={"one": named(made, tmp_path / str(number), dictionary={"folder": folder})}), toy())
        assert ("features" in live.abilities()) == (number in (1, 2))
        with pytest.raises(UserError, match=r"found it nowhere.*unweave show STORE DICTIONARY_FOLDER"):
            live.features({"store": 0, "text": TEXT})
    with pytest.raises(UserError, match="other weights"):
        Live(Things(stores={"one": named(made, tmp_path / "w", dictionary={"folder": str(wrong)})})).dictionary_for(
            FeatureStore.open(tmp_path / "w" / "features" / "one")
        )


def test_models_are_loaded_by_name_once_and_the_oldest_goes(made, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr("unweave.viz.live.load_model", lambda name: loaded.append(name) or toy())
    fingerprint = made[2].manifest["model"]["fingerprint"]
    stores = [
        named(made, tmp_path / name, model={"name": name, "fingerprint": fingerprint}) for name in ("a", "b", "c")
    ]
    live = Live(Things(stores=dict(zip("abc", stores, strict=True))))
    assert not loaded
    for place in (0, 1, 0, 2, 0, 1):
        assert live.model_for(stores[place]) is toy()
    assert loaded == ["a", "b", "c", "b"]
    assert Live(live.things, "other").model_for(stores[0]) is toy() and loaded[-1] == "other"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "toy", "fingerprint": "0" * 32}, r"give the model that it was made with: show\(…, model=model\)"),
        ({"fingerprint": "0" * 32}, r"names its model.*show\(…, model=model\)"),
        ({"name": 7}, "names its model"),
        ("toy", "names its model"),
        ({"name": HOSTILE[0], "fingerprint": HOSTILE[7]}, "expected the model"),
    ],
)
def test_a_model_that_is_unknown_or_another_says_what_to_do(made, tmp_path, monkeypatch, model, message):
    monkeypatch.setattr("unweave.viz.live.load_model", lambda name: toy())
    store = named(made, tmp_path)
    store.manifest["model"] = model
    with pytest.raises(UserError, match=message) as error:
        Live(Things(stores={"one": store}), dictionaries=[made[0]]).features({"store": 0, "text": TEXT})
    str(error.value).encode()


def test_abilities_are_what_can_be_done_here(made, tmp_path):
    own, _, store = made
    bare = named(made, tmp_path)
    assert Live(Things()).abilities() == {"label", "history", "search"}
    assert Live(Things(stores={"one": bare})).abilities() == {"label", "history", "search", "map"}
    both = Live(Things(stores={"one": store, "two": bare}), toy(), [own]).abilities()
    assert both >= {"features", "fires", "steer", "generate", "effects", "map", "match"} and "view" not in both
    graph = trace(toy(), prompt(), max_features=20)
    assert Live(Things(graphs={"g": graph})).abilities() == {"label", "history", "search", "view", "validate", "qk"}
    graph.metadata["dictionaries"] = [{"fingerprint": "f", "site": "blocks.1.mlp.hook_in", "folder": None}]
    assert "qk" not in Live(Things(graphs={"g": graph})).abilities()


@pytest.mark.parametrize("place", [1, -1, None, "0", True, 0.0])
def test_what_is_not_open_is_a_key_error(live, place):
    for method in (live.store, live.graph):
        with pytest.raises(KeyError):
            method(place)


# Prompts


def test_features_are_those_of_rank_features(live, made):
    own, _, store = made
    answer = plain(act(live, "features", {"store": 0, "text": TEXT, "rank": "surprise", "target": "w9||w7", "top": 3}))
    found = rank_features(toy(), own, TEXT, store=store, rank="surprise", target="w9||w7", top=99)
    assert answer["tokens"] == found.tokens and answer["kept"] == [False] + [True] * 5
    assert answer["target"] == "w9 − w7" and answer["target_ids"] == [9, 7] and answer["position"] == 5
    for rows, some in zip(answer["features"], found.features, strict=True):
        assert [row[0] for row in rows] == [each.latent for each in some[:3]]
        for row, each in zip(rows, some, strict=False):
            assert row[1] == pytest.approx(each.value, rel=1e-3) and row[5] == pytest.approx(each.attribution, rel=1e-3)
            assert (row[2] is None) == math.isnan(each.surprise)
    assert not answer["complete"] and len(answer["totals"]) == 3 and answer["chat"] is False
    assert answer["totals"][0][0] == found.totals[0].latent
    assert [each["id"] for each in answer["next"]] == [each.id for each in found.next_tokens]
    assert plain(live.features({"store": 0, "text": TEXT}))["complete"] is True
    assert live.features({"store": 0, "text": TEXT})["rank"] == "activation"


def test_steer_is_steer_prompt(live, made):
    own, _, _ = made
    edits = [{"latent": 3, "how": "set", "amount": 9}, {"latent": 5, "how": "ablate", "positions": [2, -1]}]
    body = {"store": 0, "text": TEXT, "edits": edits, "target": 17, "controls": 3, "latents": 2, "seed": 4}
    answer = plain(act(live, "steer", body))
    wishes = [Wish(3, "set", 9.0), Wish(5, positions=[2, -1])]
    found = steer_prompt(
        toy(), TEXT, latent_edits(toy(), own, TEXT, wishes), own, target=17, controls=3, latents=2, seed=4
    )
    assert answer["target_ids"] == [17] and answer["value"] == pytest.approx(found.value, rel=1e-3)
    for name, each in zip(("frozen", "free"), found.changed, strict=True):
        said = answer[name]
        assert said["kl"] == pytest.approx(each.kl[-1], rel=1e-3) and said["change"] == pytest.approx(
            each.change, rel=1e-3
        )
        assert [control["kind"] for control in said["controls"]] == ["random"] * 3 + ["latents"] * 2
        assert said["controls"][1]["kl"] == pytest.approx(each.controls[1].kl, rel=1e-3)
        assert said["standing"]["random"]["kl"] == {"rank": each.standing().rank, "p": each.standing().p}
        assert said["raised"][0]["id"] == each.raised[0].id
        for token in answer["tokens"]:
            assert token[name] == pytest.approx(float(each.probabilities[token["id"]]), rel=1e-3)
    leading = {each.id for some in (found.base, *(one.next_tokens for one in found.changed)) for each in some}
    assert {token["id"] for token in answer["tokens"]} >= leading
    default = live.steer({"store": 0, "text": TEXT, "edits": [], "controls": 1})
    assert [control["kind"] for control in default["free"]["controls"]] == ["random", "latents"]


def test_generate_is_the_stream_of_both_runs(live, made):
    own, _, _ = made
    body = {
        "store": 0,
        "text": TEXT,
        "edits": [{"latent": 3, "how": "steer", "amount": 9}],
        "tokens": 4,
        "temperature": 1.5,
    }
    lines = [plain(line) for line in run_stream(live, "generate", body | {"seed": 2})]
    edits = latent_edits(toy(), own, TEXT, [Wish(3, "steer", 9.0)])
    pieces = list(stream(toy(), TEXT, edits, own, tokens=4, temperature=1.5, seed=2, runs=("base", "changed")))
    assert lines[-1] == {"done": True}
    assert [(line["which"], line["piece"], line["token"]) for line in lines[:-1]] == [piece[:3] for piece in pieces]
    alone = list(live.generate({"store": 0, "text": TEXT, "tokens": 2}))
    assert {line["which"] for line in alone[:-1]} == {"base"}
    frozen = list(live.generate(body | {"attention": "frozen", "temperature": 0}))
    assert frozen[-1] == {"done": True}


def test_fires_ranks_by_share_of_the_largest_value(live, made):
    own, _, store = made
    answer = plain(act(live, "fires", {"store": 0, "text": TEXT}))
    found = rank_features(toy(), own, TEXT, top=99)
    best: dict[int, float] = {}
    for rows in found.features[1:]:
        for row in rows:
            best[row.latent] = max(
                best.get(row.latent, 0), row.value / float(store.max_value[row.latent].clamp_min(1e-30))
            )
    assert answer["latents"] == sorted(best, key=lambda latent: -best[latent])
    assert answer["total"] == len(best) and "answers for 5" in answer["why"]


def test_effects_are_those_of_the_library(live, made):
    own, _, store = made
    latent = int(store.count.argmax())
    truth = effects(store, latent, toy(), own)
    answer = plain(live.effects({"store": 0, "latent": latent}))
    assert list(answer["examples"]) == list(dict.fromkeys(str(each.row) for each in truth)) and "nats" in answer["note"]
    for each in truth:
        said = answer["examples"][str(each.row)]
        assert len(said["loss"]) == len(said["up"]) == len(said["down"]) == len(each.tokens)
        for number, change in zip(said["loss"], each.loss_change.tolist(), strict=True):
            assert number == pytest.approx(change, rel=1e-3, abs=1e-12) if change == change else number is None
    one = live.effects({"store": 0, "latent": latent, "rows": [truth[1].row]})
    assert list(one["examples"]) == [str(truth[1].row)]


def test_what_leaves_is_visible(live, monkeypatch):
    def decode(ids, **options):
        return HOSTILE[sum(ids) % len(HOSTILE)]

    monkeypatch.setattr(toy().tokenizer, "decode", decode)
    monkeypatch.setattr(toy().tokenizer, "batch_decode", lambda rows, **options: [decode(row) for row in rows])
    edits = [{"latent": 3, "how": "set", "amount": 9}]
    plain(live.features({"store": 0, "text": TEXT}))
    plain(live.steer({"store": 0, "text": TEXT, "edits": edits, "controls": 2}))
    lines = [plain(line) for line in live.generate({"store": 0, "text": TEXT, "edits": edits, "tokens": 6})]
    assert len(lines) >= 2


def test_line_breaks_of_a_piece_stay():
    from unweave.circuits.prompts.stream import Piece

    assert live_answers.piece_answer(Piece("base", "a\n\x00 b\n", 3, 0.5))["piece"] == "a\n␀ b\n"


# Circuits


@pytest.fixture(scope="module")
def circuit(tmp_path_factory):
    own = transcoder(1)
    own.save(tmp_path_factory.mktemp("circuit") / "weights")
    return own, trace(toy(), prompt(), [own], max_features=40)


def test_a_selection_is_measured_alone_and_together(circuit):
    own, graph = circuit
    chosen = [i for i, node in enumerate(graph.nodes) if node.is_feature][:7]
    found = validate_nodes(graph, toy(), chosen, [own])
    value = lambda logits: sum(  # noqa: E731
        target.weight * (logits[-1, target.index] - logits[-1].mean())
        for target in map(graph.nodes.__getitem__, graph.targets)
    )
    before = value(toy()(prompt()[None])[0])
    for place, i in enumerate(chosen):
        assert found.measured[place] == pytest.approx(
            float(value(ablate(toy(), prompt(), graph.nodes[i], own)) - before), abs=1e-9
        )
        assert found.predicted[place] == -graph.nodes[i].attribution
    together = value(ablate(toy(), prompt(), [graph.nodes[i] for i in chosen], own)) - before
    assert found.top_measured == pytest.approx(float(together), abs=1e-9)
    assert len(found.control_measured) == 5 and len(set(found.control_measured)) > 1
    assert any(found.node_controls) and all(len(some) <= 5 for some in found.node_controls)
    assert not {float(value) for some in found.node_controls for value in some} & {0.0}
    assert -1 <= found.spearman <= 1 and len(str(found).splitlines()) >= 2
    assert validate_nodes(graph, toy(), chosen, [own]) == found
    assert math.isnan(validate_nodes(graph, toy(), chosen[:2], [own]).spearman)
    with pytest.raises(UserError, match="expected features of this graph"):
        validate_nodes(graph, toy(), [0], [own])
    with pytest.raises(UserError, match="got none"):
        validate_nodes(graph, toy(), [], [own])


def test_a_control_alone_is_the_one_matched_to_its_feature():
    from unweave.circuits.prompts.selection import _apart

    def node(position, index, layer=0):
        return Node("neuron", layer, position, index, 1.0, "")

    features = [node(1, 1), node(2, 2), node(2, 3), node(4, 4, 1)]
    controls = [[node(1, 9), node(2, 8), node(2, 7), node(4, 6, 1)], [node(2, 5), node(4, 3, 1)]]
    found = [[each.index for each in some] for some in _apart(features, controls)]
    assert found == [[9], [8, 5], [7], [6, 3]]


def test_a_live_circuit_finds_its_model_and_dictionaries(circuit, tmp_path, monkeypatch):
    own, graph = circuit
    monkeypatch.setattr("unweave.viz.live.load_model", lambda name: toy())
    graph.save(tmp_path / "c.graph")
    live = Live(Things(graphs={"c": Graph.load(tmp_path / "c.graph")}))
    assert live.abilities() >= {"validate", "qk", "view"}
    chosen = [i for i, node in enumerate(graph.nodes) if node.is_feature][:4]
    answer = plain(act(live, "validate", {"graph": 0, "nodes": chosen}))
    assert {"nodes", "predicted", "measured", "top_predicted", "top_measured", "control_measured", "spearman", "interval",
            "warnings", "node_controls"} <= set(answer)  # fmt: skip
    table, truth = live.qk(0, 2, 1, -1, 2), qk_table(toy(), None, 2, 1, -1, 2, [own], graph=graph)
    assert table.score == pytest.approx(truth.score) and table.pairs[:20] == truth.pairs
    plain(act(live, "qk", {"graph": 0, "layer": 2, "head": 1, "query": 5, "key": 2}))
    graph.metadata["dictionaries"][0]["folder"] = "nowhere"
    graph.save(tmp_path / "lost.graph")
    lost = Live(Things(graphs={"c": Graph.load(tmp_path / "lost.graph")}))
    assert "qk" not in lost.abilities()
    with pytest.raises(UserError, match=r"found none for blocks.1.mlp.hook_in; open their folders too"):
        lost.validate(0, chosen)
    graph.metadata["dictionaries"][0]["folder"] = str(own.folder)
    assert Live(lost.things, dictionaries=[own]).parts_for(lost.graph(0))[0].fingerprint == own.fingerprint


# Turns


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_turns_are_one_at_a_time_in_order_of_arrival():
    turns, order, running = Turns(), [], []

    def job(number):
        with turns:
            running.append(number)
            assert len(running) == 1
            time.sleep(0.002)
            running.remove(number)
            order.append(number)

    threads = []
    with turns:
        for number in range(6):
            threads.append(threading.Thread(target=job, args=(number,)))
            threads[-1].start()
            wait_for(lambda: len(turns._queue) == len(threads) + 1)
    for thread in threads:
        thread.join()
    assert order == list(range(6))


def test_whom_there_is_no_room_for_is_sent_away_at_once():
    turns = Turns(waiting=2)
    with ExitStack() as inside:
        inside.enter_context(turns)
        done = []

        def job():
            with turns:
                done.append(1)

        threads = [threading.Thread(target=job) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(turns._queue) == 3)
        with pytest.raises(UserError, match="busy"), turns:
            pass

        def written():
            with turns.next():
                done.append(2)

        admitted = threading.Thread(target=written)
        admitted.start()
        wait_for(lambda: len(turns._queue) == 4)
    for thread in [*threads, admitted]:
        thread.join(10)
    assert done == [1, 1, 2]
    with pytest.raises(ValueError, match="mine"), turns:
        raise ValueError("mine")
    with turns:
        pass


def test_a_stream_lets_others_in_between_and_a_closed_one_is_gone(live, monkeypatch):
    monkeypatch.setattr("unweave.viz.live.STREAMS", 2)
    body = {"store": 0, "text": TEXT, "tokens": 30, "edits": [{"latent": 3, "how": "set", "amount": 5}]}
    one, two = live.generate(body), live.generate(body)
    first = next(one)
    assert next(two) == first
    answer = live.features({"store": 0, "text": TEXT})  # while both are open
    with pytest.raises(UserError, match="busy: expected at most 2 texts"):
        next(live.generate(body))
    one.close()
    assert live._streams == 1
    three = live.generate(body)
    assert next(three) == first
    del two, three
    assert live._streams == 0 and not live.lock._queue
    assert live.features({"store": 0, "text": TEXT}) == answer


def test_a_job_that_fails_gives_its_turn_back(live):
    for _ in range(3):
        with pytest.raises(UserError):
            live.features({"store": 0, "text": TEXT, "target": "w3 w4"})
        with pytest.raises(UserError):
            list(live.generate({"store": 0, "text": TEXT, "tokens": 400}))
    assert live._streams == 0 and not live.lock._queue


# Bodies


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "expected text as a string"),
        ({"text": ""}, "expected text as a string"),
        ({"text": 7}, "expected text as a string"),
        ({"text": "w3 " * 7000}, "at most 20000 characters"),
        ({"text": "\ud800"}, "UTF-8"),
        ({"text": "w3 " * 80}, "at most 64 tokens"),
        ({"messages": []}, "expected messages"),
        ({"messages": [{"role": "user"}]}, "expected messages"),
        ({"messages": [{"role": "user", "content": "w3"}] * 101}, "expected messages"),
        ({"messages": [{"role": "user", "content": "x" * 20_001}]}, "20000 characters together"),
        ({"messages": [{"role": "user", "content": "w3"}]}, "chat template"),
        ({"rank": "size"}, "rank to be one of"),
        ({"rank": ["activation"]}, "rank to be one of"),
        ({"top": 0}, "top as a whole number from 1 to 512"),
        ({"top": True}, "top as a whole number"),
        ({"top": 1e9}, "top as a whole number"),
        ({"target": 1.5}, "expected target"),
        ({"target": [1, 2, 3]}, "expected target"),
        ({"target": {"a": 1}}, "expected target"),
        ({"target": "x" * 201}, "expected target"),
        ({"target": 100}, "token id"),
        ({"target": 10**400}, "expected target"),
        ({"target": "w3 w4"}, "one token"),
    ],
)
def test_bodies_of_features(live, change, message):
    with pytest.raises(UserError, match=message) as error:
        live.features({"store": 0, "text": TEXT} | change)
    assert len(str(error.value)) < 600


EDIT = {"latent": 3, "how": "set", "amount": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edits": {}}, "expected edits"),
        ({"edits": [EDIT] * 65}, "at most 64"),
        ({"edits": [3]}, "expected edits"),
        ({"edits": [EDIT | {"how": "boil"}]}, "how to be one of"),
        ({"edits": [EDIT | {"how": None}, {"latent": 24, "how": "ablate"}]}, "latent below 24"),
        ({"edits": [EDIT | {"latent": -1}]}, "latent as a whole number"),
        ({"edits": [EDIT | {"latent": "3"}]}, "latent as a whole number"),
        ({"edits": [EDIT | {"amount": None}]}, "expected amount of set"),
        ({"edits": [EDIT | {"amount": math.nan}]}, "expected amount of set"),
        ({"edits": [EDIT | {"amount": 2e6}]}, "expected amount of set"),
        ({"edits": [EDIT | {"amount": 10**400}]}, "expected amount of set"),
        ({"edits": [EDIT | {"positions": []}]}, "expected positions"),
        ({"edits": [EDIT | {"positions": [1.0]}]}, "expected positions"),
        ({"edits": [EDIT | {"positions": [99]}]}, "expected positions of a prompt"),
        ({"controls": 33}, "controls as a whole number from 0 to 32"),
        ({"latents": -1}, "latents as a whole number"),
        ({"seed": -1}, "seed as a whole number"),
    ],
)
def test_bodies_of_steer(live, change, message):
    with pytest.raises(UserError, match=message) as error:
        live.steer({"store": 0, "text": TEXT, "edits": [EDIT], "controls": 1} | change)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 501}, "tokens as a whole number from 1 to 500"),
        ({"tokens": 0}, "tokens as a whole number"),
        ({"temperature": -1}, "temperature as a number from 0"),
        ({"temperature": math.nan}, "temperature as a number"),
        ({"temperature": "1"}, "temperature as a number"),
        ({"seed": 0.5}, "seed as a whole number"),
        ({"attention": "half"}, "attention to be one of"),
    ],
)
def test_bodies_of_generate_are_refused_before_the_first_token(live, change, message):
    with pytest.raises(UserError, match=message):
        live.generate({"store": 0, "text": TEXT} | change)


@pytest.mark.parametrize(
    "change", [{"latent": 24}, {"latent": None}, {"rows": [-1]}, {"rows": [10**9]}, {"rows": [0] * 65}]
)
def test_bodies_of_effects(live, change):
    with pytest.raises(UserError, match=r"expected (latent|rows)"):
        live.effects({"store": 0, "latent": 3} | change)


def test_long_prompts_are_refused(live, monkeypatch):
    monkeypatch.setattr(fields, "TOKENS", 5)
    for method in (live.features, live.steer, lambda body: next(live.generate(body)), lambda body: live.fires(0, TEXT)):
        with pytest.raises(UserError, match="at most 5 tokens here; got 6"):
            method({"store": 0, "text": TEXT})
