"""Many prompts answered, or begun, together (circuits/prompts/many.py); kept where a bench asks one model the same many times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from ....circuits.prompts import many

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KEPT = "_unweave_written"


def write_many(
    model: TransformerBridge,
    prompts: Sequence[Int[Tensor, "_"]],
    tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """At most `tokens` new tokens after each prompt's ids, likeliest or drawn with `seed`, without the tokenizer's markers.

    torch's own generator is left as it was. The caller sees to it that there is room in the context. A model that carries a dictionary
    KEPT answers from it what it was asked before: for a bench that asks one unchanging model the same many times.
    """
    kept = getattr(model, "__dict__", {}).get(KEPT)
    if kept is None:
        return _written(model, prompts, tokens, temperature, seed)
    key = (tokens, temperature, seed, *(tuple(ids.tolist()) for ids in prompts))
    if key not in kept:
        kept[key] = _written(model, prompts, tokens, temperature, seed)
    return list(kept[key])


def next_tokens(model: TransformerBridge, prompts: Sequence[Int[Tensor, "_"]]) -> Float[Tensor, "prompt vocab"]:
    """log p of the token after each prompt; kept as `write_many` keeps what was written."""
    kept = getattr(model, "__dict__", {}).get(KEPT)
    if kept is None:
        return many.next_tokens(model, prompts)
    key = ("next", *(tuple(ids.tolist()) for ids in prompts))
    if key not in kept:
        kept[key] = many.next_tokens(model, prompts)
    return kept[key]


def _written(
    model: TransformerBridge, prompts: Sequence[Int[Tensor, "_"]], tokens: int, temperature: float, seed: int
) -> list[str]:
    tokenizer: Any = model.tokenizer
    found = many.write_ids(model, prompts, tokens, temperature=temperature, seed=seed)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in found]
