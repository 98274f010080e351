"""EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, TopK SAEs, transcoders and skip transcoders of one width.

| tensor | shape | |
|---|---|---|
| encoder.weight, encoder.bias | [latent d], [latent] | an SAE encodes x - b_dec, a transcoder x |
| W_dec, b_dec | [latent d], [d] | |
| W_skip | [d d] | y += W_skip x |

The folder is named by the module (`layers.3.mlp`), which is where the sites come from. The `exclude_tokens` of the run, in the
`config.json` above it, become the exclusion rule (keep.py); what we write has no run, so they stay in our note. groupmax is
refused: it takes the best of each group of latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..io import write_json, write_tensors
from ..keep import KeepRule
from .build import Given, single
from .files import absent, plain, read_file, read_object, whole
from .form import Format
from .note import agreed, note_of, read_note, refuse
from .places import site_of_module

if TYPE_CHECKING:
    from ..dictionary import Dictionary

NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


def load(folder: Path, given: Given) -> Dictionary:
    """Read a folder; see the module header."""
    path = folder / "sae.safetensors"
    cfg = read_object(folder / "cfg.json", "the cfg.json of a sparsify folder")
    config, metadata = read_note(cfg, folder / "cfg.json")
    if cfg.get("activation", "topk") != "topk" or cfg.get("signed"):
        raise UserError(
            f"expected unsigned topk in {folder / 'cfg.json'}; got {str(cfg.get('activation'))[:40]!r}; it is not loaded"
        )
    # Folders from before the flag was there are transcoders where they have a skip path.
    skip = cfg.get("skip_connection", False)
    transcodes = cfg.get("transcode", skip)
    if type(skip) is not bool or type(transcodes) is not bool or (skip and not transcodes):
        raise UserError(
            f"expected a skip path in transcoders only, as true or false, in {folder / 'cfg.json'}; mend it"
        )
    found = read_file(path, "a sparsify dictionary")
    names = {**NAMES, "W_skip": "W_skip"} if skip else NAMES
    absent(found, path, names)
    tensors = {names[name]: tensor for name, tensor in plain(found, path, names).items()}
    _check(cfg, tensors, folder)
    read, write = (config.site, config.site_out) if config else _sites(folder, transcodes)
    dictionary = single(
        path,
        tensors,
        "topk",
        given,
        k=whole(cfg.get("k"), "k", folder / "cfg.json"),
        site=read,
        site_out=write,
        centred=not transcodes,
        transcoder=transcodes,
        matryoshka=config.matryoshka if config else (),
        metadata=metadata
        or {"sparsify": {name: value for name, value in cfg.items() if name != "unweave"}, **_excluded(folder)},
    )
    return agreed(dictionary, None if any(given) else config, folder / "cfg.json")


def _check(cfg: dict[str, Any], tensors: dict[str, Any], folder: Path) -> None:
    latents, width = tensors["W_enc"].shape if tensors["W_enc"].ndim == 2 else (0, 0)
    told = cfg.get("num_latents") or 0
    said = {"d_in": (cfg.get("d_in"), width), "num_latents": (told or latents, latents)}
    if not told and "expansion_factor" in cfg:
        said["expansion_factor"] = (cfg["expansion_factor"], latents // max(width, 1))
    for name, (value, true) in said.items():
        if whole(value, name, folder / "cfg.json") != true:
            raise UserError(
                f"expected {name} = {true} in {folder / 'cfg.json'}, as the weights have; got {value}; mend it"
            )
    if whole(cfg.get("k"), "k", folder / "cfg.json") > latents:
        raise UserError(f"expected k of at most {latents} in {folder / 'cfg.json'}; got {cfg['k']}; mend it")


def _sites(folder: Path, transcodes: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """From the folder's name, or the one above it where a seed's folder lies in it."""
    name = folder.name if site_of_module(folder.name) else folder.parent.name
    write = site_of_module(name)
    return (site_of_module(name, "input") if transcodes else write), (write if transcodes else ())


def _excluded(folder: Path) -> dict[str, Any]:
    """The exclusion rule of the run that the folder, or its seed's folder, lies in; {} where there is none."""
    for path in (folder.parent / "config.json", folder.parent.parent / "config.json"):
        run = read_object(path, "the config.json of a sparsify run") if path.is_file() else {}
        # A config.json of something else has no coder in it.
        tokens = run.get("exclude_tokens") if isinstance(run.get("sae"), dict) else None
        if tokens:
            try:
                return {"keep": KeepRule.from_dict({"drop_tokens": tokens}).to_dict()}
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"expected exclude_tokens in {path} as a list of token ids; got {error}; mend it"
                ) from error
    return {}


def save(dictionary: Dictionary, folder: Path) -> None:
    """Write a folder that sparsify loads; UserError for what is no TopK dictionary of one site and one width."""
    config = dictionary.config
    refuse(
        {
            f"it has TopK alone, this is {config.activation}": config.activation != "topk",
            "it has dictionaries of one site": not dictionary.is_single,
            "what it reads and writes has one width": dictionary.d_in != dictionary.d_out,
        },
        "sparsify",
    )
    names = {ours: theirs for theirs, ours in {**NAMES, "W_skip": "W_skip"}.items()}
    write_tensors(folder / "sae.safetensors", {names[name]: tensor for name, tensor in dictionary.named_parameters()})
    norms = dictionary.W_dec.norm(dim=1)
    write_json(
        folder / "cfg.json",
        {
            "activation": "topk",
            "expansion_factor": max(1, config.latents // dictionary.d_in),
            "normalize_decoder": bool(((norms - 1).abs() < 1e-3).all()),
            "num_latents": config.latents,
            "k": config.k,
            "multi_topk": False,
            "skip_connection": config.skip,
            "transcode": config.is_transcoder,
            "d_in": dictionary.d_in,
            "unweave": note_of(dictionary),
        },
    )


FORMAT = Format(
    "sparsify",
    "cfg.json and sae.safetensors",
    lambda seen: {"cfg.json", "sae.safetensors"} <= seen.files,
    load,
    save,
)
