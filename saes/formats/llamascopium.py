"""Llamascopium (OpenMOSS Language-Model-SAEs 2): `config.json` with `sae_type`, and `sae_weights.safetensors`.

| sae_type | W_E | b_E | W_D | b_D |
|---|---|---|---|---|
| sae (and transcoders) | [d latent] | [latent] | [latent d] | [d] |
| crosscoder | [site d latent] | [site latent] | [site latent d] | [site d] |
| clt | [layer d latent] | [layer latent] | W_D.{i} [i + 1, latent d], to layer i from those up to it | b_D.{i} [d] |

pre = W_E x + b_E, summed over the sites of a crosscoder; then relu, topk, or jumprelu with exp(log_jumprelu_threshold). Where
`sparsity_include_decoder_norm` says so, the rule sees pre times the norm of the latent's decoder: thresholds are divided by it, and a
top-k keeps latents in that unit, their decoder rows divided by it. Activations that were multiplied by sqrt(d) / average norm
(`norm_activation` dataset-wise) are folded; `inference` means that they were. No b_D is subtracted.

Refused: token-wise and batch-wise norms, GLU encoders, lorsa and molt, top-k over a batch or over all layers, and crosscoders with
thresholds or top-k, which there choose for each site by itself.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from .build import (
    Given,
    check_shapes,
    configured,
    factor,
    finished,
    in_decoder_norms,
    scaled,
    shifted,
    single,
    turned,
    uniform,
)
from .files import absent, plain, read_file, read_object, whole
from .form import Format, Look

if TYPE_CHECKING:
    from ..dictionary import Dictionary

NORM = "dataset_average_activation_norm."
THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
RULES = ("relu", "topk", "jumprelu")


class Opened(NamedTuple):
    """A folder's config and tensors, the rule, and the sites with what their activations are multiplied by."""

    path: Path
    cfg: dict[str, Any]
    tensors: dict[str, Tensor]
    rule: str
    threshold: Tensor | None
    norms: tuple[list[float], list[float]]
    given: Given
    ins: tuple[str, ...]
    outs: tuple[str, ...]


def holds(seen: Look) -> bool:
    """config.json beside weights whose encoder is called W_E."""
    names = seen.names_of("sae_weights.safetensors") if "config.json" in seen.files else frozenset()
    return "W_E" in names


def load(folder: Path, given: Given) -> Dictionary:
    """Read a folder; see the module header."""
    path = folder / "sae_weights.safetensors"
    cfg = read_object(folder / "config.json", "the config.json of a Llamascopium folder")
    kind = cfg.get("sae_type", "sae")
    rule = _rule(cfg, kind, folder)
    found = read_file(path, "a Llamascopium dictionary")
    ins, outs = _hooks(cfg, kind, folder)
    decoders = [f"W_D.{i}" for i in range(len(ins))] if kind == "clt" else ["W_D"]
    biases = (
        [f"b_D.{i}" for i in range(len(ins))] if kind == "clt" else ["b_D"] if cfg.get("use_decoder_bias", True) else []
    )
    thresholds = [name for name in THRESHOLDS if name in found] if rule == "jumprelu" else []
    if rule == "jumprelu" and len(thresholds) != 1:
        raise UserError(f"expected {THRESHOLDS[0]} in {path}, which is jumprelu; got none; the file is damaged")
    names = ["W_E", "b_E", *decoders, *biases, *thresholds]
    absent(found, path, names, [name for name in found if name.startswith(NORM)])
    tensors = uniform(plain(found, path, names))
    norms = _factors(cfg, found, ins, outs, path)
    log = tensors[thresholds[0]].exp() if thresholds else None
    opened = Opened(path, cfg, tensors, rule, log, norms, given, ins, outs)
    return {"sae": _sae, "crosscoder": _crosscoder, "clt": _clt}[kind](opened)


