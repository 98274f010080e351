"""Folders in the forms of other libraries: what they hold comes back, what they cannot hold is refused, and converting says so."""

import json

import pytest
import torch
from saes_formats_samples import SAMPLES
from saes_formats_toys import RULES, SHAPES, inputs, made, outputs
from torch.testing import assert_close
from unweave.saes import Dictionary, UserError
from unweave.saes.formats.registry import detect
from unweave.viz.convert import convert

HELD = {
    "sparsify": {(shape, "topk") for shape in ("sae", "unnamed", "transcoder", "skip")},
    "dictionary_learning": {(shape, rule) for shape in ("sae", "unnamed") for rule in RULES},
}


@pytest.mark.parametrize("form", HELD)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", RULES)
def test_a_form_holds_a_dictionary_exactly_or_refuses_it(tmp_path, form, shape, rule):
    own = made(shape, rule, dtype=torch.float64, model={"name": "m", "fingerprint": "f"})
    if (shape, rule) not in HELD[form]:
        with pytest.raises(UserError, match=f"{form} cannot hold"):
            own.save(tmp_path / "x", form)
        assert not (tmp_path / "x").exists()
        return
    own.save(tmp_path / "x", form)
    assert own.folder is None and detect(tmp_path / "x").name == form
    again, x = Dictionary.load(tmp_path / "x"), inputs(own)
    assert (again.config, again.metadata) == (own.config, own.metadata)
    # What encodes x where ours encodes x - b_dec is rounded twice, and a threshold there is in float32.
    exact = dict(rtol=1e-12, atol=1e-12) if rule != "batch_topk" else dict(rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(outputs(own, x)[0], outputs(again, x)[0], strict=True):
        assert_close(theirs, ours, **exact)


def test_matryoshka_widths_are_told_where_a_form_has_them(tmp_path):
    own = made("sae", "batch_topk", matryoshka=(6, 9))
    own.save(tmp_path, "dictionary_learning")
    assert json.loads((tmp_path / "config.json").read_text())["trainer"]["dict_class"] == "MatryoshkaBatchTopKSAE"
    assert torch.load(tmp_path / "ae.pt", weights_only=True)["group_sizes"].tolist() == [6, 3, 15]
    assert Dictionary.load(tmp_path).config == own.config


@pytest.mark.parametrize("form", HELD)
def test_a_note_of_ours_that_contradicts_the_files_is_a_user_error(tmp_path, form):
    made().save(tmp_path, form)
    path = tmp_path / ("cfg.json" if form == "sparsify" else "config.json")
    data = json.loads(path.read_text())
    for broken in (
        {"config": {**data["unweave"]["config"], "k": 5}},
        {"config": 3},
        {"config": {}, "metadata": []},
        "text",
    ):
        path.write_text(json.dumps({**data, "unweave": broken}))
        with pytest.raises(UserError, match="unweave"):
            Dictionary.load(tmp_path)
    del data["unweave"]
    path.write_text(json.dumps(data))
    assert Dictionary.load(tmp_path).config.k == 4


@pytest.mark.parametrize("form", ["saelens", "sparsify", "dictionary_learning"])
def test_converting_keeps_what_is_computed(tmp_path, form):
    path, x, codes, out = SAMPLES["qwen_scope"](tmp_path)
    result = convert(path, tmp_path / "made", form)
    again = Dictionary.load(tmp_path / "made")
    assert detect(tmp_path / "made").name == form and result["fingerprint"]
    assert_close(again.encode(x).dense(10), codes, rtol=1e-9, atol=1e-9)
    assert_close(again(x), out, rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match="empty folder"):
        convert(path, tmp_path / "made", form)


def test_converting_says_what_only_we_read(tmp_path):
    made(keep={"drop_positions": 1}, matryoshka=(4,)).save(tmp_path / "ours")
    assert len(convert(tmp_path / "ours", tmp_path / "a", "sparsify")["lost"]) == 4
    made("unnamed").save(tmp_path / "plain")
    assert convert(tmp_path / "plain", tmp_path / "b", "saelens")["lost"] == []


def test_converting_to_an_unknown_form_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="--to saelens"):
        convert(tmp_path, tmp_path / "x", "pickle")
