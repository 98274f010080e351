"""Dictionaries of several sites as other libraries keep them, each with the definition of what it computes, in float64."""

import json
import math
from pathlib import Path

import torch
from saes_formats_files import F64, LAYERS, D, F, K, Sample, jump, parts, randn, topk
from safetensors.torch import save_file


def crosscoder_fork(folder: Path, norm: int = 1, threshold: bool = True) -> Sample:
    W, b, V, c = randn(LAYERS, D, F), randn(F, seed=1), randn(LAYERS, F, D, seed=2), randn(LAYERS, D, seed=3)
    state = {"encoder.weight": W, "encoder.bias": b, "decoder.weight": V, "decoder.bias": c,
             "code_normalization_id": torch.tensor(norm), "mean": torch.full((LAYERS, D), torch.nan)}  # fmt: skip
    x = randn(40, LAYERS, D, seed=20)
    codes = (torch.einsum("tld,ldf->tf", x, W) + b).relu()
    if threshold:
        state |= {"k": torch.tensor(K), "threshold": torch.tensor(0.8)}
        scale = {1: V.norm(dim=2).sum(0), 2: V.norm(dim=(0, 2)), 4: torch.ones(F)}[norm]
        codes = codes * (codes * scale > torch.tensor(0.8).double())
    torch.save(state, folder / "ae.pt")
    return Sample(folder, x, codes, torch.einsum("tf,lfd->tld", codes, V) + c)


def stacked(codes, decoders, biases):
    """Of a cross-layer transcoder: codes by layer [token latent], decoders[i][j] from layer i to layer i + j, biases by layer."""
    out = [c.expand(len(codes[0]), D).clone() for c in biases]
    for i, rows in enumerate(decoders):
        for j, V in enumerate(rows):
            out[i + j] += codes[i] @ V
    return torch.cat(codes, 1), torch.stack(out, 1)


def gemma_scope_2_clt(folder: Path) -> Sample:
    x, codes, decoders, biases = randn(40, LAYERS, D, seed=20), [], [], []
    for layer in range(LAYERS):
        W, b, _, c, t = parts(seed=10 * layer)
        V = randn(F, LAYERS, D, seed=layer + 50)
        V[:, :layer] = 0
        tensors = {"w_enc": W, "b_enc": b, "w_dec": V, "b_dec": c, "threshold": t}
        save_file(tensors, folder / f"layer_{layer}_width_262k_l0_medium.safetensors")
        codes.append(jump(x[:, layer] @ W + b, t))
        decoders.append([V[:, j] for j in range(layer, LAYERS)])
        biases.append(c)
    return Sample(folder, x, *stacked(codes, decoders, biases))


def circuit_tracer_clt(folder: Path, threshold=True) -> Sample:
    x, codes, decoders, biases = randn(40, LAYERS, D, seed=20), [], [], []
    for layer in range(LAYERS):
        W, b, _, c, t = parts(seed=10 * layer)
        V = randn(F, LAYERS - layer, D, seed=layer + 50)
        tensors = {f"W_enc_{layer}": W.T.contiguous(), f"b_enc_{layer}": b, f"b_dec_{layer}": c}
        save_file(
            {**tensors, **({f"threshold_{layer}": t} if threshold else {})}, folder / f"W_enc_{layer}.safetensors"
        )
        save_file({f"W_dec_{layer}": V}, folder / f"W_dec_{layer}.safetensors")
        codes.append(jump(x[:, layer] @ W + b, t if threshold else 0))
        decoders.append(list(V.unbind(1)))
        biases.append(c)
    hooks = "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    (folder / "config.yaml").write_text("model_kind: cross_layer_transcoder\nmodel_name: m\n" + hooks)
    return Sample(folder, x, *stacked(codes, decoders, biases))


def llamascopium_crosscoder(folder: Path) -> Sample:
    W, b, V, c = randn(LAYERS, D, F), randn(LAYERS, F, seed=1), randn(LAYERS, F, D, seed=2), randn(LAYERS, D, seed=3)
    hooks = [f"blocks.{i}.hook_resid_post" for i in range(LAYERS)]
    norms = torch.tensor([2.0, 3.0, 4.0], dtype=F64)
    tensors = {"W_E": W, "b_E": b, "W_D": V, "b_D": c}
    tensors |= {
        f"dataset_average_activation_norm.{hook}": norm.clone() for hook, norm in zip(hooks, norms, strict=True)
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    cfg = {
        "sae_type": "crosscoder",
        "d_model": D,
        "act_fn": "relu",
        "hook_points": hooks,
        "norm_activation": "dataset-wise",
    }
    (folder / "config.json").write_text(json.dumps(cfg))
    x, scale = randn(40, LAYERS, D, seed=20), (math.sqrt(D) / norms)[:, None]
    codes = (torch.einsum("tld,ldf->tf", x * scale, W) + b.sum(0)).relu()
    return Sample(folder, x, codes, (torch.einsum("tf,lfd->tld", codes, V) + c) / scale)


def llamascopium_clt(folder: Path, rule="jumprelu", dataset=True) -> Sample:
    W, b, t = randn(LAYERS, D, F), randn(LAYERS, F, seed=1), randn(LAYERS, F, seed=2).abs()
    to = [randn(i + 1, F, D, seed=30 + i) for i in range(LAYERS)]
    c = [randn(D, seed=40 + i) for i in range(LAYERS)]
    ins, outs = ([f"blocks.{i}.{hook}" for i in range(LAYERS)] for hook in ("hook_resid_mid", "hook_mlp_out"))
    norms = torch.tensor([2.0, 3.0, 4.0], dtype=F64)
    tensors = {
        "W_E": W,
        "b_E": b,
        **{f"W_D.{i}": V for i, V in enumerate(to)},
        **{f"b_D.{i}": v for i, v in enumerate(c)},
    }
    tensors |= {
        f"dataset_average_activation_norm.{hook}": n.clone()
        for hooks in (ins, outs)
        for hook, n in zip(hooks, norms, strict=True)
    }
    tensors |= {"activation_function.log_jumprelu_threshold": t.log()} if rule == "jumprelu" else {}
    save_file(tensors, folder / "sae_weights.safetensors")
    cfg = {"sae_type": "clt", "d_model": D, "act_fn": rule, "top_k": K, "hook_points_in": ins, "hook_points_out": outs,
           "norm_activation": "dataset-wise" if dataset else "inference"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(cfg))
    x = randn(40, LAYERS, D, seed=20)
    scale = (math.sqrt(D) / norms)[:, None] if dataset else torch.ones(LAYERS, 1, dtype=F64)
    codes, shown = [], []
    for i in range(LAYERS):
        norm = torch.stack([to[j][i].square().sum(1) for j in range(i, LAYERS)]).sum(0).sqrt()
        pre = ((x[:, i] * scale[i]) @ W[i] + b[i]) * norm
        seen = {"topk": topk(pre), "jumprelu": jump(pre, t[i]), "relu": pre.relu()}[rule]
        codes.append(seen / norm)
        shown.append(seen if rule == "topk" else seen / norm)
    decoders = [[to[j][i] for j in range(i, LAYERS)] for i in range(LAYERS)]
    _, out = stacked(codes, decoders, c)
    return Sample(folder, x, torch.cat(shown, 1), out / scale)
