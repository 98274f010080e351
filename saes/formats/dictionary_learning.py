"""dictionary_learning: `ae.pt` (`checkpoints/ae_{step}.pt`), a state dict, and `config.json`, whose `dict_class` says what it is.

| class | rule | encodes | tensors besides the encoder's and decoder's weights |
|---|---|---|---|
| AutoEncoder | relu | x - bias | bias |
| AutoEncoderNew | relu | x | encoder.bias, decoder.bias |
| GatedAutoEncoder | gated | x - decoder_bias | decoder_bias, gate_bias, mag_bias, r_mag |
| AutoEncoderTopK | topk | x - b_dec | b_dec, k, threshold (unused) |
| BatchTopKSAE | batch_topk | x - b_dec | b_dec, k, threshold (-1 until it is set: then it is ReLU) |
| MatryoshkaBatchTopKSAE | batch_topk | x - b_dec | W_enc [d latent], b_enc, W_dec [latent d], b_dec, k, threshold, group_sizes |
| JumpReluAutoEncoder | jumprelu | x | W_enc [d latent], b_enc, W_dec [latent d], b_dec, threshold |

`encoder.weight` is [latent d] and `decoder.weight` [d latent]. `AutoEncoder.from_pretrained` there rescales latents to decoder rows of
length 1 unless told not to; here they are as stored. A crosscoder of the fork is in crosscoder_fork.py.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..dictionary_config import DictionaryConfig
from ..errors import UserError
from ..io import write_json
from . import crosscoder_fork
from .build import Given, constant, single, turned
from .files import absent, plain, read_file, read_object, whole, write_pickle
from .form import Format, Look
from .note import agreed, note_of, read_note

if TYPE_CHECKING:
    from ..dictionary import Dictionary

LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
MATRICES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
CLASSES: dict[str, tuple[str, bool, dict[str, str], tuple[str, ...]]] = {
    "AutoEncoder": ("relu", True, {**LINEAR, "bias": "b_dec"}, ()),
    "AutoEncoderNew": ("relu", False, {**LINEAR, "decoder.bias": "b_dec"}, ()),
    "GatedAutoEncoder": (
        "gated",
        True,
        {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "decoder_bias": "b_dec", "gate_bias": "b_enc",
         "mag_bias": "b_mag", "r_mag": "r_mag"},
        (),
    ),
    "AutoEncoderTopK": ("topk", True, {**LINEAR, "b_dec": "b_dec"}, ("k", "threshold")),
    "BatchTopKSAE": ("batch_topk", True, {**LINEAR, "b_dec": "b_dec"}, ("k", "threshold")),
    "MatryoshkaBatchTopKSAE": ("batch_topk", True, MATRICES, ("k", "threshold", "group_sizes")),
    "JumpReluAutoEncoder": ("jumprelu", False, {**MATRICES, "threshold": "threshold"}, ()),
}  # fmt: skip
"""Rule, whether it encodes x - b_dec, their names of our tensors, and what it holds besides."""
FILE = re.compile(r"ae(_\d+)?\.pt")
MODULES = {"resid_post": "hook_resid_post", "attention": "attn.hook_out", "mlp": "mlp.hook_out"}


def holds(seen: Look) -> bool:
    """A folder with ae.pt, such a file, or one of its checkpoints."""
    return "ae.pt" in seen.files or FILE.fullmatch(seen.path.name) is not None


def load(path: Path, given: Given) -> Dictionary:
    """Read a folder, or a file of one; see the module header."""
    path = path / "ae.pt" if path.is_dir() else path
    # Checkpoints lie in a folder below the config.
    told = [folder for folder in (path.parent, path.parent.parent) if (folder / "config.json").exists()]
    folder = told[0] if told else path.parent
    found = read_file(path, "a dictionary of dictionary_learning")
    config = read_object(folder / "config.json", "the config.json of dictionary_learning") if told else {}
    trainer = config.get("trainer", {})
    if not isinstance(trainer, dict):
        raise UserError(
            f"expected `trainer` in {folder / 'config.json'} as an object; got {str(trainer)[:60]}; mend it"
        )
    if crosscoder_fork.holds(found):
        return crosscoder_fork.load(path, found, trainer, given)
    name = _class_of(found, trainer, path)
    rule, centred, names, besides = CLASSES[name]
    absent(found, path, [*names, *(item for item in besides if item != "threshold" or rule != "topk")], besides)
    tensors = {names[theirs]: tensor for theirs, tensor in plain(found, path, names).items()}
    if "encoder.weight" in names:
        tensors["W_dec"] = turned(tensors["W_dec"])
    else:
        tensors["W_enc"] = turned(tensors["W_enc"])
    if rule == "batch_topk":
        threshold = plain(found, path, ["threshold"])["threshold"]
        if threshold.numel() != 1:
            raise UserError(f"expected one threshold in {path}; got {list(threshold.shape)}; the file is damaged")
        tensors["threshold"] = constant(tensors["b_enc"], float(threshold), path)
    ours, metadata = read_note(config, folder / "config.json")
    dictionary = single(
        path,
        tensors,
        rule,
        given,
        k=_k(found, trainer, path, folder) if "k" in besides else ours.k if ours else 0,
        site=ours.site if ours else _site(trainer),
        centred=centred,
        matryoshka=_prefixes(found, path, ours) if "group_sizes" in besides else ours.matryoshka if ours else (),
        metadata=metadata or {"dictionary_learning": trainer},
    )
    _check(trainer, dictionary, folder / "config.json")
    return agreed(dictionary, None if any(given) or _rule_lost(ours) else ours, folder / "config.json")


def _rule_lost(ours: DictionaryConfig | None) -> bool:
    """A site_out that only repeats the site is not written."""
    return ours is not None and bool(ours.site_out)


def _class_of(found: dict[str, Any], trainer: dict[str, Any], path: Path) -> str:
    told = trainer.get("dict_class")
    if told is not None:
        if not isinstance(told, str) or told not in CLASSES:
            raise UserError(f"expected a dict_class of {', '.join(CLASSES)} beside {path}; got {str(told)[:60]!r}")
        return told
    fits = [name for name, (_, _, names, besides) in CLASSES.items() if set(found) == {*names, *besides}]
    if len(fits) != 1:
        raise UserError(
            f"expected config.json with trainer.dict_class beside {path}; its tensors could be {' or '.join(fits) or 'no class'}"
        )
    return fits[0]


def _k(found: dict[str, Any], trainer: dict[str, Any], path: Path, folder: Path) -> int:
    k = whole(found["k"], "k", path)
    if "k" in trainer and whole(trainer["k"], "k", folder / "config.json") != k:
        raise UserError(
            f"expected k = {k} in config.json, as in {path}; got {trainer['k']}; one of them is of another run"
        )
    return k


def _prefixes(found: dict[str, Any], path: Path, ours: DictionaryConfig | None) -> tuple[int, ...]:
    groups = found["group_sizes"]
    sizes = (
        groups.tolist() if isinstance(groups, Tensor) and groups.ndim == 1 and groups.layout == torch.strided else []
    )
    if not 1 <= len(sizes) <= 1024 or not all(type(size) is int and size > 0 for size in sizes):
        raise UserError(f"expected group_sizes as a list of whole numbers above zero in {path}; the file is damaged")
    widths = tuple(itertools.accumulate(sizes))
    if widths[-1] != found["b_enc"].numel():
        raise UserError(
            f"expected group_sizes that sum to the latents in {path}; got {widths[-1]}; the file is damaged"
        )
    return ours.matryoshka if ours is not None and ours.prefixes == widths else widths[:-1]


def _check(trainer: dict[str, Any], dictionary: Dictionary, path: Path) -> None:
    for name, true in (("activation_dim", dictionary.d_in), ("dict_size", dictionary.config.latents)):
        if name in trainer and whole(trainer[name], name, path) != true:
            raise UserError(f"expected {name} = {true} in {path}, as the weights have; got {trainer[name]}; mend it")


def _site(trainer: dict[str, Any]) -> tuple[str, ...]:
    """From the names that the library's own demo gives: resid_post_layer_3, attention_layer_3, mlp_layer_3."""
    module, layer = trainer.get("submodule_name"), trainer.get("layer")
    if type(layer) is not int or layer < 0:
        return ()
    place = next((site for part, site in MODULES.items() if isinstance(module, str) and module.startswith(part)), None)
    return (f"blocks.{layer}.{place or MODULES['resid_post']}",)


