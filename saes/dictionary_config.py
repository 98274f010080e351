"""The shape of a dictionary: what it reads and writes, how wide it is, which latents of a token are active.

It is saved with the dictionary. `TrainConfig` (config.py) holds one and adds how it was made.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from .drawn import drawn
from .errors import UserError

ACTIVATIONS = ("topk", "batch_topk", "relu", "gated", "jumprelu")


def as_sites(given: Any) -> tuple[str, ...]:
    """One name, a sequence of names (as JSON has them) or nothing, as a tuple of names."""
    names = (given,) if isinstance(given, str) else tuple(given or ())
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"expected names of sites; got {given!r}")
    return names


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """What a dictionary reads and writes, its width, and its activation rule."""

    site: tuple[str, ...] = ()
    """Sites that are read, e.g. blocks.12.hook_resid_post; may be left out when the Shards hold only one."""
    site_out: tuple[str, ...] = ()
    """Sites that are written, e.g. blocks.8.mlp.hook_out makes a transcoder; left out: those that are read."""
    across: Literal["together", "cross_layer", "shared"] = "together"
    """What several sites make: together (a crosscoder: each latent reads and writes all of them), cross_layer (a latent reads
    one site and writes that layer and later ones), shared (one dictionary acts on each site by itself)."""
    activation: Literal["topk", "batch_topk", "relu", "gated", "jumprelu"] = "topk"
    """Activation rule: topk keeps the k largest pre-activations of each token, batch_topk k a token on average over a batch;
    relu, gated and jumprelu are made sparse by a penalty."""
    latents: int = 16_384
    """Number of latents (dictionary rows); of a cross-layer dictionary those of all its layers."""
    k: int = 32
    """Latents that are active on a token: at most (topk), on average (batch_topk), or what the penalty is steered to (relu, gated,
    jumprelu); of a cross-layer dictionary in each layer."""
    matryoshka: tuple[int, ...] = ()
    """Widths of nested prefixes that reconstruct by themselves too, e.g. 1024 4096; the whole is added; left out: none."""
    skip: bool = False
    """Add a linear path from the read to the written site (skip transcoder)."""

    _repr_html_ = drawn

    def __post_init__(self) -> None:
        for name in ("site", "site_out"):
            object.__setattr__(self, name, as_sites(getattr(self, name)))
        object.__setattr__(self, "matryoshka", tuple(self.matryoshka))
        if self.activation not in ACTIVATIONS:
            raise UserError(f"expected activation {', '.join(ACTIVATIONS)}; got {self.activation!r}")
        if self.across not in ("together", "cross_layer", "shared"):
            raise UserError(f"expected across together, cross_layer or shared; got {self.across!r}")
        if not 1 <= self.k <= self.latents:
            raise UserError(
                f"expected k of 1 to {self.latents} (the latents); got k={self.k}; lower --k or raise --latents"
            )
        self._check_sites()
        self._check_blocks()
        if self.skip and not self.is_transcoder:
            raise UserError(
                "expected --site-out with --skip: a linear path from a site to itself explains it all; drop one"
            )
        if self.skip and len(self.site) != 1:
            raise UserError(f"expected one site to read and one to write with --skip; got {self.site}; drop one")

    def _check_sites(self) -> None:
        for name in ("site", "site_out"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UserError(f"expected each site once; got {name} {', '.join(getattr(self, name))}; drop one")
        pairs = self.across != "together"
        if pairs and len(self.site) < 2:
            raise UserError(f"expected several sites with --across {self.across}; got {self.site or 'none'}; name them")
        if pairs and self.site_out and len(self.site_out) != len(self.site):
            raise UserError(
                f"expected a site to write for each that is read with --across {self.across}; "
                f"got {len(self.site)} and {len(self.site_out)}; name as many"
            )

    def _check_blocks(self) -> None:
        widths = self.matryoshka
        if any(wide <= narrow for narrow, wide in zip((0, *widths), widths, strict=False)):
            raise UserError(f"expected matryoshka widths that rise from 1; got {widths}; sort them")
        if widths and widths[-1] > self.block_latents:
            raise UserError(f"expected matryoshka widths of at most {self.block_latents}; got {widths[-1]}; lower it")
        if self.latents % self.blocks:
            raise UserError(
                f"expected latents that {self.blocks} layers can share; got {self.latents}; take a multiple of {self.blocks}"
            )
        if self.k > self.block_latents:
            raise UserError(
                f"expected k of at most the {self.block_latents} latents of a layer; got {self.k}; lower --k"
            )

    @property
    def is_transcoder(self) -> bool:
        """True if the sites that are written are not those that are read."""
        return bool(self.site_out) and self.site_out != self.site

    @property
    def is_sae(self) -> bool:
        """True if it reads one site at a time and writes it: b_dec is then subtracted before encoding."""
        return not self.is_transcoder and (len(self.site) <= 1 or self.across == "shared")

    @property
    def sites_out(self) -> tuple[str, ...]:
        """The sites that are written."""
        return self.site_out or self.site

    @property
    def sites(self) -> tuple[str, ...]:
        """All its sites, each once."""
        return tuple(dict.fromkeys((*self.site, *self.sites_out)))

    @property
    def read(self) -> str:
        """The first site that is read; empty if none was named."""
        return self.site[0] if self.site else ""

    @property
    def write(self) -> str:
        """The first site that is written."""
        return self.site_out[0] if self.site_out else self.read

    @property
    def blocks(self) -> int:
        """Into how many groups the latents are split by what they read: the layers of a cross-layer dictionary, else 1."""
        return len(self.site) if self.across == "cross_layer" else 1

    @property
    def block_latents(self) -> int:
        """Latents of one such group."""
        return self.latents // self.blocks

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Widths of the nested prefixes of a block, the whole last; only that without matryoshka."""
        return tuple(dict.fromkeys((*self.matryoshka, self.block_latents)))

    def identity(self) -> str:
        """What a fingerprint holds of the shape; fields that an earlier version did not have are left out at their defaults."""
        first = ("site", "site_out", "activation", "latents", "k", "skip")
        later = [
            item.name
            for item in dataclasses.fields(self)
            if item.name not in first and getattr(self, item.name) != item.default
        ]
        return f"DictionaryConfig({', '.join(f'{name}={getattr(self, name)!r}' for name in (*first, *later))})"
