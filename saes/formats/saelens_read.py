"""Reading the folders of SAELens: those that we write (saelens.py), and its own, of v6 and older, finished or checkpoints.

A dictionary of ours names its config, which must agree with the tensors. Of another's, `architecture` names the rule:

* standard, topk, gated, jumprelu, transcoder, skip_transcoder, jumprelu_transcoder, jumprelu_skip_transcoder;
* batchtopk and matryoshka_batchtopk, which only checkpoints of training have: `topk_threshold` is the threshold.

What is folded, exactly: `apply_b_dec_to_input` false (build.py), the norms of decoder rows where `rescale_acts_by_decoder_norm` says
that they multiply pre-activations, and a scaling of the activations where the checkpoint has its factor
(`activation_scaler.json`). The token ids of `exclude_special_tokens` and the first position of `seqpos_slice` become the exclusion
rule (keep.py). `reshape_activations` hook_z only flattens heads, which our activations of that site are already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..dictionary import Dictionary
from ..dictionary_config import as_sites
from ..errors import UserError
from ..keep import KeepRule
from .build import (
    NOTHING,
    UNNAMED,
    Given,
    check_shapes,
    constant,
    factor,
    finished,
    in_decoder_norms,
    scaled,
    single,
    turned,
)
from .files import absent, plain, read_file, read_object, whole
from .saelens import ARCHITECTURES, OWN, architecture_of
from .shape import from_json

RULES = {
    "standard": "relu",
    "topk": "topk",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "batchtopk": "batch_topk",
    "matryoshka_batchtopk": "batch_topk",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
REFUSED = {
    "abstopk": "it keeps latents by size whatever their sign, which no rule here does",
    "matching_pursuit": "it encodes in steps, each of which looks at what the last one left",
    "temporal": "it encodes a token from those before it",
}
BIASES = {"gated": ("b_gate", "r_mag", "b_mag"), "jumprelu": ("b_enc", "threshold"), "batch_topk": ("b_enc",)}
WEIGHTS = "sae_weights.safetensors"


def load(folder: Path, given: Given = NOTHING) -> Dictionary:
    """Read a folder; UserError when it is missing, damaged, or of an architecture that cannot be expressed here."""
    cfg = read_object(folder / "cfg.json", "the cfg.json of a dictionary folder")
    try:
        return _load(folder, cfg if isinstance(cfg.get("metadata"), dict) else _modern(cfg), given)
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"expected a config, sites and weights that fit together in {folder}; something is missing or malformed ({error!r})"
        ) from error


def _load(folder: Path, cfg: dict[str, Any], given: Given) -> Dictionary:
    architecture = cfg.get("architecture")
    if architecture in list(REFUSED):
        raise UserError(
            f"{folder} is of SAELens' architecture {architecture}: {REFUSED[architecture]}; it is not loaded"
        )
    ours = str(architecture).startswith(OWN)
    if not ours and architecture not in list(RULES):
        raise UserError(f"expected an architecture of {', '.join(RULES)} in {folder}; got {str(architecture)[:60]!r}")
    metadata = cfg["metadata"]
    tensors = read_file(folder / WEIGHTS, "dictionary weights")
    if metadata.get("unweave_config") is not None:
        return _own(folder, cfg, tensors)
    if ours and architecture not in ARCHITECTURES.values():
        raise UserError(
            f"expected metadata.unweave_config in {folder}, since it is a {architecture}; cfg.json is damaged"
        )
    return _foreign(folder, cfg, tensors, given)


def _own(folder: Path, cfg: dict[str, Any], found: dict[str, Any]) -> Dictionary:
    """A dictionary that we wrote: as its config says, which must agree with the rest."""
    metadata = cfg["metadata"]
    config, widths = from_json(metadata["unweave_config"], f"{folder / 'cfg.json'}")
    tensors = plain(found, folder / WEIGHTS, found)
    if config.activation == "gated" and "b_gate" in tensors:
        tensors["b_enc"] = tensors.pop("b_gate")
    tensors["W_enc"] = turned(tensors["W_enc"])
    one_dtype(tensors, folder)
    dictionary = finished(config, tensors, folder, checked(metadata.get("unweave") or {}), widths)
    extra = sorted(set(tensors) - {name for name, _ in dictionary.named_parameters()})
    wanted = {"architecture": architecture_of(dictionary), "d_in": dictionary.d_in, "d_sae": config.latents}
    wanted |= {"d_out": dictionary.d_out} if "d_out" in cfg else {}
    wanted |= {"k": config.k} if "k" in cfg else {}
    wanted |= {"apply_b_dec_to_input": dictionary.is_sae, "normalize_activations": "none"}
    for name, value in wanted.items():
        if cfg.get(name) != value or extra:
            raise UserError(
                f"expected {name} = {value!r} in {folder / 'cfg.json'} and no other tensors, as its unweave_config says; got "
                f"{str(cfg.get(name))[:60]!r}{' and ' + ', '.join(extra)[:100] if extra else ''}; the folder was changed: remove "
                "metadata.unweave_config to read it as SAELens would"
            )
    return dictionary


def _foreign(folder: Path, cfg: dict[str, Any], found: dict[str, Any], given: Given) -> Dictionary:
    architecture, metadata, path = cfg["architecture"], cfg["metadata"], folder / WEIGHTS
    rule = RULES.get(architecture, "topk")
    transcoder, skip = "transcoder" in architecture, "skip" in architecture
    found = _renamed(found, rule)
    names = ["W_enc", "W_dec", "b_dec", *BIASES.get(rule, ("b_enc",)), *(["W_skip"] if skip else [])]
    scalar = ["topk_threshold"] if rule == "batch_topk" else []
    absent(found, path, [*names, *scalar])
    tensors = plain(found, path, names)
    one_dtype(tensors, folder)
    tensors["W_enc"] = turned(tensors["W_enc"])
    if rule == "gated":
        tensors["b_enc"] = tensors.pop("b_gate")
    if scalar:
        threshold = plain(found, path, scalar)["topk_threshold"].reshape(())
        tensors["threshold"] = constant(tensors["b_enc"], float(threshold), path)
    check_shapes(tensors, path)
    _check_sizes(cfg, tensors, folder)
    tensors = _as_run(cfg, tensors, folder, transcoder)
    centred = cfg.get("apply_b_dec_to_input", not transcoder)
    if type(centred) is not bool or (centred and transcoder):
        raise UserError(
            f"expected apply_b_dec_to_input as {not transcoder} in {folder}; got {centred!r}; mend cfg.json"
        )
    ours = checked(metadata.get("unweave") or {})
    dictionary = single(
        folder,
        tensors,
        rule,
        given,
        k=_k(cfg, metadata, rule, folder),
        site=as_sites(metadata.get("hook_name")),
        site_out=as_sites(metadata.get("hook_name_out") if transcoder else None),
        centred=centred,
        transcoder=transcoder,
        matryoshka=_prefixes(cfg, folder) if architecture == "matryoshka_batchtopk" else (),
        metadata=ours or {"saelens": metadata, **excluded(metadata)},
    )
    if not dictionary.is_single:
        raise UserError(f"expected one hook_name in {folder}; got {', '.join(dictionary.sites)[:100]}; mend cfg.json")
    if transcoder and architecture.startswith(OWN) and dictionary.write in UNNAMED:
        raise UserError(f"expected a hook_name_out besides hook_name in {folder}, which is a transcoder; mend cfg.json")
    return dictionary


def _renamed(found: dict[str, Any], rule: str) -> dict[str, Any]:
    """Names of today for those of older versions; a scaling factor of ones says nothing and goes."""
    found = dict(found)
    factor_of = found.get("scaling_factor")
    if isinstance(factor_of, Tensor) and factor_of.is_floating_point() and bool((factor_of == 1).all()):
        found.pop("scaling_factor")
    old = found.get("log_threshold")
    if rule == "jumprelu" and isinstance(old, Tensor) and old.is_floating_point() and "threshold" not in found:
        found["threshold"] = found.pop("log_threshold").exp()
    return found


def _as_run(cfg: dict[str, Any], tensors: dict[str, Tensor], folder: Path, transcoder: bool) -> dict[str, Tensor]:
    """The weights with everything folded in that SAELens does around them."""
    normalize = cfg.get("normalize_activations") or "none"
    if normalize == "expected_average_only_in" and not transcoder and (folder / "activation_scaler.json").exists():
        scaler = read_object(folder / "activation_scaler.json", "the scaling of a checkpoint's activations")
        if not scaler.get("has_whitening"):
            times = factor(scaler.get("scaling_factor"), folder / "activation_scaler.json")
            tensors, normalize = scaled(tensors, times, times), "none"
    reshape = cfg.get("reshape_activations") or "none"
    for key, value, wanted in (
        ("normalize_activations", normalize, ("none",)),
        ("reshape_activations", reshape, ("none", "hook_z")),
    ):
        if value not in wanted:
            raise UserError(
                f"expected {key} = {' or '.join(wanted)} in {folder}; got {str(value)[:60]!r}, which changes each token in a way "
                "that weights cannot hold; fold it in where it was made"
            )
    rescale = cfg.get("rescale_acts_by_decoder_norm", False)
    known = cfg["architecture"] in ("topk", "batchtopk", "matryoshka_batchtopk")
    return in_decoder_norms(tensors) if rescale and known else tensors


def _check_sizes(cfg: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    latents, d_in = tensors["W_enc"].shape
    there = {"d_in": d_in, "d_sae": latents, "d_out": tensors["W_dec"].shape[1]}
    for name, size in there.items():
        if (name in cfg or name != "d_out") and whole(cfg.get(name), name, folder / "cfg.json") != size:
            raise UserError(
                f"expected {name} = {size} in {folder / 'cfg.json'}, as the weights have; got {cfg[name]}; the file is damaged"
            )


def _k(cfg: dict[str, Any], metadata: dict[str, Any], rule: str, folder: Path) -> int:
    """The k of the rule; where it has none, how many latents are active on a token if that is told, else 0."""
    if rule == "topk":
        return _within(whole(cfg.get("k"), "k", folder / "cfg.json"), cfg, folder)
    details = metadata.get("training_architecture_details")
    told = cfg.get("k"), details.get("k") if isinstance(details, dict) else None, metadata.get("l0")
    return next((round(value) for value in told if isinstance(value, int | float) and 1 <= value <= 1 << 48), 0)


def _within(k: int, cfg: dict[str, Any], folder: Path) -> int:
    if k > cfg["d_sae"]:
        raise UserError(f"expected k of at most the {cfg['d_sae']} latents in {folder / 'cfg.json'}; got {k}; mend it")
    return k


def _prefixes(cfg: dict[str, Any], folder: Path) -> tuple[int, ...]:
    widths = cfg.get("matryoshka_widths")
    if not isinstance(widths, list):
        raise UserError(f"expected matryoshka_widths in {folder / 'cfg.json'}; got {str(widths)[:60]!r}; mend it")
    found = tuple(whole(width, "a width of matryoshka_widths", folder / "cfg.json") for width in widths)
    return found[:-1] if found and found[-1] == cfg["d_sae"] else found


def one_dtype(tensors: dict[str, Tensor], folder: Path) -> None:
    """UserError unless all weights are of one type, as SAELens and we write them."""
    dtypes = sorted({str(tensor.dtype) for tensor in tensors.values()})
    if len(dtypes) > 1:
        raise UserError(
            f"expected weights of one floating-point dtype in {folder}; got {', '.join(dtypes)}; make it anew"
        )


def checked(metadata: dict[str, Any]) -> dict[str, Any]:
    """Our metadata, after reading what the rest of the package takes from it; malformed entries raise here."""
    rule = KeepRule.from_dict(metadata.get("keep", {}))
    if not all(limit == limit and limit > 0 for limit in rule.max_norm.values()):
        raise TypeError(f"norm limits must be numbers above zero, got {dict(rule.max_norm)}")
    strings = [metadata["model"]["name"], metadata["model"]["fingerprint"]] if "model" in metadata else []
    if "shards" in metadata:
        strings.append(metadata["shards"])
        float(metadata["held_out"])
    if not all(isinstance(value, str) for value in strings):
        raise TypeError(f"names and fingerprints must be strings, got {strings}")
    return metadata


def excluded(metadata: dict[str, Any]) -> dict[str, Any]:
    """The exclusion rule that SAELens' metadata tell, as ours keep it; {} for none, and for "all special tokens" without their ids."""
    told, place = metadata.get("exclude_special_tokens"), metadata.get("seqpos_slice")
    first = place[0] if isinstance(place, list | tuple) and place else None
    positions = first if type(first) is int and first > 0 else 0
    tokens = told if isinstance(told, list) else []
    rule = KeepRule.from_dict({"drop_positions": positions, "drop_tokens": tokens})
    return {} if rule == KeepRule() else {"keep": rule.to_dict()}