def save(dictionary: Dictionary, folder: Path) -> None:
    """Write a folder that dictionary_learning loads; UserError for what has no class there."""
    name = _class_for(dictionary)
    _, centred, names, besides = CLASSES[name]
    config = dictionary.config
    ours = {own: tensor.detach().cpu() for own, tensor in dictionary.named_parameters()}
    if not centred:
        from .build import shifted

        ours = shifted(ours, -1)
    tensors = {theirs: ours[own] for theirs, own in names.items()}
    turned = "decoder.weight" if "encoder.weight" in names else "W_enc"
    tensors[turned] = tensors[turned].T
    extra: dict[str, Any] = {"k": torch.tensor(config.k, dtype=torch.int32)}
    threshold = -1.0 if dictionary.threshold is None else float(dictionary.threshold[0])
    extra["threshold"] = torch.tensor(threshold, dtype=torch.float32)
    extra["group_sizes"] = torch.tensor([b - a for a, b in itertools.pairwise((0, *config.prefixes))])
    state = {**tensors, **{item: extra[item] for item in besides}}
    write_pickle(folder / "ae.pt", state)
    layer = config.read.split(".")[1] if config.read.startswith("blocks.") else None
    trainer = {
        "dict_class": name,
        "activation_dim": dictionary.d_in,
        "dict_size": config.latents,
        **({"k": config.k} if "k" in besides else {}),
        **({"layer": int(layer)} if layer and layer.isdecimal() else {}),
        "lm_name": (dictionary.metadata.get("model") or {}).get("name"),
        "submodule_name": config.read,
    }
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {}, "unweave": note_of(dictionary)})


def _class_for(dictionary: Dictionary) -> str:
    from .note import refuse

    config, threshold = dictionary.config, dictionary.threshold
    refuse(
        {
            "it has dictionaries of one site": not dictionary.is_single,
            "it has no transcoders": config.is_transcoder,
            "it applies ReLU before a threshold, and one here is below zero": threshold is not None
            and bool((threshold < 0).any()),
            "its BatchTopK has one threshold for all latents": config.activation == "batch_topk"
            and threshold is not None
            and bool((threshold != threshold[0]).any()),
        },
        "dictionary_learning",
    )
    if config.activation == "batch_topk":
        return "MatryoshkaBatchTopKSAE" if config.matryoshka else "BatchTopKSAE"
    kinds = {"topk": "AutoEncoderTopK", "gated": "GatedAutoEncoder", "jumprelu": "JumpReluAutoEncoder"}
    return kinds.get(config.activation, "AutoEncoder")


FORMAT = Format("dictionary_learning", "ae.pt and config.json, crosscoders of the fork too", holds, load, save)
