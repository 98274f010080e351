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

from .dictionary_config import DictionaryConfig, as_sites
from .drawn import drawn
from .errors import UserError, check_seed
from .keep import MASSIVE

PENALISED = ("relu", "gated", "jumprelu")  # rules whose sparsity comes from a penalty, not from k
# The first is the usual one.
PENALTIES = {
    "relu": ("l1", "anneal", "tanh"),
    "gated": ("l1",),
    "jumprelu": ("l0", "tanh"),
}
LEAST = {
    **dict.fromkeys(("tokens", "batch", "log_every", "checkpoint_every", "accumulate"), 1),
    **dict.fromkeys(("drop_positions", "window"), 0),
}
CHOICES = {
    "matmul": ("auto", "float32", "bfloat16"),
    "center": ("mean", "median", "none"),
    "optimizer": ("adam", "factored"),
    "massive": MASSIVE,
}


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
    """Peak learning rate of Adam; left out: 4e-3 * sqrt(4096 / latents), a third of it for gated and matryoshka."""
    matmul: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type that the encoder multiplies in, with float32 sums; auto: bfloat16 on a GPU, else float32 (a CPU only rounds)."""
    seed: int = 0
    """Seed of the initial weights and of the order of the tokens."""
    warmup: float = 0.02
    """Tokens over which the learning rate, and the sparsity penalty, rise from 0; below 1, a share of all."""
    decay: float = 0.3
    """Tokens, at the end, over which the learning rate falls to 0; below 1, a share of all."""
    penalty: Literal["auto", "l1", "anneal", "tanh", "l0"] = "auto"
    """What makes relu, gated and jumprelu sparse: l1 (relu, gated), anneal (relu: |a|^p, p falling from 1 to 0.2), tanh (relu, jumprelu),
    l0 (jumprelu: a step, by its pseudo-gradient); auto: l1, for jumprelu l0."""
    sparsity: float | None = None
    """Weight of that penalty; left out: it is steered so that k latents are active on a token."""
    bandwidth: float = 1.0
    """Width of the window around its threshold in which a pre-activation moves it (jumprelu), in standard deviations of an input entry."""
    auxk: float = 0.03125
    """Weight of the loss that lets dead latents explain what the live ones leave (Gao et al. 2024, A.2), or that pulls them towards
    their thresholds (jumprelu); 0 turns it off."""
    dead_after: int | None = None
    """Tokens without firing after which a latent is dead; left out: a twentieth of the training tokens, at most 10 million."""
    center: Literal["mean", "median", "none"] = "mean"
    """What is subtracted before training, and folded into the saved weights: the mean activation, the geometric median, nothing."""
    accumulate: int = 1
    """Parts that a batch goes through in, their gradients added: less memory, the same step (batch_topk and auxk see a part)."""
    clip: float = 0.0
    """Largest norm of the whole gradient, longer ones are shortened to it; 0: none."""
    optimizer: Literal["adam", "factored"] = "adam"
    """adam, or factored: its first moment in bfloat16 and its second as a row and a column, a quarter of the memory."""
    ema: float = 0.0
    """Share of the old in a running average of the weights that is saved instead of the last ones, e.g. 0.999; 0: none."""
    drop_positions: int = 1
    """Leading positions of a block that are left out of training (the attention sink)."""
    drop_special: bool = True
    """Leave out the tokenizer's special tokens (BOS, EOS, padding, chat markers) wherever they stand in the text."""
    drop_norm: float = 10.0
    """Tokens are massive whose norm exceeds this many times the median, at any site of the dictionary; 0: none are."""
    massive: Literal["drop", "clip"] = "drop"
    """Massive tokens: drop leaves them out of training, clip shortens them to that norm (in the model they pass through either way)."""
    held_out: float = 0.1
    """Share of the documents that is kept for evaluation."""
    window: int = 0
    """Shards whose rows are mixed at once, in which case only so many need be at hand; 0: the rows of all shards are."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = 200
    """Steps between two checkpoints, from which --resume continues."""

    _repr_html_ = drawn

    def __post_init__(self) -> None:
        if isinstance(self.center, bool):  # as earlier versions wrote it
            object.__setattr__(self, "center", "mean" if self.center else "none")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"expected {name} of at least {least}; got {getattr(self, name)}; raise it")
        for name in ("held_out", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"expected {name} to be a share in [0, 1); got {getattr(self, name)}")
        for name in ("warmup", "decay", "auxk", "drop_norm", "dead_after", "clip", "sparsity"):
            if not 0 <= (getattr(self, name) or 0) < float("inf"):
                raise UserError(f"expected {name} to be zero or more; got {getattr(self, name)}")
        for name in CHOICES:
            if getattr(self, name) not in CHOICES[name]:
                raise UserError(f"expected {name} {', '.join(CHOICES[name])}; got {getattr(self, name)!r}")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise UserError(f"expected a learning rate above zero; got lr={self.lr}; leave it out for the default")
        check_seed(self.seed)
        self._check_penalty()

    def _check_penalty(self) -> None:
        rule = self.dictionary.activation
        if rule not in PENALISED and (self.penalty != "auto" or self.sparsity is not None):
            raise UserError(
                f"expected a penalty and its weight with {', '.join(PENALISED)} only; {rule} is sparse by k; drop --penalty and --sparsity"
            )
        if self.penalty not in ("auto", *PENALTIES.get(rule, ())):
            raise UserError(f"expected penalty auto, {', '.join(PENALTIES[rule])} with {rule}; got {self.penalty!r}")
        if rule == "jumprelu" and not 0 < self.bandwidth < float("inf"):
            raise UserError(f"expected a bandwidth above zero; got {self.bandwidth}")
        if rule != "jumprelu" and self.bandwidth != TrainConfig.bandwidth:
            raise UserError(
                f"expected a bandwidth with jumprelu only; {rule} has no thresholds to train; drop --bandwidth"
            )

    @property
    def steps(self) -> int:
        """Optimiser steps: tokens over batch, rounded up."""
        return -(-self.tokens // self.batch)

    @property
    def warmup_steps(self) -> float:
        """Steps over which the learning rate rises."""
        return self.warmup * self.steps if self.warmup < 1 else self.warmup / self.batch

    @property
    def decay_steps(self) -> float:
        """Steps over which it falls."""
        return self.decay * self.steps if self.decay < 1 else self.decay / self.batch

    @property
    def penalised(self) -> str:
        """What is penalised: the penalty of the activation rule, with auto resolved; empty if there is none."""
        usual = PENALTIES.get(self.dictionary.activation, ("",))[0]
        return usual if self.penalty == "auto" else self.penalty

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        if self.lr is not None:
            return self.lr
        shape = self.dictionary
        is_touchy = shape.activation == "gated" or len(shape.prefixes) > 1
        return 4e-3 * (4096 / shape.latents) ** 0.5 / (3 if is_touchy else 1)

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
        inner["matryoshka"] = tuple(inner.get("matryoshka") or ())
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
