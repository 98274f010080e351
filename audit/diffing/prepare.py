"""What `diff` (run.py) needs around its methods: sites, settings, a dictionary that fits, names of tokens, the causal score's text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ...saes import Dictionary, Shards, TrainConfig, UserError, resolve_site, token_strings, train
from ...saes.downstream import sample_blocks
from ...saes.joined import JoinedShards
from ...saes.text import Block, token_blocks
from .causal import Trial, causal_scores
from .pair import SIDES, Models
from .reading import Reading, firing_tokens, on_cpu
from .result import Diff

NAMED = 50  # latents whose tokens are kept
Where = tuple[Shards, Bool[Tensor, "row"], Sequence[str] | None, int, int]
"""Joined Shards, which rows are measured, prompts instead of them, the context, and about how many tokens to take."""


def both_sites(models: Models, site: str | tuple[str, str] | None) -> tuple[str, str]:
    """The canonical site of A and of B; left out, the residual stream after the middle block of each."""
    given = (site, site) if site is None or isinstance(site, str) else site
    found: list[str] = []
    for side, own in zip(SIDES, given, strict=True):
        middle = f"blocks.{models.info(side).n_layers // 2}.hook_resid_post"
        found.append(resolve_site(models.get(side), own or middle))
    return found[0], found[1]


def config_for(shards: Shards, given: TrainConfig | Mapping[str, Any] | None) -> TrainConfig:
    """The settings given, whole, or a few of them, the others following from the width and from how much text there is."""
    if isinstance(given, TrainConfig):
        return given
    width, rows = min(shards.width(site) for site in shards.sites), len(shards)
    latents = int((given or {}).get("latents", max(64, min(4096, 8 * width))))
    usual: dict[str, Any] = {"latents": latents, "k": max(1, min(32, latents // 16))}
    usual |= {"batch": max(64, min(2048, rows // 20)), "tokens": min(20 * rows, 2_000_000)}
    return TrainConfig(**usual | dict(given or {}))


def with_sites(config: TrainConfig, sites: tuple[str, ...], activation: str | None = None) -> TrainConfig:
    """The same settings for a dictionary that reads and writes these sites."""
    changes: dict[str, Any] = {"site": sites, "site_out": (), "across": "together"}
    changes |= {} if activation is None else {"activation": activation}
    return dataclasses.replace(config, dictionary=dataclasses.replace(config.dictionary, **changes))


def trained(config: TrainConfig, shards: Shards, folder: Path, progress: bool) -> Dictionary:
    """A dictionary trained in `folder`, which goes on where it was stopped; UserError if it was begun on other activations."""
    own = train(config, shards, folder, resume=True, progress=progress)
    if own.metadata.get("shards") != shards.fingerprint:
        raise UserError(f"expected {folder} to be of these models and this text; it is of others; give a new --out")
    return on_cpu(own)


def checked(dictionary: Dictionary, models: Models, shards: Shards) -> Dictionary:
    """The dictionary, if it reads and writes the one site that was read here; UserError otherwise."""
    site, width = shards.sites[0].partition(":")[2], shards.width(shards.sites[0])
    if not dictionary.is_sae or not dictionary.is_single or dictionary.d_in != width:
        raise UserError(
            f"expected a dictionary that reads and writes one site of {width} dimensions; got {dictionary!r}; give another, or none"
        )
    if dictionary.read and resolve_site(models.get("a"), dictionary.read) != site:
        raise UserError(f"expected a dictionary of {site}; got one of {dictionary.read}; give --site {dictionary.read}")
    return on_cpu(dictionary)


def foreign(dictionary: Dictionary, models: Models) -> list[str]:
    """A note if the dictionary was trained on neither model."""
    of = (dictionary.metadata.get("model") or {}).get("fingerprint")
    if of is None or of in [models.info(side).fingerprint for side in SIDES]:
        return []
    return ["The dictionary was trained on another model than these two: look at how well it reconstructs them."]


def about_tokens(
    models: Models, shards: JoinedShards, rows: Bool[Tensor, "row"], result: Diff, reading: Reading | None
) -> dict[str, Any]:
    """Strings of the lens's tokens, or of those that the first latents fire on."""
    if reading is None:
        ids = result.columns["token"].unique()
        return {"strings": dict(zip(map(str, ids.tolist()), token_strings(models.get("b"), ids), strict=True))}
    first = [number for number in result.order()[:NAMED] if float(result.columns["score"][number])]
    if not first:
        return {}
    ids = firing_tokens(reading, shards, rows, torch.tensor(first))
    known = ids[ids >= 0].unique()
    strings = dict(zip(known.tolist(), token_strings(models.get("a"), known), strict=True))
    fires = {str(n): [strings[i] for i in row if i >= 0] for n, row in zip(first, ids.tolist(), strict=True)}
    return {"fires_on": fires}


def scores(
    models: Models,
    sites: tuple[str, str],
    reading: Reading,
    result: Diff,
    where: Where,
    count: int,
    controls: int,
    target: int | None,
    seed: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The causal scores of the first `count` latents as plain data, and why there are none, if there are none."""
    if not reading.is_same_width:
        return [], []
    first = [number for number in result.order()[:count] if float(result.columns["score"][number])]
    if not first:
        return [], ["No latent differs: there is nothing to patch."]
    trial = Trial(models, sites, reading, causal_blocks(models, where, seed), target, seed=seed)
    density = result.columns["density"]
    found = causal_scores(trial, torch.tensor(first), density, controls=controls, seed=seed)
    notes = (
        []
        if found[-1].patched.share is not None
        else ["The models predict the same here: no share of a change can be told."]
    )
    return [score.to_dict() for score in found], notes


def causal_blocks(models: Models, where: Where, seed: int) -> list[Block]:
    """Blocks of the measured text in A's tokens, or the prompts that were given instead. UserError where there are none."""
    shards, rows, prompts, context, tokens = where
    if prompts is not None:
        blocks = list(token_blocks(models.get("a"), prompts, context))
    else:
        blocks = sample_blocks(shards, rows, tokens, seed)
    if not blocks:
        raise UserError(
            "expected text of at least two tokens to measure behaviour on; got none; give longer texts, or causal=0"
        )
    return blocks


def target_id(models: Models, target: int | str | None) -> int | None:
    """The token id in A of a target; UserError unless it is one token that both models have."""
    if target is None:
        return None
    if isinstance(target, str):
        tokenizer: Any = models.get("a").tokenizer
        ids = tokenizer(target, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise UserError(
                f"expected a target of one token; {target!r} is {len(ids)}; a word may need its space in front"
            )
        target = int(ids[0])
    if target not in models.shared_ids()[0].tolist():
        raise UserError(f"expected a target that both models have; got id {target}; name another")
    return target
