"""Our own folder, for every shape and rule: what is saved is loaded, and SAELens reads its name as what it is."""

import json

import pytest
import torch
from saes_formats_toys import RULES, SHAPES, A, inputs, made, outputs
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from unweave.saes import Dictionary, UserError
from unweave.saes.formats.registry import formats

THERE = {"standard", "gated", "jumprelu", "topk", "batchtopk", "abstopk", "matching_pursuit", "temporal", "transcoder",
         "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder", "matryoshka_batchtopk"}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("matryoshka", [(), (4,)])
def test_every_dictionary_comes_back_as_it_was(tmp_path, shape, rule, matryoshka):
    own = made(shape, rule, matryoshka=matryoshka, model={"name": "m", "fingerprint": "f"})
    own.save(tmp_path)
    again = Dictionary.load(tmp_path)
    assert (again.config, again.layout, again.metadata) == (own.config, own.layout, own.metadata)
    assert again.fingerprint == own.fingerprint
    x = inputs(own)
    for (codes, flat), (codes_again, flat_again) in zip(outputs(own, x), outputs(again, x), strict=True):
        assert torch.equal(codes, codes_again) and torch.equal(flat, flat_again)
        assert (codes != 0).any()


def test_sites_of_different_widths_come_back(tmp_path):
    own = made("transcoder", "relu", width_out=7)
    own.save(tmp_path)
    assert Dictionary.load(tmp_path).layout.widths == own.layout.widths
    own = made("acausal", "topk", width_out=7)
    own.save(tmp_path)
    assert Dictionary.load(tmp_path).layout.widths == own.layout.widths


@pytest.mark.parametrize(
    ("shape", "rule", "name"),
    [
        ("sae", "topk", "topk"), ("sae", "relu", "standard"), ("sae", "gated", "gated"), ("sae", "jumprelu", "jumprelu"),
        ("sae", "batch_topk", "jumprelu"), ("transcoder", "relu", "transcoder"), ("skip", "relu", "skip_transcoder"),
        ("transcoder", "jumprelu", "jumprelu_transcoder"), ("skip", "batch_topk", "jumprelu_skip_transcoder"),
    ],
)  # fmt: skip
def test_what_saelens_can_express_has_its_name(tmp_path, shape, rule, name):
    made(shape, rule).save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["architecture"] == name
    assert cfg["apply_b_dec_to_input"] is (shape == "sae") and cfg["rescale_acts_by_decoder_norm"] is False


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in ("sae", "unnamed")])
@pytest.mark.parametrize("rule", RULES)
def test_what_saelens_cannot_express_has_a_name_that_it_refuses(tmp_path, shape, rule):
    made(shape, rule).save(tmp_path)
    name = json.loads((tmp_path / "cfg.json").read_text())["architecture"]
    expressed = shape in ("transcoder", "skip") and rule not in ("topk", "gated")
    assert name.startswith("unweave_") is not expressed
    assert (name in THERE) is expressed


