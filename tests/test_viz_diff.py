"""A Diff as the page gets it: the numbers of the answers against the Diff's own, what is opened, what a saved page carries."""

import json

import fake_diffs
import fakes
import numpy as np
import pytest
import torch
from unweave.audit.diffing import Diff
from unweave.saes import UserError
from unweave.viz import show
from unweave.viz.answers import answer, diffs, frozen
from unweave.viz.answers.index import index
from unweave.viz.things import Things, open_things

METHODS = list(fake_diffs.LATENTS)


def numbers(things, place, name):
    return np.frombuffer(answer(things, f"diffs/{place}/columns/{name}"), dtype="<f4")


def test_diffs_are_opened_beside_stores_and_named_apart(tmp_path):
    fake_diffs.diff("mean", folder=tmp_path / "changed")
    fakes.store(tmp_path / "features")
    opened = open_things([tmp_path / "changed", tmp_path / "features", fake_diffs.diff("lens"), tmp_path / "changed"])
    assert list(opened.diffs) == ["changed", "diff", "changed (2)"]
    assert list(opened.stores) == ["features"]
    assert [each["method"] for each in index(opened)["diffs"]] == ["mean", "lens", "mean"]
    assert open_things([opened]).diffs.keys() == opened.diffs.keys()


def test_a_folder_that_is_no_whole_diff_is_refused(tmp_path):
    fake_diffs.diff(folder=tmp_path / "cut")
    (tmp_path / "cut" / "manifest.json").unlink()
    with pytest.raises(UserError, match="manifest of a Diff"):
        open_things([tmp_path / "cut"])


@pytest.mark.parametrize("method", METHODS)
def test_columns_are_those_of_the_diff(method):
    found = fake_diffs.diff(method)
    things = Things(diffs={"one": found})
    told = answer(things, "diffs/0")
    assert (told["total"], told["found"], told["columns"]) == (len(found), found.discoveries, list(found.columns))
    for name in told["columns"]:
        np.testing.assert_array_equal(numbers(things, 0, name), found.columns[name].float().numpy())
    assert set(told["shown"]) | set(told["drawn"]) | set(told["column_notes"]) <= set(told["columns"])
    assert len(told["shown"]) > 3 and len(told["drawn"]) == 2
    assert told["warnings"] == found.notes


def test_tokens_stand_by_row():
    latents, lens = fake_diffs.diff("mean"), fake_diffs.diff("lens")
    things = Things(diffs={"one": latents, "two": lens})
    assert answer(things, "diffs/0")["tokens"]["7"] == ["␣w7", "␣the"]
    row = lens._row(5)
    assert answer(things, "diffs/1")["tokens"]["5"] == [row["string"].replace(" ", "␣")]


def test_a_causal_score_stands_beside_the_mean_and_middle_of_its_controls():
    found = fake_diffs.diff("mean")
    controls = [0.1 * place for place in range(41)]
    found.manifest["causal"] = [
        {"latents": [2], "patched": {"share": 0.5, "interval": [0.4, 0.7], "controls": controls, "p": 0.9}}
    ]
    (told,) = answer(Things(diffs={"one": found}), "diffs/0")["causal"]
    assert told["patched"] == {"share": 0.5, "interval": [0.4, 0.7], "controls": pytest.approx(controls), "control_mean": 2.0,
                               "control_interval": [0.1, 3.9], "p": 0.9}  # fmt: skip
    assert told["removed"]["share"] is None and told["removed"]["controls"] == []


def test_latents_lead_to_the_stores_of_their_dictionary_alone(tmp_path):
    stores = {"own": fakes.store(tmp_path / "a", fingerprint="a" * 16), "other": fakes.store(tmp_path / "b", fingerprint="b" * 16),
              "small": fakes.store(tmp_path / "c", 12, fingerprint="a" * 16)}  # fmt: skip
    found = {method: fake_diffs.diff(method, fingerprint="a" * 16) for method in ("mean", "lens")}
    things = Things(stores=stores, diffs=found)
    assert answer(things, "diffs/0")["stores"] == [0]
    assert answer(things, "diffs/1")["stores"] == []
    # A page has cards of what ranks first, so that its links lead somewhere.
    paths = dict(frozen(things, cards=30))
    first = found["mean"].order()[:5]
    assert all(f"stores/0/latents/{latent}" in paths for latent in first)


def test_a_page_carries_what_the_server_answers():
    things = Things(diffs={method: fake_diffs.diff(method) for method in METHODS})
    paths = dict(frozen(things))
    for place in range(len(METHODS)):
        assert paths[f"diffs/{place}"] == answer(things, f"diffs/{place}")
        for name in paths[f"diffs/{place}"]["columns"]:
            own = [np.nan if value is None else value for value in paths[f"diffs/{place}/columns/{name}"]]
            np.testing.assert_allclose(own, numbers(things, place, name), rtol=1e-5)


def test_a_page_carries_the_first_rows_of_a_large_diff(monkeypatch):
    monkeypatch.setattr(diffs, "CARRIED", 10)
    found = fake_diffs.diff("crosscoder")
    paths = dict(frozen(Things(diffs={"one": found})))
    assert paths["diffs/0"]["rows"] == sorted(found.order()[:10])
    assert paths["diffs/0"]["total"] == len(found)
    expected = found.columns["score"][torch.tensor(paths["diffs/0"]["rows"])].tolist()
    assert paths["diffs/0/columns/score"] == pytest.approx(expected, rel=1e-5)
    assert set(paths["diffs/0"]["tokens"]) <= {str(row) for row in paths["diffs/0"]["rows"]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [None, 7, "x", [], {}, [7], {"a": 7, "b": None}])
def test_a_manifest_of_nonsense_is_still_shown(method, bad):
    found = fake_diffs.diff(method)
    parts = (
        "models",
        "sites",
        "text",
        "dictionaries",
        "notes",
        "causal",
        "strings",
        "fires_on",
        "settings",
        "is_aligned",
    )
    broken = Diff({"method": method, **dict.fromkeys(parts, bad)}, found.columns)
    told = answer(Things(diffs={"one": broken}), "diffs/0")
    json.dumps(told, allow_nan=False)
    assert told["found"] == found.discoveries


def test_strings_that_attack_leave_as_signs(tmp_path):
    found = fake_diffs.diff("crosscoder", hostile=True, folder=tmp_path / "diff")
    things = open_things([found])
    told = answer(things, "diffs/0")
    assert not {"\x00", "\u202e", "\u2028"} & set(json.dumps(told, ensure_ascii=False))
    assert fakes.HOSTILE[0] not in told["columns"] and {"__proto__", "constructor"} <= set(told["columns"])
    page = show(found, to=tmp_path / "page.html").read_text("utf-8")
    assert "<img src=x" not in page
