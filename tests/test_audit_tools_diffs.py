"""A Diff that was damaged or made by hand is refused where it comes in, with the file and the field that is wrong."""

import copy
import json

import audit_diffing_toys as planted
import audit_tools_toys as toys_
import fake_diffs
import pytest
import torch
from safetensors.torch import save_file
from unweave.audit.diffing import Diff
from unweave.audit.tools import TOOLS, Session, Workspace
from unweave.saes import UserError

SHARE = {"share": 0.5, "interval": [0.4, 0.6], "controls": [0.1], "p": 0.5}
WRONG = {
    "models": [["a", "b"], {"a": {"name": "a"}}, {"a": {"name": 1}, "b": {"name": "b"}}],
    "settings": ["fast", {"fdr": "0.05"}, {}, {"fdr": 10**400}],
    "text": [["rows"]],
    "sites": ["blocks.1", {"a": 1}],
    "dictionaries": [["f" * 16], {"dictionary": 5}],
    "notes": ["note", [1]],
    "fires_on": [["a"], {"0": "a"}, {"0": [1]}],
    "causal": [
        {"latents": [1]}, ["row"], [{"latents": "3", "patched": SHARE, "removed": SHARE}],
        [{"latents": [-1], "patched": SHARE, "removed": SHARE}],
        [{"latents": [3], "patched": SHARE}], [{"latents": [3], "patched": "half", "removed": SHARE}],
        [{"latents": [3], "patched": SHARE | {"share": "half"}, "removed": SHARE}],
        [{"latents": [3], "patched": SHARE, "removed": SHARE | {"interval": [0.1]}}],
        [{"latents": [3], "patched": SHARE, "removed": SHARE | {"controls": ["x"]}}],
    ],
    "method": ["beauty", None],
}  # fmt: skip
CASES = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda each: str(each)[:40])
def test_a_wrong_field_is_named_with_its_file(name, value, tmp_path):
    good = fake_diffs.diff("mean", folder=tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {name: value}))
    with pytest.raises(UserError, match=rf"(?s)as {name} in .*manifest\.json"):
        Diff.open(tmp_path)
    made = Diff(copy.deepcopy(good.manifest) | {name: value}, good.columns)
    with pytest.raises(UserError, match=rf"as {name} in this Diff"):
        Workspace({"target": planted.tuned()}, diffs={"made": made})


@pytest.mark.parametrize("method", fake_diffs.LATENTS)
def test_what_diff_writes_is_accepted(method, tmp_path):
    fake_diffs.diff(method, folder=tmp_path)
    found = Diff.open(tmp_path)
    assert found.check() is found and repr(found) and found.rows(3)


@pytest.mark.parametrize("name", ["models", "settings"])
def test_a_missing_part_is_named(name, tmp_path):
    fake_diffs.diff("mean", folder=tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest[name]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"expected {name} in .*manifest\.json"):
        Diff.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("score", torch.zeros(3)),
        ("d", torch.zeros(64, 2)),
        ("class", torch.full((64,), 9)),
        ("class", torch.zeros(64)),
        ("is_found", None),
    ],
)
def test_a_wrong_column_is_named_with_its_file(name, column, tmp_path):
    found = fake_diffs.diff("crosscoder", folder=tmp_path)
    columns = {each: value.clone() for each, value in found.columns.items() if each != name}
    save_file(columns | ({} if column is None else {name: column}), tmp_path / "diff.safetensors")
    with pytest.raises(UserError, match=r"column.*diff\.safetensors"):
        Diff.open(tmp_path)


def test_no_tool_fails_for_a_diff_that_says_nothing():
    """Of what may be missing nothing is needed."""
    columns = {"score": torch.rand(40), "is_found": torch.zeros(40)}
    own = Session(
        Workspace(
            toys_.workspace().models, toys_.workspace().dictionaries, diffs={"bare": Diff({"method": "mean"}, columns)}
        )
    )
    for name in ("list_models", "diff_features"):
        assert name in TOOLS and own.call(name).ok
