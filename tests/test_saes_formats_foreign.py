"""Dictionaries of other libraries compute here what they compute there, from files as their documentation has them."""

import json

import pytest
import torch
from saes_formats_files import F, K, circuit_tracer_plt, gemma_scope, gemma_scope_2, put, state_dict, tensors_of
from saes_formats_layers import crosscoder_fork
from saes_formats_samples import SAMPLES
from torch.testing import assert_close
from unweave.saes import Dictionary, UserError
from unweave.saes.formats.registry import detect


def stored_exactly(sample: str) -> bool:
    """Whether the sample's numbers are all in float64 (a fork's and BatchTopK's threshold are in float32)."""
    return "crosscoder" not in sample or sample.startswith("llamascopium")


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_file_of_another_library_computes_what_it_computes_there(tmp_path, sample):
    path, x, codes, out = SAMPLES[sample](tmp_path)
    assert detect(path).name == sample.split()[0]
    own = Dictionary.load(path)
    exact = dict(rtol=1e-9, atol=1e-9) if stored_exactly(sample) else dict(rtol=1e-6, atol=1e-6)
    assert_close(own.encode(x).dense(own.config.latents), codes, **exact)
    assert_close(own(x), out, **exact)
    assert 0 < (codes != 0).float().mean() < 1
    assert own.folder is not None and own.folder.is_dir()


@pytest.mark.parametrize("sample", SAMPLES)
def test_what_was_loaded_is_saved_as_ours(tmp_path, sample):
    path, x, _, _ = SAMPLES[sample](tmp_path)
    own = Dictionary.load(path)
    own.save(tmp_path / "ours")
    again = Dictionary.load(tmp_path / "ours")
    assert (again.config, again.fingerprint) == (own.config, own.fingerprint)
    assert torch.equal(again(x), own(x))


@pytest.mark.parametrize(
    ("sample", "site", "site_out", "k"),
    [
        ("sparsify", "blocks.3.mlp.hook_out", "", K), ("sparsify skip", "blocks.3.mlp.hook_in", "blocks.3.mlp.hook_out", K),
        ("dictionary_learning AutoEncoderTopK", "blocks.4.hook_resid_post", "", K),
        ("gemma_scope", "blocks.20.hook_resid_post", "", 7),
        ("gemma_scope_2 affine", "blocks.5.mlp.hook_in", "blocks.5.hook_mlp_out", F),
        ("gemma_scope_2 resid", "blocks.5.hook_resid_post", "", F), ("llama_scope", "blocks.7.hook_resid_post", "", F),
        ("circuit_tracer plt topk", "blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out", K),
        ("llamascopium topk True True", "blocks.3.hook_resid_mid", "blocks.3.hook_mlp_out", K),
        ("goodfire", "blocks.19.hook_resid_post", "", F), ("deepseek_r1", "blocks.19.hook_resid_post", "", F),
        ("qwen_scope", "blocks.19.hook_resid_post", "", K), ("openai", "", "", F),
    ],
)  # fmt: skip
def test_sites_and_k_come_from_what_the_file_says(tmp_path, sample, site, site_out, k):
    config = Dictionary.load(SAMPLES[sample](tmp_path).path).config
    assert (config.site, config.site_out) == ((site,) if site else (), (site_out,) if site_out else ())
    assert config.k == min(k, F)


def test_the_caller_says_what_the_file_does_not(tmp_path):
    own = Dictionary.load(state_dict(tmp_path, "openai").path, site="blocks.6.hook_resid_post", k=4)
    assert (own.read, own.config.k) == ("blocks.6.hook_resid_post", 4)


@pytest.mark.parametrize("name", ["AutoEncoderTopK", "BatchTopKSAE"])
def test_classes_that_tensors_do_not_tell_apart_need_their_config(tmp_path, name):
    path = SAMPLES[f"dictionary_learning {name}"](tmp_path).path
    (path / "config.json").unlink()
    with pytest.raises(UserError, match="AutoEncoderTopK or BatchTopKSAE"):
        Dictionary.load(path)


@pytest.mark.parametrize(
    "name", ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"]
)
def test_classes_that_tensors_tell_apart_need_none(tmp_path, name):
    path, x, codes, _ = SAMPLES[f"dictionary_learning {name}"](tmp_path)
    (path / "config.json").unlink()
    assert_close(Dictionary.load(path).encode(x).dense(F), codes, rtol=1e-9, atol=1e-9)


def test_a_checkpoint_is_read_with_the_config_above_it(tmp_path):
    path, x, codes, _ = SAMPLES["dictionary_learning AutoEncoderTopK"](tmp_path)
    (path / "checkpoints").mkdir()
    (path / "ae.pt").rename(path / "checkpoints" / "ae_1000.pt")
    own = Dictionary.load(path / "checkpoints" / "ae_1000.pt")
    assert own.read == "blocks.4.hook_resid_post"
    assert_close(own.encode(x).dense(F), codes, rtol=1e-9, atol=1e-9)


def test_an_embedding_of_gemma_scope_is_scaled(tmp_path):
    path, x, _, _ = gemma_scope(tmp_path)
    folder = tmp_path / "embedding" / "width_4k" / "average_l0_6"
    folder.mkdir(parents=True)
    (path / "params.npz").rename(folder / "params.npz")
    own, plain = Dictionary.load(folder), gemma_scope(tmp_path / "again")
    assert own.read == "hook_embed"
    like = Dictionary.load(plain.path)
    assert_close(own.encode(x * 6**0.5).dense(F), like.encode(x).dense(F), rtol=1e-9, atol=1e-9)
    assert_close(own(x * 6**0.5) - own.b_dec, (like(x) - like.b_dec) * 6**0.5, rtol=1e-9, atol=1e-9)


