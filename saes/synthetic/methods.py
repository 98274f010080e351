"""The methods that `unweave bench synthetic` trains, by name: an activation rule, its penalty, nested prefixes or none."""

from __future__ import annotations

from typing import Any

from ..config import TrainConfig
from ..dictionary_config import DictionaryConfig
from ..errors import UserError

RULES: dict[str, dict[str, str]] = {
    "topk": {"activation": "topk"},
    "batch_topk": {"activation": "batch_topk"},
    "relu l1": {"activation": "relu", "penalty": "l1"},
    "relu anneal": {"activation": "relu", "penalty": "anneal"},
    "relu tanh": {"activation": "relu", "penalty": "tanh"},
    "gated": {"activation": "gated"},
    "jumprelu": {"activation": "jumprelu"},
}
NESTED = ("topk", "batch_topk", "jumprelu")
METHODS = (*RULES, *(f"{rule} matryoshka" for rule in NESTED))
HALVINGS = 4  # the smallest prefix is 1 / 2^HALVINGS of the latents, each next one twice as wide


def method_config(method: str, *, latents: int, k: int, tokens: int, batch: int, seed: int) -> TrainConfig:
    """How a method is trained: all else are `TrainConfig`'s defaults. UserError for a name that is none."""
    rule = method.removesuffix(" matryoshka")
    if method not in METHODS:
        raise UserError(f"expected methods among {', '.join(METHODS)}; got {method!r}; leave them out to run all")
    fields: dict[str, Any] = dict(RULES[rule])
    activation = fields.pop("activation")
    prefixes = prefix_widths(latents) if method != rule else ()
    dictionary = DictionaryConfig(activation=activation, latents=latents, k=k, matryoshka=prefixes)
    return TrainConfig(dictionary=dictionary, tokens=tokens, batch=batch, seed=seed, **fields)


def prefix_widths(latents: int) -> tuple[int, ...]:
    """Nested prefixes, each half as wide as the next: latents / 16, / 8, / 4 and / 2, those of at least one latent."""
    return tuple(latents >> shift for shift in range(HALVINGS, 0, -1) if latents >> shift)
