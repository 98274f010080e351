"""How a dictionary is shaped and trained: one definition for Python, the command line, `--help` and the saved JSON.

`DictionaryConfig` is the shape and is saved with the dictionary; `TrainConfig` holds one and adds how it was made.
The field notes below are the help text. On the command line nested fields carry no prefix (`--latents`, `--k`), and in
Python the same names may be given flat: `TrainConfig(latents=2048, k=16)` is
`TrainConfig(dictionary=DictionaryConfig(latents=2048, k=16))`.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

from .drawn import drawn
from .errors import UserError


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
    """Site that is read, e.g. blocks.12.hook_resid_post; may be left out when the Shards hold only one."""
    site_out: tuple[str, ...] = ()
    """Site that is written, e.g. blocks.8.mlp.hook_out makes a transcoder; left out: the site that is read."""
    activation: Literal["topk"] = "topk"
    """Activation rule: topk keeps the k largest pre-activations of each token, if above zero."""
    latents: int = 16_384
    """Number of latents (dictionary rows)."""
    k: int = 32
    """Latents that may be active on one token."""
    skip: bool = False
    """Add a linear path from the read to the written site (skip transcoder)."""

    _repr_html_ = drawn

    def __post_init__(self) -> None:
        for name in ("site", "site_out"):
            object.__setattr__(self, name, as_sites(getattr(self, name)))
        if len(self.site) > 1 or len(self.site_out) > 1:
            raise UserError(
                f"expected one site to read and one to write; got {self.site} and {self.site_out}; train one each"
            )
        if not 1 <= self.k <= self.latents:
            raise UserError(
                f"expected k of 1 to {self.latents} (the latents); got k={self.k}; lower --k or raise --latents"
            )
        if self.activation != "topk":
            raise UserError(f"expected activation topk; got {self.activation!r}")
        if self.skip and not self.is_transcoder:
            raise UserError(
                "expected --site-out with --skip: a linear path from a site to itself explains it all; drop one"
            )

    @property
    def is_transcoder(self) -> bool:
        """True if the site that is written is not the one that is read."""
        return bool(self.site_out) and self.site_out != self.site

    @property
    def read(self) -> str:
        """The site that is read; empty if none was named."""
        return self.site[0] if self.site else ""

    @property
    def write(self) -> str:
        """The site that is written."""
        return self.site_out[0] if self.site_out else self.read


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a dictionary is trained. Every field has a default that works; the learning rate follows from the width."""

    dictionary: DictionaryConfig = field(default_factory=DictionaryConfig)
    """Shape of the dictionary."""
    tokens: int = 5_000_000
    """Tokens to train on; activations are passed over again when there are fewer."""
    batch: int = 4096
    """Tokens in one optimiser step."""
    lr: float | None = None
    """Peak learning rate of Adam; left out: 4e-3 * sqrt(4096 / latents)."""
    matmul: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type that the encoder multiplies in, with float32 sums; auto: bfloat16 on a GPU, else float32 (a CPU only rounds)."""
    seed: int = 0
    """Seed of the initial weights and of the order of the tokens."""
    warmup: float = 0.02
    """Share of the steps over which the learning rate rises from 0."""
    decay: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls to 0."""
    auxk: float = 0.03125
    """Weight of the loss that lets dead latents explain what the live ones leave (Gao et al. 2024, A.2); 0 turns it off."""
    dead_after: int | None = None
    """Tokens without firing after which a latent is dead; left out: a twentieth of the training tokens, at most 10 million."""
    center: bool = True
    """Subtract the mean activation before training (folded into the saved weights)."""
    drop_positions: int = 1
    """Leading positions of a block that are left out of training (the attention sink)."""
    drop_norm: float = 10.0
    """Leave out tokens whose norm exceeds this many times the median, at any site of the dictionary; 0 keeps all."""
    held_out: float = 0.1
    """Share of the documents that is kept for evaluation."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = 200
    """Steps between two checkpoints, from which --resume continues."""

    _repr_html_ = drawn

    def __post_init__(self) -> None:
        for name, least in (
            ("tokens", 1),
            ("batch", 1),
            ("log_every", 1),
            ("checkpoint_every", 1),
            ("drop_positions", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"expected {name} of at least {least}; got {getattr(self, name)}; raise it")
        for name in ("warmup", "decay", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"expected {name} to be a share in [0, 1); got {getattr(self, name)}")
        for name in ("auxk", "drop_norm", "dead_after"):
            if not 0 <= (getattr(self, name) or 0) < float("inf"):
                raise UserError(f"expected {name} to be zero or more; got {getattr(self, name)}")
        if self.matmul not in ("auto", "float32", "bfloat16"):
            raise UserError(f"expected matmul auto, float32 or bfloat16; got {self.matmul!r}")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise UserError(f"expected a learning rate above zero; got lr={self.lr}; leave it out for the default")

    @property
    def steps(self) -> int:
        """Optimiser steps: tokens over batch, rounded up."""
        return -(-self.tokens // self.batch)

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr if self.lr is not None else 4e-3 * (4096 / self.dictionary.latents) ** 0.5

    @property
    def dead_tokens(self) -> int:
        """Tokens without firing after which a latent counts as dead."""
        return self.dead_after if self.dead_after is not None else min(10_000_000, max(self.tokens // 20, self.batch))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> TrainConfig:
        """The config that `to_dict` wrote."""
        inner = dict(data["dictionary"])
        inner |= {name: as_sites(inner.get(name)) for name in ("site", "site_out")}
        return TrainConfig(**{**data, "dictionary": DictionaryConfig(**inner)})


def _accept_flat_names(cls: type[TrainConfig]) -> None:
    """Let the constructor take DictionaryConfig's fields directly, as the command line does."""
    inner = {item.name for item in dataclasses.fields(DictionaryConfig)}
    generated = cls.__init__

    def __init__(self: TrainConfig, **given: Any) -> None:
        flat = {name: given.pop(name) for name in inner & given.keys()}
        flat |= {name: as_sites(flat[name]) for name in ("site", "site_out") if name in flat}
        if flat:
            given["dictionary"] = dataclasses.replace(given.get("dictionary", DictionaryConfig()), **flat)
        generated(self, **given)

    __init__.__signature__ = inspect.signature(generated)  # type: ignore[attr-defined]
    cls.__init__ = __init__  # type: ignore[method-assign]


_accept_flat_names(TrainConfig)
