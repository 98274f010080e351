"""What the page is told of stores and latents, against the stores themselves; and what people say of latents, saved and undone."""

import json
import math
import shutil

import fakes
import pytest
import torch
from unweave.saes import FeatureStore, UserError
from unweave.saes.latents.codes.company import company
from unweave.saes.latents.codes.intervals import intervals
from unweave.saes.latents.find.search import search
from unweave.saes.latents.shelf.feature import Histogram
from unweave.viz.actions import ACTIONS, act
from unweave.viz.answers import answer, frozen
from unweave.viz.answers.cards import spread_counts
from unweave.viz.answers.stores import MOST_LABELS
from unweave.viz.answers.warnings import DENSE, ENOUGH, POSITIONAL, RULES, SINGLE_TOKEN, warnings
from unweave.viz.page import escaped_json
from unweave.viz.things import Things, open_things


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fakes.store(tmp_path_factory.mktemp("coded"), 48, codes=True)


@pytest.fixture(scope="module")
def things(store):
    return open_things([store])


@pytest.fixture
def own(tmp_path):
    """Things of a small store whose labels a test may change."""
    return open_things([fakes.store(tmp_path / "own", 24, hostile=True)])


class Host:
    """What an action needs of a live host, without a model."""

    def __init__(self, things: Things):
        self.things = things

    def store(self, place):
        return list(self.things.stores.values())[place]


def test_a_column_is_every_value_of_a_statistic(things, store):
    for name in answer(things, "stores/0")["columns"]:
        got = torch.frombuffer(bytearray(answer(things, f"stores/0/columns/{name}")), dtype=torch.float32)
        torch.testing.assert_close(got, store.columns[name].float(), rtol=0, atol=0, equal_nan=True)


def test_every_statistic_is_explained(things, store):
    told = answer(things, "stores/0")
    assert set(told["columns"]) == set(store.columns) <= set(told["notes"])
    assert all(told["notes"][name] for name in store.columns)


def test_a_card_has_the_numbers_of_the_store(things, store):
    card, feature = answer(things, "stores/0/latents/7"), store[7]
    assert card["statistics"].keys() == store.columns.keys()
    assert card["statistics"]["max_value"] == pytest.approx(feature.max_value, rel=1e-3)
    assert card["histogram"]["counts"] == feature.histogram.counts.tolist()
    assert [one["count"] for one in card["tokens"]] == [one.count for one in feature.tokens]
    assert [one["row"] for one in card["examples"]] == [one.row for one in feature.examples]
    for told, known in zip(card["examples"], feature.examples, strict=True):
        assert [value or 0 for value in told["values"]] == pytest.approx(known.values, rel=1e-2)


def test_a_row_shows_the_strongest_example(things, store):
    rows = answer(things, "stores/0/rows/5,7,0")
    example = store[7].examples[0]
    assert rows["7"]["token"] == fakes.vocabulary(False)[int(store.tokens[example.row])]
    assert rows["5"]["label"] == "animals that jump"
    assert rows["0"] == {"label": None, "star": False, "before": "", "token": "", "after": ""}


def test_intervals_are_those_of_the_codes(things, store):
    for kind in ("width", "count", "log"):
        told, known = answer(things, f"stores/0/latents/9/intervals/{kind}"), intervals(store, 9, kind)
        assert told["is_exact"]
        assert [one["count"] for one in told["intervals"]] == [one.count for one in reversed(known)]
        assert sum(one["count"] for one in told["intervals"]) == int(store.count[9])
        for one in told["intervals"]:
            assert all(one["low"] * 0.99 <= each["value"] <= one["high"] * 1.01 for each in one["examples"])


def test_without_codes_counts_are_estimates_within_their_error(store, tmp_path):
    for name in ("manifest.json", "features.safetensors", "tokens.safetensors"):
        shutil.copy(store.folder / name, tmp_path)
    things = open_things([tmp_path])
    told, known = answer(things, "stores/0/latents/9/intervals/width"), intervals(store, 9, "width")
    assert not told["is_exact"]
    assert any(one["error"] for one in told["intervals"])
    for one, exact in zip(told["intervals"], reversed(known), strict=True):
        assert abs(one["count"] - exact.count) <= (one["error"] or 0)
    assert answer(things, "stores/0/latents/9/company") == {
        "companions": [],
        "reason": "the codes of this text were not kept, so co-occurrence is not known",
    }
    assert not answer(things, "stores/0")["company"]


def test_company_is_that_of_the_codes(things, store):
    told, known = answer(things, "stores/0/latents/9/company")["companions"], company(store, 9)
    assert [(one["latent"], one["together"]) for one in told] == [(one.latent, one.together) for one in known]


