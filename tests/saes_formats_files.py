"""Folders of other libraries as their documentation has them, each with the definition of what it computes, in float64."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

D, F, K, LAYERS = 6, 10, 3, 3
F64 = torch.float64


class Sample(NamedTuple):
    """Where a dictionary lies, `x [token site d]` for it, and what its own library computes: codes and reconstruction."""

    path: Path
    x: torch.Tensor
    codes: torch.Tensor
    out: torch.Tensor


def tensors_of(path: Path) -> dict:
    """What a tensor file holds, as it was written."""
    if path.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def put(path: Path, tensors: dict) -> None:
    """Write a tensor file by its ending."""
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)


def randn(*shape, seed=0):
    return 0.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def topk(pre, k=K):
    best = pre.relu().topk(k)
    return torch.zeros_like(pre).scatter(-1, best.indices, best.values)


def jump(pre, threshold):
    return pre.relu() * (pre > threshold)


def parts(seed=0):
    """W_enc [d latent], b_enc, W_dec [latent d], b_dec, threshold of one SAE."""
    return (
        randn(D, F, seed=seed),
        randn(F, seed=seed + 1),
        randn(F, D, seed=seed + 2),
        randn(D, seed=seed + 3),
        randn(F, seed=seed + 4).abs(),
    )


def sparsify(folder: Path, transcode=False, skip=False) -> Sample:
    W, b, V, c, _ = parts()
    folder = folder / "layers.3.mlp"
    folder.mkdir()
    tensors = {"encoder.weight": W.T.contiguous(), "encoder.bias": b, "W_dec": V, "b_dec": c}
    S = randn(D, D, seed=9) if skip else torch.zeros(D, D, dtype=F64)
    save_file({**tensors, **({"W_skip": S} if skip else {})}, folder / "sae.safetensors")
    cfg = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": F, "k": K, "multi_topk": False,
           "skip_connection": skip, "transcode": transcode, "d_in": D}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(cfg))
    x = randn(40, D, seed=20)
    codes = topk((x if transcode else x - c) @ W + b)
    return Sample(folder, x, codes, codes @ V + c + x @ S.T)


def dictionary_learning(folder: Path, name: str, told=True) -> Sample:
    W, b, V, c, t = parts()
    x = randn(40, D, seed=20)
    linear = {"encoder.weight": W.T, "encoder.bias": b, "decoder.weight": V.T}
    matrices = {"W_enc": W, "b_enc": b, "W_dec": V, "b_dec": c}
    rank = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.3)}
    r, m = randn(F, seed=7), randn(F, seed=8)
    centred, plain = (x - c) @ W, x @ W
    state, codes = {
        "AutoEncoder": ({**linear, "bias": c}, (centred + b).relu()),
        "AutoEncoderNew": ({**linear, "decoder.bias": c}, (plain + b).relu()),
        "GatedAutoEncoder": (
            {"encoder.weight": W.T, "decoder.weight": V.T, "decoder_bias": c, "r_mag": r, "gate_bias": b, "mag_bias": m},
            (centred + b > 0) * (r.exp() * centred + m).relu(),
        ),
        "AutoEncoderTopK": ({**linear, "b_dec": c, **rank}, topk(centred + b)),
        "BatchTopKSAE": ({**linear, "b_dec": c, **rank}, jump(centred + b, torch.tensor(0.3).double())),
        "MatryoshkaBatchTopKSAE": (
            {**matrices, **rank, "group_sizes": torch.tensor([4, 6])}, jump(centred + b, torch.tensor(0.3).double()),
        ),
        "JumpReluAutoEncoder": ({**matrices, "threshold": t}, jump(plain + b, t)),
    }[name]  # fmt: skip
    torch.save({key: tensor.contiguous() for key, tensor in state.items()}, folder / "ae.pt")
    trainer = {
        "dict_class": name,
        "activation_dim": D,
        "dict_size": F,
        "layer": 4,
        "submodule_name": "resid_post_layer_4",
    }
    if told:
        (folder / "config.json").write_text(
            json.dumps({"trainer": trainer | ({"k": K} if "k" in state else {}), "buffer": {}})
        )
    return Sample(folder, x, codes, codes @ V + c)


def gemma_scope(folder: Path) -> Sample:
    W, b, V, c, t = parts()
    folder = folder / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_7"
    folder.mkdir(parents=True)
    np.savez(
        folder / "params.npz", W_enc=W.numpy(), W_dec=V.numpy(), b_enc=b.numpy(), b_dec=c.numpy(), threshold=t.numpy()
    )
    x = randn(40, D, seed=20)
    codes = jump(x @ W + b, t)
    return Sample(folder, x, codes, codes @ V + c)


def gemma_scope_2(folder: Path, kind="transcoder", affine=True) -> Sample:
    W, b, V, c, t = parts()
    folder = folder / f"layer_5_width_16k_l0_small{'_affine' if affine else ''}"
    folder.mkdir()
    S = randn(D, D, seed=9) if affine else torch.zeros(D, D, dtype=F64)
    tensors = {"w_enc": W, "b_enc": b, "w_dec": V, "b_dec": c, "threshold": t}
    save_file({**tensors, **({"affine_skip_connection": S} if affine else {})}, folder / "params.safetensors")
    ends = {
        "transcoder": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
        "resid_post": ("output", "output"),
    }
    hooks = {
        f"hf_hook_point_{end}": f"model.layers.5.{part}" for end, part in zip(("in", "out"), ends[kind], strict=True)
    }
    (folder / "config.json").write_text(
        json.dumps({"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "affine_connection": affine, **hooks})
    )
    x = randn(40, D, seed=20)
    codes = jump(x @ W + b, t)
    return Sample(folder, x, codes, codes @ V + c + x @ S)


def circuit_tracer_plt(folder: Path, rule="relu") -> Sample:
    W, b, V, c, t = parts()
    S = randn(D, D, seed=9)
    tensors = {"W_enc": W.T.contiguous(), "b_enc": b, "W_dec": V, "b_dec": c, "W_skip": S}
    tensors |= {"activation_function.threshold": t} if rule == "jumprelu" else {}
    save_file(tensors, folder / "layer_2.safetensors")
    more = f"activation: topk\nk: {K}\n" if rule == "topk" else ""
    hooks = "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    (folder / "config.yaml").write_text("model_kind: transcoder_set\nmodel_name: m\n" + hooks + more)
    x = randn(40, D, seed=20)
    pre = x @ W + b
    codes = {"relu": pre.relu(), "topk": topk(pre), "jumprelu": jump(pre, t)}[rule]
    return Sample(folder / "layer_2.safetensors", x, codes, codes @ V + c + x @ S.T)


def llama_scope(folder: Path) -> Sample:
    W, b, V, c, _ = parts()
    (folder / "checkpoints").mkdir()
    tensors = {
        "encoder.weight": W.T.contiguous(),
        "encoder.bias": b,
        "decoder.weight": V.T.contiguous(),
        "decoder.bias": c,
    }
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    cfg = {"d_model": D, "d_sae": F, "jump_relu_threshold": 0.5, "dataset_average_activation_norm": {"in": 4.0, "out": 4.0},
           "hook_point_in": "blocks.7.hook_resid_post", "hook_point_out": "blocks.7.hook_resid_post"}  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(cfg))
    x, s = randn(40, D, seed=20), math.sqrt(D) / 4
    codes = jump(s * x @ W + b, 0.5 * s)
    return Sample(folder, x, codes, (codes @ V + c) / s)


def llama_scope_r1(folder: Path) -> Sample:
    W, b, V, c, t = parts()
    tensors = {
        "encoder.weight": W.T.contiguous(),
        "encoder.bias": b,
        "decoder.weight": V.T.contiguous(),
        "decoder.bias": c,
    }
    save_file({**tensors, "log_jumprelu_threshold": t.log()}, folder / "sae_weights.safetensors")
    cfg = {"d_model": D, "expansion_factor": 2, "hook_point_in": "blocks.7.hook_resid_post",
           "dataset_average_activation_norm": {"in": 4.0, "out": 3.0}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(cfg))
    x, s, u = randn(40, D, seed=20), math.sqrt(D) / 4, math.sqrt(D) / 3
    codes = jump(s * x @ W + b, t)
    return Sample(folder, x, codes, (codes @ V + c) / u)


def llamascopium(folder: Path, rule="topk", norms=True, dataset=True) -> Sample:
    W, b, V, c, t = parts()
    tensors = {"W_E": W, "b_E": b, "W_D": V, "b_D": c}
    hook_in, hook_out = "blocks.3.hook_resid_mid", "blocks.3.hook_mlp_out"
    for hook, value in ((hook_in, 5.0), (hook_out, 2.0)):
        tensors[f"dataset_average_activation_norm.{hook}"] = torch.tensor(value, dtype=F64)
    if rule == "jumprelu":
        tensors["activation_function.log_jumprelu_threshold"] = t.log()
    save_file(tensors, folder / "sae_weights.safetensors")
    cfg = {"sae_type": "sae", "d_model": D, "expansion_factor": F / D, "act_fn": rule, "top_k": K, "hook_point_in": hook_in,
           "hook_point_out": hook_out, "sparsity_include_decoder_norm": norms,
           "norm_activation": "dataset-wise" if dataset else "inference"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(cfg))
    x = randn(40, D, seed=20)
    s, u = (math.sqrt(D) / 5, math.sqrt(D) / 2) if dataset else (1.0, 1.0)
    norm = V.norm(dim=1) if norms else torch.ones(F, dtype=F64)
    pre = (s * x @ W + b) * norm
    seen = {"relu": pre.relu(), "topk": topk(pre), "jumprelu": jump(pre, t)}[rule]
    # A top-k is loaded in the unit in which it chooses.
    return Sample(folder, x, seen if rule == "topk" else seen / norm, ((seen / norm) @ V + c) / u)


def saelens(folder: Path, kind: str) -> Sample:
    """As SAELens itself writes it: a checkpoint of batchtopk, an SAE that encodes x, a transcoder, a cfg of before v6."""
    W, b, V, c, t = parts()
    x, r, m, S = randn(40, D, seed=20), randn(F, seed=7), randn(F, seed=8), randn(D, D, seed=9)
    common = {"d_in": D, "d_sae": F, "dtype": "float64", "metadata": {"hook_name": "blocks.2.hook_mlp_in"}}
    norm, centred = V.norm(dim=1), (x - c) @ W + b
    weights, cfg, codes = {
        "batchtopk": (
            {"b_enc": b, "topk_threshold": torch.tensor(0.3, dtype=F64)}, {"rescale_acts_by_decoder_norm": True, "k": 3.0},
            jump(centred * norm, 0.3),
        ),
        "gated": (
            {"b_gate": b, "b_mag": m, "r_mag": r}, {"apply_b_dec_to_input": False},
            (x @ W + b > 0) * (r.exp() * (x @ W) + m).relu(),
        ),
        "jumprelu_skip_transcoder": (
            {"b_enc": b, "threshold": t, "W_skip": S}, {"apply_b_dec_to_input": False, "d_out": D}, jump(x @ W + b, t)
        ),
        "old": ({"b_enc": b, "log_threshold": t.log()}, {"hook_point": "blocks.2.hook_resid_pre"}, jump(centred, t)),
    }[kind]  # fmt: skip
    save_file({"W_enc": W, "W_dec": V, "b_dec": c, **weights}, folder / "sae_weights.safetensors")
    cfg = {**common, "architecture": "jumprelu" if kind == "old" else kind, **cfg}
    if kind == "old":
        del cfg["metadata"]
    if kind == "jumprelu_skip_transcoder":
        cfg["metadata"] |= {"hook_name_out": "blocks.2.hook_mlp_out"}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    out = (codes / norm if kind == "batchtopk" else codes) @ V + c
    return Sample(folder, x, codes, out + x @ S.T if "skip" in kind else out)


def state_dict(folder: Path, kind: str) -> Sample:
    W, b, V, c, _ = parts()
    x, E, G = randn(40, D, seed=20), W.T.contiguous(), V.T.contiguous()
    name, state = {
        "goodfire": ("Llama-3.1-8B-Instruct-SAE-l19.pth", {"encoder_linear.weight": E, "encoder_linear.bias": b,
                     "decoder_linear.weight": G, "decoder_linear.bias": c}),
        "deepseek_r1": ("DeepSeek-R1-SAE-l19.pt", {"encoder.weight": E, "encoder.bias": b, "decoder.weight": G, "decoder.bias": c}),
        "qwen_scope": ("layer19.sae.pt", {"W_enc": E, "b_enc": b, "W_dec": G, "b_dec": c}),
        "openai": ("19.pt", {"encoder.weight": E, "latent_bias": b, "decoder.weight": G, "pre_bias": c, "activation": "ReLU",
                   "stats_last_nonzero": torch.zeros(F, dtype=torch.long), "activation_state_dict": {}}),
    }[kind]  # fmt: skip
    folder = folder / f"SAE-Res-W32K-L0_{K}"
    folder.mkdir()
    torch.save(state, folder / name)
    pre = (x - c if kind == "openai" else x) @ W + b
    codes = topk(pre) if kind == "qwen_scope" else pre.relu()
    return Sample(folder / name, x, codes, codes @ V + c)
