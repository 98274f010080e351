"""Writing the folder of SAELens v6, which is our own: `cfg.json` and `sae_weights.safetensors`, `W_enc` as `[d latent]`.

    ours                  SAE          transcoder                                      others
    relu                  standard     transcoder, skip_transcoder                     unweave_relu_...
    jumprelu, batch_topk  jumprelu     jumprelu_transcoder, jumprelu_skip_transcoder   unweave_jumprelu_...
    topk                  topk         unweave_topk_transcoder, ..._skip_transcoder    unweave_topk_...
    gated                 gated        unweave_gated_transcoder, ..._skip_transcoder   unweave_gated_...

Whatever SAELens can express has its name there and loads there as it is. The rest has a name that it refuses, rather than one
that it would run as something else: topk and gated transcoders, everything of several sites (`..._crosscoder`,
`..._cross_layer`, `..._shared`), and thresholds below zero (there ReLU comes before the threshold). `metadata` holds the whole config
(`unweave_config`) and our metadata (`unweave`), so that reading gives back the same Dictionary; saelens_read.py reads both.

What SAELens knows of the exclusion rule (keep.py) is told in its words, so that its evaluation leaves out the same tokens:
`exclude_special_tokens`, a list of ids, and `seqpos_slice`, from the first position kept. It has no word for limits on norms.

`apply_b_dec_to_input` and `rescale_acts_by_decoder_norm` are always written: SAELens' defaults differ between versions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..io import write_json, write_tensors
from .shape import to_json

if TYPE_CHECKING:
    from ..dictionary import Dictionary

OWN = "unweave_"
VERSION = "6.0.0"  # of SAELens, whose form this is: without it, SAELens takes the folder for an older one and forgets the metadata
ARCHITECTURES = {
    (False, False): "topk",
    (True, False): OWN + "topk_transcoder",
    (True, True): OWN + "topk_skip_transcoder",
}
"""The TopK ones of one site, by whether they are a transcoder and have a skip path."""

SAES = {"topk": "topk", "relu": "standard", "gated": "gated", "batch_topk": "jumprelu", "jumprelu": "jumprelu"}
TRANSCODERS = {"relu": "", "batch_topk": "jumprelu_", "jumprelu": "jumprelu_"}
SEVERAL = {"together": "crosscoder", "cross_layer": "cross_layer", "shared": "shared"}


def save(dictionary: Dictionary, folder: Path) -> None:
    """Write both files, the weights first, so that a folder with `cfg.json` is whole."""
    tensors: dict[str, Tensor] = {**dict(dictionary.named_parameters()), "W_enc": dictionary.W_enc.T}
    if dictionary.config.activation == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    write_tensors(folder / "sae_weights.safetensors", tensors)
    write_json(folder / "cfg.json", cfg_of(dictionary))


def architecture_of(dictionary: Dictionary) -> str:
    """SAELens' name for it, or one that SAELens refuses."""
    config = dictionary.config
    if not dictionary.is_single:
        return f"{OWN}{config.activation}_{SEVERAL[config.across]}"
    below = dictionary.threshold is not None and bool((dictionary.threshold < 0).any())
    if not config.is_transcoder:
        return OWN + config.activation if below else SAES[config.activation]
    kind = "skip_transcoder" if config.skip else "transcoder"
    if below or config.activation not in TRANSCODERS:
        return f"{OWN}{config.activation}_{kind}"
    return TRANSCODERS[config.activation] + kind


def cfg_of(dictionary: Dictionary) -> dict[str, Any]:
    """What goes into `cfg.json`."""
    config, model = dictionary.config, dictionary.metadata.get("model") or {}
    cfg: dict[str, Any] = {
        "architecture": architecture_of(dictionary),
        "d_in": dictionary.d_in,
        "d_sae": config.latents,
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.is_sae,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "model_name": model.get("name"),
            "hook_name": config.read if len(config.site) <= 1 else list(config.site),
            "context_size": dictionary.metadata.get("context"),
            "prepend_bos": model.get("bos") is not None,
            "exclude_special_tokens": list(dictionary.keep_rule.drop_tokens) or False,
            "seqpos_slice": [dictionary.keep_rule.drop_positions or None, None],
            "unweave": dictionary.metadata,
            "unweave_config": to_json(config, dictionary.layout),
        },
    }
    if config.activation == "topk":
        cfg["k"] = config.k
    if not config.is_sae:
        cfg["d_out"] = dictionary.d_out
    if config.is_transcoder:
        cfg["metadata"]["hook_name_out"] = config.write if len(config.site_out) <= 1 else list(config.site_out)
    return cfg