def test_a_histogram_of_equal_width_counts_every_activation(things, store):
    told, values = answer(things, "stores/0/latents/9/histogram"), store.codebook.firings(9)[1]
    edges = torch.tensor(told["edges"])
    expected = [
        int(((values > low) & (values <= high)).sum())
        for low, high in zip(edges.double(), edges.double()[1:], strict=False)
    ]
    assert told["is_exact"]
    assert sum(told["counts"]) == len(values)
    assert sum(abs(a - b) for a, b in zip(told["counts"], expected, strict=True)) <= 2  # edges are rounded for the page


def test_counts_are_spread_evenly_within_a_bin():
    histogram = Histogram(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([3, 8, 0]))
    assert spread_counts(histogram, torch.tensor([0.0, 1.0, 3.0, 4.0]).double()).tolist() == [1.5, 5.5, 4.0]


def test_warnings_come_with_their_rules(store):
    feature = store[9]
    assert warnings(feature._replace(count=0)) == ["dead: it never fired in this text"]
    fine = feature._replace(density=DENSE, token_entropy=SINGLE_TOKEN, position_share=POSITIONAL - 0.01, count=ENOUGH)
    assert warnings(fine) == []
    (dense,) = warnings(fine._replace(density=0.25))
    assert "25%" in dense
    assert f"{DENSE:.0%}" in dense
    (single,) = warnings(fine._replace(token_entropy=0.1))
    assert str(SINGLE_TOKEN) in single
    (positional,) = warnings(fine._replace(position_share=0.75, position_top=3))
    assert "75%" in positional
    assert "position 3" in positional
    assert warnings(fine._replace(position_share=0.75, count=ENOUGH - 1)) == []
    assert warnings(fine._replace(position_share=math.nan)) == []


def test_rules_as_filters_choose_the_latents_that_are_warned_of(store):
    def passes(rule, latent):
        for part in rule.filter.split(";"):
            name, ends = part.split(":")
            low, high = (float(end) if end else None for end in ends.split(".."))
            value = float(store.columns[name][latent])
            if (low is not None and value < low) or (high is not None and value > high):
                return False
        return True

    for latent in range(len(store)):
        said = {text.split(":")[0] for text in warnings(store[latent])}
        for name in ("dead", "dense", "single-token", "positional"):
            assert (name in said) == passes(RULES[name], latent), (name, latent)


def test_a_store_of_the_first_version_has_fewer_parts(tmp_path, monkeypatch):
    store = fakes.store(tmp_path / "old", 8)
    monkeypatch.setitem(store.manifest, "version", 1)
    for name in [*store._arrays]:
        if name.startswith(("token_id", "token_count", "token_lift", "logit_h", "sample_")):
            del store._arrays[name]
    told = answer(open_things([store]), "stores/0")
    assert told["intervals"] == []
    card = answer(open_things([store]), "stores/0/latents/3")
    assert card["tokens"] == []
    assert card["logit_histogram"] is None
    with pytest.raises(KeyError):
        answer(open_things([store]), "stores/0/latents/3/intervals/width")


@pytest.mark.parametrize(
    "path", ["latents/48", "latents/48/company", "latents/1/intervals/sideways", "columns/nothing", "rows/48"]
)
def test_what_is_not_there_is_no_path(things, path):
    with pytest.raises(KeyError):
        answer(things, f"stores/0/{path}")


def test_what_people_say_is_saved_shown_and_undone(own):
    host, store = Host(own), next(iter(own.stores.values()))
    got = act(host, "label", {"store": 0, "latent": 3, "label": fakes.HOSTILE[0], "tags": ["a", "b"], "star": True})
    assert got["mark"]["shown"] == fakes.HOSTILE[0]
    assert [one["tag"] for one in got["mark"]["tags"]] == ["a", "b"]
    assert FeatureStore.open(store.folder).labels.get(3).is_starred
    act(host, "label", {"store": 0, "latent": 3, "note": "seen\ntwice"})
    assert answer(own, "stores/0/latents/3")["mark"]["note"] == "seen\ntwice"
    assert answer(own, "stores/0")["marked"] == {"labels": 2, "stars": 1, "tags": {"a": 1, "b": 1}}
    marks = answer(own, "stores/0/marks")
    assert marks == {"labelled": [3, 5], "starred": [3], "noted": [3], "tags": {"a": [3], "b": [3]}}
    assert answer(own, "stores/0/rows/3")["3"]["star"]
    history = act(host, "history", {"store": 0, "latent": 3})
    assert history["total"] == 2
    assert history["changes"][0]["fields"] == [{"name": "note", "before": "", "after": "seen⏎twice"}]
    assert act(host, "label", {"store": 0, "latent": 3, "undo": True})["undone"] == ["note"]
    assert act(host, "label", {"store": 0, "latent": 3, "undo": True})["mark"]["shown"] is None
    assert act(host, "label", {"store": 0, "latent": 3, "undo": True})["undone"] == []
    assert [change["is_undone"] for change in act(host, "history", {"store": 0, "latent": 3})["changes"]] == [
        False,
        False,
        True,
        True,
    ]


