"""The SAELens v6 folder: `cfg.json` and `sae_weights.safetensors`, in which `W_enc` is `[d latent]`.

A TopK SAE is what SAELens calls `topk`, so such a folder loads there as it is. A TopK transcoder is not expressible there:
it gets an architecture name that SAELens refuses (`unweave_topk_transcoder`, `unweave_topk_skip_transcoder`) rather
than one that it would load and run as something else. `apply_b_dec_to_input` and `rescale_acts_by_decoder_norm` are always
written, since SAELens' defaults for them differ between versions.

Reading accepts these and the `topk` folders that SAELens itself writes; its decoder-norm rescaling (pre-activations
times the decoder norm before the top-k, codes over the norm after it) is folded into the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import DictionaryConfig, as_sites
from ..errors import UserError
from ..io import read_json, read_tensors, write_json, write_tensors
from ..keep import KeepRule

if TYPE_CHECKING:
    from ..dictionary import Dictionary

ARCHITECTURES = {
    (False, False): "topk",
    (True, False): "unweave_topk_transcoder",
    (True, True): "unweave_topk_skip_transcoder",
}


def save(dictionary: Dictionary, folder: Path) -> None:
    """Write both files, the weights first, so that a folder with `cfg.json` is whole."""
    config = dictionary.config
    tensors: dict[str, Tensor] = {**dict(dictionary.named_parameters()), "W_enc": dictionary.W_enc.T}
    write_tensors(folder / "sae_weights.safetensors", tensors)
    write_json(folder / "cfg.json", _cfg(dictionary, config))


def _cfg(dictionary: Dictionary, config: DictionaryConfig) -> dict[str, Any]:
    model = dictionary.metadata.get("model", {})
    cfg: dict[str, Any] = {
        "architecture": ARCHITECTURES[config.is_transcoder, config.skip],
        "d_in": dictionary.d_in,
        "d_sae": config.latents,
        "k": config.k,
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.is_sae,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": model.get("name"),
            "hook_name": config.read,
            "context_size": dictionary.metadata.get("context"),
            "prepend_bos": model.get("bos") is not None,
            "unweave": dictionary.metadata,
        },
    }
    if config.is_transcoder:
        cfg |= {"d_out": dictionary.W_dec.shape[1]}
        cfg["metadata"]["hook_name_out"] = config.write
    return cfg


def load(folder: Path) -> Dictionary:
    """Read a folder; UserError when it is missing, damaged, or of an architecture that this version does not run."""
    from ..dictionary import Dictionary

    cfg = read_json(folder / "cfg.json", "the cfg.json of a dictionary folder")
    known = {name: flags for flags, name in ARCHITECTURES.items()}
    if str(cfg.get("architecture")) not in known:
        raise UserError(f"expected an architecture of {', '.join(known)}; {folder} has {cfg.get('architecture')!r}")
    is_transcoder, skip = known[cfg["architecture"]]
    for key, wanted in (("normalize_activations", "none"), ("apply_b_dec_to_input", not is_transcoder)):
        if cfg.get(key, wanted) != wanted:
            raise UserError(f"expected {key} = {wanted!r} in {folder}; got {cfg[key]!r}; this version cannot run that")
    tensors = read_tensors(folder / "sae_weights.safetensors", "dictionary weights")
    metadata = cfg.get("metadata") or {}
    try:
        config = DictionaryConfig(
            site=as_sites(metadata.get("hook_name")),
            site_out=as_sites(metadata["hook_name_out"] if is_transcoder else None),
            latents=int(cfg["d_sae"]),
            k=int(cfg["k"]),
            skip=skip,
        )
        tensors["W_enc"] = tensors["W_enc"].mT.contiguous()
        if cfg.get("rescale_acts_by_decoder_norm", False):
            tensors = _fold_decoder_norm(tensors)
        ours = _checked(metadata.get("unweave") or {})
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"expected d_sae, k, sites and weights that fit together in {folder}; something is missing or malformed ({error!r})"
        ) from error
    if not all(tensor.is_floating_point() and tensor.dtype == tensors["W_enc"].dtype for tensor in tensors.values()):
        raise UserError(
            f"expected weights of one floating-point dtype in {folder}; got {sorted({str(t.dtype) for t in tensors.values()})}"
        )
    return Dictionary(config, tensors, ours or {"saelens": metadata})


def _checked(metadata: dict[str, Any]) -> dict[str, Any]:
    """Our metadata, after reading what the rest of the package takes from it; malformed entries raise here."""
    KeepRule.from_dict(metadata.get("keep", {}))
    strings = [metadata["model"]["name"], metadata["model"]["fingerprint"]] if "model" in metadata else []
    if "shards" in metadata:
        strings.append(metadata["shards"])
        float(metadata["held_out"])
    if not all(isinstance(value, str) for value in strings):
        raise TypeError(f"names and fingerprints must be strings, got {strings}")
    return metadata


def _fold_decoder_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    norm = tensors["W_dec"].norm(dim=1, keepdim=True)
    # A decoder row of norm zero writes nothing, and its latent is never above zero.
    unit = tensors["W_dec"] / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return {**tensors, "W_enc": tensors["W_enc"] * norm, "b_enc": tensors["b_enc"] * norm[:, 0], "W_dec": unit}