@pytest.mark.parametrize("shape", ["sae", "transcoder"])
def test_thresholds_below_zero_are_kept_and_not_given_to_saelens(tmp_path, shape):
    own = made(shape, "jumprelu")
    own.threshold.data[3] = -0.5
    own.save(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"].startswith("unweave_jumprelu")
    x = inputs(own)
    assert (outputs(own, x)[0][0][:, 3] < 0).any()
    assert torch.equal(outputs(Dictionary.load(tmp_path), x)[0][0], outputs(own, x)[0][0])


@pytest.mark.parametrize("shape", ["sae", "transcoder", "skip"])
@pytest.mark.parametrize("rule", RULES)
def test_without_our_config_the_folder_still_computes_the_same(tmp_path, shape, rule):
    own, x = made(shape, rule), inputs(made(shape, rule))
    own.save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    for name in ("unweave_config", "unweave"):
        del cfg["metadata"][name]
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    if cfg["architecture"].startswith("unweave_gated"):
        with pytest.raises(UserError, match="unweave_config"):
            Dictionary.load(tmp_path)
        return
    again = Dictionary.load(tmp_path)
    assert again.sites == own.sites
    for ours, theirs in zip(outputs(own, x)[0], outputs(again, x)[0], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rule", ["relu", "topk", "gated", "jumprelu"])
def test_an_sae_that_does_not_subtract_b_dec_is_folded(tmp_path, rule):
    own = made("sae", rule, dtype=torch.float64)
    own.save(tmp_path)
    path = tmp_path / "cfg.json"
    cfg = json.loads(path.read_text())
    del cfg["metadata"]["unweave_config"]
    path.write_text(json.dumps({**cfg, "apply_b_dec_to_input": False}))
    again, x = Dictionary.load(tmp_path), inputs(own)[A]
    shifted = outputs(own, {A: x + own.b_dec})[0][0]  # ours subtracts what is added here
    assert_close(again.encode(x).dense(24), shifted, rtol=1e-10, atol=1e-10)
    assert_close(again(x), shifted @ own.W_dec + own.b_dec, rtol=1e-10, atol=1e-10)


def test_what_is_folded_into_sixteen_bits_becomes_float32(tmp_path):
    own = made("sae", "relu", dtype=torch.bfloat16)
    own.save(tmp_path)
    path = tmp_path / "cfg.json"
    cfg = json.loads(path.read_text())
    del cfg["metadata"]["unweave_config"]
    path.write_text(json.dumps({**cfg, "apply_b_dec_to_input": False}))
    again, x = Dictionary.load(tmp_path), inputs(own)[A].double()
    pre = x @ own.W_enc.double().T + own.b_enc.double()
    assert_close(again.encode(x.float()).dense(24).double(), pre.relu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescale", [True, False])
def test_a_checkpoint_of_batchtopk_is_its_threshold(tmp_path, architecture, rescale):
    own = made("sae", "topk", dtype=torch.float64)
    weights = {name: tensor.clone() for name, tensor in own.named_parameters()}
    weights |= {"W_enc": own.W_enc.T.contiguous(), "topk_threshold": torch.tensor(0.4, dtype=torch.float64)}
    save_file(weights, tmp_path / "sae_weights.safetensors")
    cfg = {"architecture": architecture, "d_in": 12, "d_sae": 24, "k": 3.0, "rescale_acts_by_decoder_norm": rescale,
           "apply_b_dec_to_input": True, "matryoshka_widths": [6, 24], "metadata": {"hook_name": A}}  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    again, x = Dictionary.load(tmp_path), inputs(own)[A]
    assert (again.config.activation, again.config.k) == ("batch_topk", 3)
    assert again.config.prefixes == ((6, 24) if architecture.startswith("m") else (24,))
    norm = own.W_dec.norm(dim=1) if rescale else torch.ones(24, dtype=torch.float64)
    pre = ((x - own.b_dec) @ own.W_enc.T + own.b_enc) * norm
    codes = pre * (pre > 0.4)
    assert_close(again.encode(x).dense(24), codes, rtol=1e-10, atol=1e-10)
    assert_close(again(x), (codes / norm) @ own.W_dec + own.b_dec, rtol=1e-10, atol=1e-10)


def test_the_scaling_of_a_checkpoint_is_folded(tmp_path):
    own = made("sae", "jumprelu", dtype=torch.float64)
    own.save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    del cfg["metadata"]["unweave_config"]
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, "normalize_activations": "expected_average_only_in"}))
    with pytest.raises(UserError, match="normalize_activations"):
        Dictionary.load(tmp_path)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 2.5, "has_whitening": false}')
    again, x = Dictionary.load(tmp_path), inputs(own)[A]
    codes, flat = outputs(own, {A: x * 2.5})[0]
    assert_close(again.encode(x).dense(24), codes, rtol=1e-10, atol=1e-10)
    assert_close(again(x), flat / 2.5, rtol=1e-10, atol=1e-10)


def test_a_cfg_of_before_version_6_is_read(tmp_path):
    own = made("sae", "jumprelu", dtype=torch.float64)
    own.save(tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    weights |= {"log_threshold": weights.pop("threshold").log(), "scaling_factor": torch.ones(24, dtype=torch.float64)}
    save_file(weights, tmp_path / "sae_weights.safetensors")
    old = {"architecture": "jumprelu", "hook_point": A, "d_in": 12, "d_sae": 24, "normalize_activations": False}
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    again, x = Dictionary.load(tmp_path), inputs(own)
    assert again.read == A
    assert_close(again(x), own(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["abstopk", "matching_pursuit", "temporal"])
def test_architectures_that_no_rule_expresses_are_refused_by_name(tmp_path, name):
    made().save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, "architecture": name}))
    with pytest.raises(UserError, match=name):
        Dictionary.load(tmp_path)


@pytest.mark.parametrize("changes", [
    {"architecture": "standard"}, {"d_sae": 23}, {"d_in": 13}, {"apply_b_dec_to_input": False}, {"k": 5},
    {"normalize_activations": "layer_norm"},
])  # fmt: skip
def test_a_cfg_that_contradicts_our_config_is_a_user_error(tmp_path, changes):
    made().save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, **changes}))
    with pytest.raises(UserError, match=next(iter(changes))):
        Dictionary.load(tmp_path)


@pytest.mark.parametrize("changes", [
    {"latents": 23}, {"latents": True}, {"latents": 10**30}, {"k": 0}, {"k": 1.5}, {"site": "a"}, {"site": [1]},
    {"site": [A, "b"]}, {"across": "both"}, {"activation": ["topk"]}, {"activation": "gated"}, {"skip": True}, {"skip": 1},
    {"matryoshka": [4, 2]}, {"matryoshka": ["4"]}, {"later": 1}, {"widths": {}}, {"widths": {A: 13}}, {"widths": {A: -1}},
])  # fmt: skip
def test_a_config_that_contradicts_the_tensors_is_a_user_error(tmp_path, changes):
    made().save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    cfg["metadata"]["unweave_config"] |= changes
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(UserError):
        Dictionary.load(tmp_path)


def test_only_forms_that_can_be_written_are_written(tmp_path):
    for name, form in formats().items():
        if form.save is None:
            with pytest.raises(UserError, match="only read"):
                made().save(tmp_path / name, name)
