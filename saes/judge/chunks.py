"""Rows of Shards in pieces, with what a dictionary makes of them: whatever its sites, one look at each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..codes import Codes
from ..dictionary import Dictionary
from ..keep import Reasons
from ..shards.folder import Shards

CHUNK = 8192
ENCODED = 2**26  # pre-activations held at once: 256 MiB in float32


class Piece(NamedTuple):
    """Some rows: activations of all sites, what the training rule says of each row, and their documents."""

    part: dict[str, Tensor]
    reasons: Reasons
    documents: Int[Tensor, "row"]


def chunks(
    dictionary: Dictionary, shards: Shards, rows: Bool[Tensor, "row"], size: int | None = None
) -> Iterator[Piece]:
    """The chosen rows piece by piece, as they are: what training clips is clipped by whoever wants it (keep.py).

    `size` None: as many rows as their codes allow.
    """
    size = size or max(1, min(CHUNK, ENCODED // dictionary.config.latents))
    dtype, rule = torch.promote_types(shards.dtype, torch.float32), dictionary.keep_rule
    for index in rows.nonzero().squeeze(1).split(size):
        part = {site: x.to(dtype) for site, x in shards.read(list(dictionary.sites), index).items()}
        yield Piece(part, rule.reasons_of(shards.positions[index], part, shards.tokens[index]), shards.documents[index])


class Made(NamedTuple):
    """Codes of some tokens, by what was read where they are made at one site each, and the reconstruction of each written site."""

    codes: dict[str, Codes]
    written: dict[str, Float[Tensor, "token d"]]


def reconstructed(dictionary: Dictionary, part: Mapping[str, Tensor]) -> Made:
    """What the dictionary makes of activations of all its sites; on the CPU.

    A dictionary that is shared gives codes for each site, any other one set of codes, named by the first site it reads.
    """
    config, layout = dictionary.config, dictionary.layout
    if layout.is_shared:
        each = {site: dictionary.at(site) for site in config.site}
        codes = {site: own.encode(part[site]) for site, own in each.items()}
        written = {
            out: each[site].decode(codes[site], part[site]).cpu()
            for site, out in zip(config.site, config.sites_out, strict=True)
        }
        return Made({site: one.cpu() for site, one in codes.items()}, written)
    codes = dictionary.encode(part)
    flat = dictionary.decode_flat(codes, part).cpu()
    return Made({next(iter(layout.reads)): codes.cpu()}, layout.split(flat, layout.writes))
