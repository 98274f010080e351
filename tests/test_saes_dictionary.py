import json
from pathlib import Path

import pytest
import torch
from saes_toys import MLP_IN, MLP_OUT, dense_codes, dictionary
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from unweave.saes import Codes, Dictionary, DictionaryConfig, UserError
from unweave.saes.fold import Scaling, fold

F64 = torch.float64
KINDS = {
    "sae": dict(),
    "transcoder": dict(site=MLP_IN, site_out=MLP_OUT, d_out=48),
    "skip": dict(site=MLP_IN, site_out=MLP_OUT, d_out=48, skip=True),
}


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode_are_their_equations(kind):
    own, x = dictionary(**KINDS[kind]), randn(30, 64)
    codes = own.encode(x)
    assert_close(codes.dense(24), dense_codes(own, x), rtol=1e-10, atol=1e-10)
    expected = dense_codes(own, x) @ own.W_dec + own.b_dec
    if own.W_skip is not None:
        expected = expected + x @ own.W_skip.T
    assert_close(own(x), expected, rtol=1e-10, atol=1e-10)
    assert_close(own({own.read: x, "other": x}), expected, rtol=1e-10, atol=1e-10)
    assert_close(own.decode(codes, x), expected, rtol=1e-10, atol=1e-10)


def test_encode_does_not_depend_on_the_rest_of_the_batch():
    own, x = dictionary(), randn(40, 64)
    whole = own.encode(x)
    alone = [own.encode(row[None]) for row in x]
    assert_close(torch.cat([codes.values for codes in alone]), whole.values, rtol=1e-12, atol=1e-12)
    assert_close(torch.cat([codes.indices for codes in alone]), whole.indices, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_folded_weights_compute_on_raw_activations_what_training_computed_on_scaled_ones(kind):
    own, x = dictionary(**KINDS[kind]), randn(30, 64) * 5 + 3
    d_out = own.W_dec.shape[1]
    scaling = Scaling(randn(64, seed=7), 3.7, randn(d_out, seed=8), 0.21)
    if own.is_sae:
        scaling = Scaling(scaling.mean_in, 3.7, scaling.mean_in, 3.7)
    raw = Dictionary(own.config, fold(dict(own.named_parameters()), scaling, own.layout))
    inside = (x - scaling.mean_in) / scaling.scale_in
    assert_close(raw(x), own(inside) * scaling.scale_out + scaling.mean_out, rtol=1e-10, atol=1e-10)
    trained, folded = own.encode(inside), raw.encode(x)
    assert_close(folded.indices, trained.indices, rtol=0, atol=0)
    assert_close(folded.values, trained.values * scaling.scale_out, rtol=1e-10, atol=1e-10)


def test_codes_by_hand():
    codes = Codes(torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([[1, 0], [2, 2]]))
    assert_close(codes.dense(3), torch.tensor([[0.0, 2, 0], [0, 0, 4]]))
    assert_close(codes.of(torch.tensor([2, 1])), torch.tensor([[0.0, 2], [4, 0]]))
    assert codes.l0().tolist() == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_what_is_saved_is_loaded_exactly(tmp_path, kind, dtype):
    metadata = {
        "model": {"name": "m", "fingerprint": "f", "bos": 0},
        "keep": {"drop_positions": 1, "max_norm": {"a": 1 / 3}},
    }
    own = dictionary(**KINDS[kind], **metadata).to(dtype)
    own.save(tmp_path / "own")
    again = Dictionary.load(tmp_path / "own")
    assert again.config == own.config
    assert again.metadata == own.metadata
    assert again.fingerprint == own.fingerprint
    for name, tensor in own.named_parameters():
        assert_close(dict(again.named_parameters())[name], tensor, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_fingerprint_names_weights_and_shape():
    own = dictionary()
    changed = dictionary()
    changed.W_dec[3, 4] += 1e-3
    elsewhere = dictionary(site="blocks.0.hook_resid_post")
    assert len({own.fingerprint, changed.fingerprint, elsewhere.fingerprint, dictionary(k=5).fingerprint}) == 4
    assert own.fingerprint == dictionary().fingerprint


def test_the_folder_is_what_saelens_6_reads(tmp_path):
    own = dictionary(dtype=torch.float32)
    own.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    weights = load_file(tmp_path / "sae_weights.safetensors")
    assert {name: tuple(t.shape) for name, t in weights.items()} == {
        "W_enc": (64, 24), "b_enc": (24,), "W_dec": (24, 64), "b_dec": (64,),
    }  # fmt: skip
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    metadata = cfg.pop("metadata")
    assert cfg == {
        "architecture": "topk", "d_in": 64, "d_sae": 24, "k": 4, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False, "normalize_activations": "none",
        "reshape_activations": "none",
    }  # fmt: skip
    assert metadata["hook_name"] == own.read
    x = randn(20, 64, dtype=torch.float32)
    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    kept = pre.topk(4)
    acts = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
    assert_close(own(x), acts @ weights["W_dec"] + weights["b_dec"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["transcoder", "skip"])
def test_topk_transcoders_have_a_name_that_saelens_refuses(tmp_path, kind):
    dictionary(**KINDS[kind]).save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    known_there = {"standard", "gated", "jumprelu", "topk", "batchtopk", "abstopk", "matching_pursuit", "temporal",
                   "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder",
                   "matryoshka_batchtopk"}  # fmt: skip
    assert cfg["architecture"].startswith("unweave_")
    assert cfg["architecture"] not in known_there
    assert cfg["apply_b_dec_to_input"] is False


def saelens_folder(folder: Path, dead_row: bool = False, **changes) -> dict[str, torch.Tensor]:
    """A `topk` folder as SAELens 6.54 writes it (dictionaries.md §2.1, `inf_topk`)."""
    weights = {"W_enc": randn(4, 8), "b_enc": randn(8, seed=1), "W_dec": randn(8, 4, seed=2), "b_dec": randn(4, seed=3)}
    weights["W_dec"][5] *= 0.0 if dead_row else 1.0
    cfg = {"dtype": "float64", "device": "cpu", "d_in": 4, "apply_b_dec_to_input": True, "normalize_activations": "none",
           "k": 2, "reshape_activations": "none", "rescale_acts_by_decoder_norm": True, "d_sae": 8, "architecture": "topk",
           "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.3.hook_resid_pre"}} | changes  # fmt: skip
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return weights


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("dead_row", [True, False])
def test_a_topk_folder_of_saelens_computes_what_it_computes_there(tmp_path, rescale, dead_row):
    w = saelens_folder(tmp_path / "sae", dead_row, rescale_acts_by_decoder_norm=rescale)
    own, x = Dictionary.load(tmp_path / "sae"), randn(50, 4, seed=9)
    norm = w["W_dec"].norm(dim=1) if rescale else torch.ones(8, dtype=F64)
    pre = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm
    kept = pre.topk(2)
    acts = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
    assert_close(own.encode(x).dense(8), acts, rtol=1e-10, atol=1e-10)
    there = (acts / norm.where(norm > 0, 1.0)) @ w["W_dec"] + w["b_dec"]
    assert_close(own(x), there, rtol=1e-10, atol=1e-10)
    assert own.read == own.write == "blocks.3.hook_resid_pre"
    assert own.metadata["saelens"]["sae_lens_version"] == "6.54.12"


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "jumprelu"}, {"architecture": None}, {"architecture": ["topk"]}, {"k": "many"}, {"k": 9}, {"k": 0}, {"k": None},
        {"k": float("inf")}, {"d_sae": 7}, {"d_sae": {}}, {"normalize_activations": "expected_average_only_in"},
        {"apply_b_dec_to_input": "no"}, {"metadata": [1]}, {"metadata": {"hook_name": 5}},
        {"metadata": {"hook_name": ["a", "b"]}}, {"metadata": {"unweave": "text"}},
        {"metadata": {"unweave": {"keep": {"max_norm": 3}}}}, {"metadata": {"unweave": {"model": "m"}}},
        {"architecture": "unweave_topk_transcoder", "apply_b_dec_to_input": False},
        {"architecture": "unweave_topk_skip_transcoder", "apply_b_dec_to_input": False, "metadata": {"hook_name_out": "b"}},
    ],
)  # fmt: skip
def test_a_wrong_cfg_is_a_user_error(tmp_path, changes):
    saelens_folder(tmp_path / "sae", **changes)
    with pytest.raises(UserError):
        Dictionary.load(tmp_path / "sae")


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut header", "cut data", "text", "folder", "no W_dec", "1-D", "integers", "mixed"]
)
def test_damaged_weights_are_a_user_error(tmp_path, damage):
    weights = saelens_folder(tmp_path / "sae")
    path = tmp_path / "sae" / "sae_weights.safetensors"
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "no W_dec":
        save_file({name: tensor for name, tensor in weights.items() if name != "W_dec"}, path)
    elif damage == "1-D":
        save_file({**weights, "W_enc": weights["W_enc"].flatten()}, path)
    elif damage == "integers":
        save_file({name: tensor.int() for name, tensor in weights.items()}, path)
    elif damage == "mixed":
        save_file({**weights, "W_dec": weights["W_dec"].float()}, path)
    elif damage != "missing":
        path.write_bytes(
            {"empty": b"", "cut header": data[:40], "cut data": data[:-8], "text": b"no such file" * 30}[damage]
        )
    with pytest.raises(UserError):
        Dictionary.load(tmp_path / "sae")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_broken_cfg_is_a_user_error(tmp_path, text):
    saelens_folder(tmp_path / "sae")
    (tmp_path / "sae" / "cfg.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"cfg\.json"):
        Dictionary.load(tmp_path / "sae")


def test_a_folder_that_is_no_dictionary_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="absent"):
        Dictionary.load(tmp_path / "absent")
    with pytest.raises(UserError, match="format"):
        Dictionary.load(tmp_path, format="pickle")


def test_a_skip_path_needs_the_input_to_decode():
    own, x = dictionary(**KINDS["skip"]), randn(3, 64)
    with pytest.raises(ValueError, match="needs; call decode"):
        own.decode(own.encode(x))


@pytest.mark.parametrize("x", [torch.zeros(3, 65), torch.zeros(64), torch.zeros(2, 3, 64)])
def test_activations_of_another_shape_are_a_user_error(x):
    with pytest.raises(UserError, match="expected activations"):
        dictionary().encode(x)


def test_activations_of_another_site_are_a_user_error():
    with pytest.raises(UserError, match="cache that site"):
        dictionary().encode({"elsewhere": torch.zeros(3, 64)})


def test_weights_that_do_not_fit_the_config_are_a_user_error():
    own = dictionary()
    tensors = dict(own.named_parameters())
    for config, changed in [
        (DictionaryConfig(latents=25, k=4), tensors),
        (own.config, {**tensors, "b_dec": torch.zeros(63)}),
        (DictionaryConfig(site=("a",), site_out=("b",), latents=24, k=4, skip=True), tensors),
    ]:
        with pytest.raises(UserError, match="of shape"):
            Dictionary(config, changed)