def _modern(cfg: dict[str, Any]) -> dict[str, Any]:
    """A flat cfg of before v6 as v6 has it."""
    if "metadata" in cfg:
        raise UserError(
            f"expected metadata of a dictionary as an object; got {str(cfg['metadata'])[:60]!r}; mend cfg.json"
        )
    renamed = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    new = {"architecture": "standard", "apply_b_dec_to_input": True}
    new |= {renamed.get(name, name): value for name, value in cfg.items()}
    arguments = new.get("activation_fn_kwargs")
    if new.get("activation_fn") == "topk" and isinstance(arguments, dict):
        new |= {"architecture": "topk", "k": arguments.get("k")}
    elif new.get("activation_fn", "relu") not in ("relu", "jumprelu"):
        raise UserError(
            f"expected relu or topk as activation_fn of a cfg.json of before v6; got {new['activation_fn']!r}"
        )
    if new.get("normalize_activations") is False:
        new["normalize_activations"] = "none"
    elif new.get("normalize_activations") is True:
        new["normalize_activations"] = "expected_average_only_in"
    about = (
        "model_name",
        "hook_name",
        "context_size",
        "prepend_bos",
        "dataset_path",
        "sae_lens_version",
        "neuronpedia_id",
        "exclude_special_tokens",
        "seqpos_slice",
    )
    new["metadata"] = {name: new[name] for name in about if name in new}
    return new