def _rule(cfg: dict[str, Any], kind: Any, folder: Path) -> str:
    if kind not in ("sae", "crosscoder", "clt"):
        raise UserError(
            f"expected sae_type sae, crosscoder or clt in {folder}; got {str(kind)[:40]!r}, which is no dictionary here"
        )
    rule = str(cfg.get("act_fn", "relu")).lower()
    if rule not in RULES or (kind == "crosscoder" and rule != "relu") or cfg.get("use_glu_encoder"):
        raise UserError(
            f"expected act_fn {'relu' if kind == 'crosscoder' else ', '.join(RULES)} without a GLU encoder in {folder}, a {kind}; got "
            f"{rule[:40]!r}; its choice of latents cannot be expressed here: convert it to jumprelu where it was made"
        )
    if cfg.get("norm_activation", "dataset-wise") not in ("dataset-wise", "inference"):
        raise UserError(
            f"expected norm_activation dataset-wise or inference in {folder}; got {str(cfg['norm_activation'])[:40]!r}, which depends "
            "on each token; it is not loaded"
        )
    return rule


def _hooks(cfg: dict[str, Any], kind: str, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if kind == "sae":
        told: tuple[Any, Any] = [cfg.get("hook_point_in")], [cfg.get("hook_point_out", cfg.get("hook_point_in"))]
    elif kind == "crosscoder":
        told = cfg.get("hook_points"), cfg.get("hook_points")
    else:
        told = cfg.get("hook_points_in"), cfg.get("hook_points_out")
    ins, outs = (_names(names, folder) for names in told)
    if kind != "sae" and (len(ins) < 2 or len(ins) != len(outs)):
        raise UserError(
            f"expected at least two hook points, as many in as out, in {folder}; got {told}; mend config.json"
        )
    return ins, outs


def _names(names: Any, folder: Path) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f"expected the names of hook points in {folder / 'config.json'}; got {str(names)[:80]}; mend it"
        )
    return tuple(names)


def _factors(
    cfg: dict[str, Any], found: dict[str, Any], ins: tuple[str, ...], outs: tuple[str, ...], path: Path
) -> tuple[list[float], list[float]]:
    """What activations are multiplied by at each site that is read and at each that is written."""
    if cfg.get("norm_activation", "dataset-wise") == "inference":
        return [1.0] * len(ins), [1.0] * len(outs)
    width = whole(cfg.get("d_model"), "d_model", path.with_name("config.json"))
    by_site = {}
    for site in {*ins, *outs}:
        if NORM + site not in found:
            raise UserError(f"expected {NORM}{site} in {path}, whose activations were scaled by it; it is missing")
        norm = plain(found, path, [NORM + site])[NORM + site]
        by_site[site] = math.sqrt(width) / factor(float(norm) if norm.numel() == 1 else None, path)
    return [by_site[site] for site in ins], [by_site[site] for site in outs]


def _seen(cfg: dict[str, Any], tensors: dict[str, Tensor], rule: str, path: Path, k: Any) -> dict[str, Tensor]:
    """Tensors in our layout after the decoder norms that the rule looks at."""
    if rule == "topk" and whole(k, "top_k", path.with_name("config.json")) > len(tensors["W_enc"]):
        raise UserError(f"expected top_k of at most the latents in {path.with_name('config.json')}; got {k}; mend it")
    if not cfg.get("sparsity_include_decoder_norm", True) or rule == "relu":
        return tensors
    if rule == "topk":
        return in_decoder_norms(tensors)
    norm = tensors["W_dec"].double().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    limit = tensors["threshold"].double() / norm
    dtype = torch.promote_types(tensors["threshold"].dtype, torch.float32)
    return uniform({**tensors, "threshold": limit.clamp_max(torch.finfo(torch.float32).max / 2).to(dtype)})


def _sae(opened: Opened) -> Dictionary:
    path, cfg, tensors, rule, threshold, norms, given, ins, outs = opened
    ours = {"W_enc": turned(tensors["W_E"]), "b_enc": tensors["b_E"], "W_dec": tensors["W_D"]}
    ours["b_dec"] = tensors["b_D"] if "b_D" in tensors else tensors["W_D"].new_zeros(tensors["W_D"].shape[-1])
    ours |= {} if threshold is None else {"threshold": threshold}
    check_shapes(ours, path)
    ours = _seen(cfg, ours, rule, path, cfg.get("top_k", 50))
    if norms != ([1.0], [1.0]):
        ours = scaled(ours, norms[0][0], norms[1][0])
    return single(
        path,
        ours,
        rule,
        given,
        k=_k(cfg, len(ours["W_enc"])),
        site=ins,
        site_out=outs,
        transcoder=ins != outs,
        metadata={"llamascopium": cfg},
    )