def test_a_score_of_a_label_is_a_column(own):
    store = next(iter(own.stores.values()))
    assert "label_score" not in answer(own, "stores/0")["columns"]
    store.labels.set(4, label="x", score={"method": "fuzz", "value": 0.75, "low": 0.5, "high": 0.9, "n": 40})
    assert "label_score" in answer(own, "stores/0")["columns"]
    values = torch.frombuffer(bytearray(answer(own, "stores/0/columns/label_score")), dtype=torch.float32)
    assert values[4] == 0.75
    assert values.isnan().sum() == len(store) - 1
    assert answer(own, "stores/0/latents/4")["mark"]["score"]["low"] == 0.5


@pytest.mark.parametrize(
    "body",
    [{"latent": 24}, {"latent": -1}, {"latent": "1"}, {"latent": True}, {}, {"latent": 1}, {"latent": 1, "label": "x" * 501},
     {"latent": 1, "tags": "one"}, {"latent": 1, "label": 3}],
)  # fmt: skip
def test_a_label_that_makes_no_sense_is_refused(own, body):
    with pytest.raises(UserError, match="expected"):
        act(Host(own), "label", {"store": 0, **body})
    assert not next(iter(own.stores.values())).labels.history(1)


def test_many_labels_are_left_to_the_rows(tmp_path):
    store = fakes.store(tmp_path / "many", MOST_LABELS + 8)
    store.labels.add_rows([{"latent": latent, "label": f"label {latent}"} for latent in range(MOST_LABELS + 1)])
    things = open_things([store])
    told = answer(things, "stores/0")
    assert told["labels"] == {}
    assert told["marked"]["labels"] == MOST_LABELS + 1
    assert answer(things, "stores/0/rows/17")["17"]["label"] == "label 17"


def test_a_search_is_the_stores_own(things, store):
    for kind, query in [("label", "jump"), ("text", "quick"), ("token", " Paris"), ("logit", "fox"), ("any", "fox")]:
        got, known = act(Host(things), "search", {"store": 0, "kind": kind, "query": query}), search(store, query, kind)
        assert got["latents"] == known.latents.tolist()
        assert got["total"] == known.total


@pytest.mark.parametrize("body", [{"kind": "sideways", "query": "x"}, {"query": None}, {"query": "x" * 401}])
def test_a_search_that_makes_no_sense_is_refused(things, body):
    with pytest.raises(UserError, match="expected"):
        act(Host(things), "search", {"store": 0, **body})


def test_actions_of_this_pane_are_registered():
    assert {"label", "history", "search", "fires", "effects"} <= ACTIONS.keys()


def test_a_page_carries_what_only_the_codes_tell(things, store):
    paths = dict(frozen(things, cards=6))
    carried = paths["stores/0"]["latents"]
    assert len(carried) == 6
    for latent in carried:
        base = f"stores/0/latents/{latent}"
        assert {f"{base}/intervals/{kind}" for kind in ("width", "count", "log")} <= paths.keys()
        assert paths[f"{base}/company"] == answer(things, f"{base}/company")
        assert max(len(one["examples"]) for one in paths[f"{base}/intervals/log"]["intervals"]) <= 2
    sizes = [len(escaped_json(value)) for path, value in paths.items() if "/latents/" in path]
    assert sum(sizes) / 6 < 50_000


def test_hostile_strings_are_told_readable(own):
    text = json.dumps([answer(own, "stores/0"), answer(own, "stores/0/latents/5"), answer(own, "stores/0/rows/5")])
    assert "\\u202e" not in text
    assert "\\u0000" not in text
    assert "\\ud800" not in text


def test_many_sites_are_told_by_the_first_of_them():
    from unweave.viz.answers.parts import sites_of

    reads, writes = [f"blocks.{n}.mlp.hook_in" for n in range(3)], [f"blocks.{n}.mlp.hook_out" for n in range(3)]
    expected = "blocks.0.mlp.hook_in and 2 more → blocks.0.mlp.hook_out and 2 more"
    assert sites_of({"site": reads, "site_out": writes}) == expected
    assert sites_of({"site": ", ".join(reads), "site_out": ", ".join(writes)}) == expected
    assert sites_of({"site": ["a"], "site_out": ["a"]}) == "a" and sites_of({"site": "a", "site_out": "b"}) == "a → b"