REFUSED = {
    "openai TopK": ("TopK", lambda folder: changed_pickle(state_dict(folder, "openai").path, activation="TopK")),
    "groupmax": ("topk", lambda folder: changed(SAMPLES["sparsify"](folder).path / "cfg.json", activation="groupmax")),
    "signed": ("topk", lambda folder: changed(SAMPLES["sparsify"](folder).path / "cfg.json", signed=True)),
    "token-wise": ("token", lambda folder: llamascopium(folder, norm_activation="token-wise")),
    "batchtopk": ("act_fn", lambda folder: llamascopium(folder, act_fn="batchtopk")),
    "glu": ("GLU", lambda folder: llamascopium(folder, use_glu_encoder=True)),
    "lorsa": ("sae_type", lambda folder: llamascopium(folder, sae_type="lorsa")),
    "crosscoder topk": ("relu", lambda folder: changed(SAMPLES["llamascopium crosscoder"](folder).path / "config.json", act_fn="topk")),
    "mixed": ("mixed", lambda folder: normed(folder, 3)),
    "decoupled": ("decoupled", lambda folder: normed(folder, 5)),
    "normalised": ("unknown", lambda folder: changed_pickle(crosscoder_fork(folder).path / "ae.pt", mean=torch.ones(3, 6))),
    "a set": ("layer_2.safetensors", lambda folder: circuit_tracer_plt(folder).path.parent),
    "dict_class": ("dict_class", lambda folder: changed(
        SAMPLES["dictionary_learning AutoEncoder"](folder).path / "config.json", trainer={"dict_class": "IdentityDict"})),
    "qwen k": ("k=50", lambda folder: state_dict(folder, "qwen_scope").path.rename(folder / "layer19.sae.pt")),
    "affine clt": ("affine", lambda folder: affine_clt(folder)),
    "r1 without norm": ("average_activation_norm", lambda folder: changed(
        SAMPLES["llama_scope r1"](folder).path / "config.json", dataset_average_activation_norm=None)),
}  # fmt: skip


def normed(folder, kind):
    return changed_pickle(crosscoder_fork(folder).path / "ae.pt", code_normalization_id=torch.tensor(kind))


def changed(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path.parent


def changed_pickle(path, **fields):
    torch.save(torch.load(path, weights_only=True) | fields, path)
    return path


def llamascopium(folder, **fields):
    return changed(SAMPLES["llamascopium relu True True"](folder).path / "config.json", **fields)


def affine_clt(folder):
    from safetensors.torch import load_file, save_file

    path = SAMPLES["gemma_scope_2 clt"](folder).path
    file = path / "layer_1_width_262k_l0_medium.safetensors"
    save_file({**load_file(file), "affine_skip_connection": torch.zeros(6, 6).double()}, file)
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_exactly_is_refused_with_the_reason(tmp_path, case):
    match, make = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(UserError, match=match):
        Dictionary.load(path)


def test_a_decoder_of_many_layers_alone_is_refused(tmp_path):
    path = SAMPLES["gemma_scope_2 clt"](tmp_path).path
    with pytest.raises(UserError, match="folder of all"):
        Dictionary.load(path / "layer_0_width_262k_l0_medium.safetensors")


def test_a_layer_of_a_release_is_known_by_its_folder(tmp_path):
    path = gemma_scope_2(tmp_path, "resid_post", False).path
    (path / "config.json").unlink()
    place = tmp_path / "models--google--gemma-scope-2-1b-pt" / "snapshots" / "0a1b" / "resid_post"
    place.mkdir(parents=True)
    own = Dictionary.load(path.rename(place / path.name))
    assert own.config.site == ("blocks.5.hook_resid_post",)


@pytest.mark.parametrize(
    ("sample", "file", "name"),
    [
        ("saelens jumprelu_skip_transcoder", "sae_weights.safetensors", "threshold"), ("gemma_scope", "params.npz", "threshold"),
        ("gemma_scope_2 resid", "params.safetensors", "threshold"), ("dictionary_learning JumpReluAutoEncoder", "ae.pt", "threshold"),
        ("gemma_scope_2 clt", "layer_0_width_262k_l0_medium.safetensors", "threshold"),
        ("circuit_tracer plt jumprelu", "layer_2.safetensors", "activation_function.threshold"),
        ("circuit_tracer clt", "W_enc_0.safetensors", "threshold_0"),
    ],
)  # fmt: skip
def test_a_threshold_below_zero_is_what_its_library_makes_of_it(tmp_path, sample, file, name):
    path, x, _, _ = SAMPLES[sample](tmp_path)
    file = path / file if path.is_dir() else path
    tensors = tensors_of(file)
    put(file, {**tensors, name: torch.full_like(tensors[name], -0.2)})
    own = Dictionary.load(path)
    codes = own.encode(x).dense(own.config.latents)[:, :F]
    rows = x[:, 0] if x.ndim == 3 else x
    pre = rows @ own.W_enc[:F].T + own.b_enc[:F] - (own.W_enc[:F] @ own.b_dec if own.is_sae else 0)
    expected = pre * (pre > (-0.2 if sample.startswith("circuit") else 0))
    assert (pre < -0.2).any() and ((pre > -0.2) & (pre < 0)).any()
    assert_close(codes, expected, rtol=1e-9, atol=1e-9)