def _k(cfg: dict[str, Any], latents: int) -> int:
    k = cfg.get("top_k", 50)
    return min(k, latents) if type(k) is int and k > 0 else 0


def _crosscoder(opened: Opened) -> Dictionary:
    path, cfg, tensors, rule, _, norms, given, ins, _ = opened
    if tensors["W_E"].ndim != 3 or tensors["W_E"].shape[0] != len(ins):
        raise UserError(
            f"expected W_E of [{len(ins)} d latent] in {path}; got {list(tensors['W_E'].shape)}; it is damaged"
        )
    sites, d, latents = tensors["W_E"].shape
    expect(tensors, {"b_E": (sites, latents), "W_D": (sites, latents, d), "b_D": (sites, d)}, path)
    tensors = uniform(tensors, torch.float32)
    into, out_of = (tensors["W_E"].new_tensor(numbers) for numbers in norms)
    ours = {
        "W_enc": (tensors["W_E"] * into[:, None, None]).permute(2, 0, 1).flatten(1),
        "b_enc": tensors["b_E"].sum(0),
        "W_dec": (tensors["W_D"] / out_of[:, None, None]).permute(1, 0, 2).flatten(1),
        "b_dec": (tensors["b_D"] / out_of[:, None]).flatten(),
    }
    config = configured(
        path, site=given.site or ins, activation=rule, latents=latents, k=given.k or _k(cfg, latents) or 1
    )
    return finished(config, ours, path, {"llamascopium": cfg})


def _clt(opened: Opened) -> Dictionary:
    path, cfg, tensors, rule, threshold, norms, given, ins, outs = opened
    layers = len(ins)
    if tensors["W_E"].ndim != 3 or tensors["W_E"].shape[0] != layers:
        raise UserError(
            f"expected W_E of [{layers} d latent] in {path}; got {list(tensors['W_E'].shape)}; it is damaged"
        )
    _, d, latents = tensors["W_E"].shape
    shapes: dict[str, tuple[int, ...]] = {"b_E": (layers, latents)}
    shapes |= {f"W_D.{i}": (i + 1, latents, d) for i in range(layers)} | {f"b_D.{i}": (d,) for i in range(layers)}
    expect(tensors, shapes, path)
    tensors = uniform(tensors, torch.float32)
    ours = {"W_enc": tensors["W_E"].mT.flatten(0, 1), "b_enc": tensors["b_E"].flatten()}
    ours["W_dec"] = tensors["W_E"].new_zeros(layers * latents, layers * d)
    for writes in range(layers):
        for reads in range(writes + 1):
            rows, columns = slice(reads * latents, (reads + 1) * latents), slice(writes * d, (writes + 1) * d)
            ours["W_dec"][rows, columns] = tensors[f"W_D.{writes}"][reads]
    ours["b_dec"] = torch.cat([tensors[f"b_D.{i}"] / norms[1][i] for i in range(layers)])
    if threshold is not None:
        expect({"threshold": threshold}, {"threshold": (layers, latents)}, path)
        ours["threshold"] = threshold.flatten()
    ours = _seen(cfg, ours, rule, path, cfg.get("top_k", 50))
    ours["W_enc"] = ours["W_enc"] * ours["W_enc"].new_tensor(norms[0]).repeat_interleave(latents)[:, None]
    ours["W_dec"] = ours["W_dec"] / ours["W_dec"].new_tensor(norms[1]).repeat_interleave(d)
    config = configured(
        path,
        site=given.site or ins,
        site_out=given.site_out or (outs if outs != ins else ()),
        across="cross_layer",
        activation=rule,
        latents=layers * latents,
        k=given.k or _k(cfg, latents) or 1,
    )
    return finished(config, ours if not config.is_sae else shifted(ours, 1), path, {"llamascopium": cfg})


def expect(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """UserError for the first tensor of another shape."""
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(
                f"expected {name} of {list(shape)} in {path}; got {list(tensors[name].shape)}; it is damaged"
            )


FORMAT = Format("llamascopium", "config.json and sae_weights.safetensors with W_E", holds, load)
