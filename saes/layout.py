"""Which columns a latent reads and writes, when what is read and written are several sites.

Activations of several sites are one matrix, the sites side by side: `[token d_in]` with d_in the sum of the widths read, and
`[token d_out]` likewise. Then a crosscoder is a dictionary on wide activations, and nothing else knows of sites:

    together     one block:          all latents           read all columns             write all columns
    cross_layer  a block per layer:  latents of layer l    read the columns of site l   write those of l and later ones
    shared       one block, of one site's width: rows of different sites are different tokens; what a site needs of its
                 own, its mean and scale, is in biases of its own

A latent's encoder row has the width of what its block reads; its decoder row is over all columns, zero where it writes nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .dictionary_config import DictionaryConfig
from .errors import UserError
from .rules import EXTRA


class Block(NamedTuple):
    """Latents that read the same columns and write the same columns."""

    latents: slice
    reads: slice
    writes: slice


@dataclass(frozen=True)
class Layout:
    """The sites of a dictionary in order, their widths, and its blocks."""

    config: DictionaryConfig
    reads: dict[str, int]
    writes: dict[str, int]
    rank: int = 0
    """Of several processes that share out the latents of each block, which one this layout is of."""
    ranks: int = 1

    def __post_init__(self) -> None:
        widths = {*self.reads.values(), *self.writes.values()}
        if self.config.across != "together" and len({*self.reads.values()}) > 1:
            raise UserError(
                f"expected sites of one width with --across {self.config.across}; got {sorted(widths)}; train one each"
            )

    @property
    def widths(self) -> dict[str, int]:
        """The width of each site."""
        return {**self.reads, **self.writes}

    @property
    def d_in(self) -> int:
        """Columns of the flat input."""
        return sum(self.reads.values())

    @property
    def d_out(self) -> int:
        """Columns of the flat output."""
        return sum(self.writes.values())

    @property
    def is_shared(self) -> bool:
        """True if one dictionary acts on each site by itself."""
        return self.config.across == "shared"

    @property
    def copies(self) -> int:
        """How many sets of biases there are: one for each site of a shared dictionary, else 1."""
        return len(self.reads) if self.is_shared else 1

    @property
    def block_latents(self) -> int:
        """Latents of a block, or of this rank's share of it."""
        return self.config.block_latents // self.ranks

    @property
    def prefixes(self) -> list[int]:
        """Where in this rank's share of a block each nested prefix ends."""
        first, size = self.rank * self.block_latents, self.block_latents
        return [min(max(stop - first, 0), size) for stop in self.config.prefixes]

    @property
    def blocks(self) -> list[Block]:
        """The blocks, in the order of their latents."""
        size = self.block_latents
        if self.config.across != "cross_layer":
            first = slice(0, self.d_in // self.copies), slice(0, self.d_out // self.copies)
            return [Block(slice(0, size), *first)]
        return [
            Block(slice(number * size, (number + 1) * size), read, slice(write.start, self.d_out))
            for number, (read, write) in enumerate(zip(columns(self.reads), columns(self.writes), strict=True))
        ]

    def flat(self, x: Mapping[str, Tensor], of: Mapping[str, int]) -> Float[Tensor, "token d"]:
        """The sites of `of` side by side; a single one is given back as it is."""
        parts = [x[site] for site in of]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def split(self, flat: Float[Tensor, "token d"], of: Mapping[str, int]) -> dict[str, Float[Tensor, "token width"]]:
        """Views of the sites of `of` in a flat matrix."""
        return {site: flat[:, column] for site, column in zip(of, columns(of), strict=True)}


def columns(widths: Mapping[str, int]) -> list[slice]:
    """Where each site stands in a flat matrix."""
    ends = itertools.accumulate(widths.values(), initial=0)
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def single(config: DictionaryConfig, number: int) -> DictionaryConfig:
    """The shape of a shared dictionary at its site of this number."""
    site_out = (config.site_out[number],) if config.site_out else ()
    return dataclasses.replace(config, site=(config.site[number],), site_out=site_out, across="together")


def layout_for(config: DictionaryConfig, widths: Mapping[str, int]) -> Layout:
    """The layout of a dictionary on sites of these widths."""
    reads, writes = config.site or ("",), config.sites_out or ("",)
    return Layout(config, {site: int(widths[site]) for site in reads}, {site: int(widths[site]) for site in writes})


def layout_of(
    config: DictionaryConfig, tensors: Mapping[str, Tensor], widths: Mapping[str, int] | None = None
) -> Layout:
    """The layout whose widths are given, or follow from the tensors."""
    try:
        d_in, d_out = tensors["W_enc"].shape[-1], tensors["W_dec"].shape[-1]
    except (KeyError, IndexError) as error:
        raise UserError("expected W_enc and W_dec [latent d] of a dictionary; got none; the file is damaged") from error
    if widths is not None:
        return layout_for(config, widths)
    reads, writes = config.site or ("",), config.sites_out or ("",)
    shares_in = 1 if config.across != "together" else len(reads)
    shares_out = 1 if config.across == "shared" else len(writes)
    return Layout(config, dict.fromkeys(reads, d_in // shares_in), dict.fromkeys(writes, d_out // shares_out))


def shapes_of(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a dictionary of this layout."""
    config, block = layout.config, layout.blocks[0]
    latents, copies = config.latents, (layout.copies,) if layout.is_shared else ()
    d_out = layout.d_out // layout.copies
    own = dict.fromkeys(("b_enc", *EXTRA[config.activation]), (*copies, latents))
    shapes = {"W_enc": (latents, block.reads.stop), "W_dec": (latents, d_out), "b_dec": (*copies, d_out), **own}
    return {**shapes, "W_skip": (layout.d_out, layout.d_in)} if config.skip else shapes
