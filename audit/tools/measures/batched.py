"""Many prompts answered together: rows are padded after what all begin with, and one new token of each is made at a time.

A row alone and the same row in a batch agree but for rounding, so the same calls must ask for the same rows. A model that is no bridge
over a transformers model answers one prompt after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ....circuits.prompts.stream import stream

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROWS = 48  # answered together
LONG = 8  # tokens that a shared beginning must have to be read once for all
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


def _written(
    model: TransformerBridge, prompts: Sequence[Int[Tensor, "_"]], tokens: int, temperature: float, seed: int
) -> list[str]:
    if not hasattr(getattr(model, "original_model", None), "generate"):
        return [_alone(model, ids, tokens, temperature, seed + number) for number, ids in enumerate(prompts)]
    found: list[str] = []
    for start in range(0, len(prompts), ROWS):
        found += _together(model, prompts[start : start + ROWS], tokens, temperature, seed + start)
    return found


def _alone(model: TransformerBridge, ids: Int[Tensor, "token"], tokens: int, temperature: float, seed: int) -> str:
    new = [piece.token for piece in stream(model, ids, tokens=tokens, temperature=temperature, seed=seed)]
    tokenizer: Any = model.tokenizer
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def shared_prefix(rows: Sequence[Int[Tensor, "_"]]) -> int:
    """How many tokens all rows begin with, if that is LONG or more and there are several rows; else 0. Each row keeps one of its own."""
    least = min(map(len, rows)) - 1
    if len(rows) < 2 or least < LONG:
        return 0
    table = torch.stack([row[:least].cpu() for row in rows])
    same = (table == table[:1]).all(0).long().cumprod(0)
    count = int(same.sum())
    return count if count >= LONG else 0


@torch.no_grad()
def _together(
    model: TransformerBridge, rows: Sequence[Int[Tensor, "_"]], tokens: int, temperature: float, seed: int
) -> list[str]:
    tokenizer: Any = model.tokenizer
    end = tokenizer.eos_token_id
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end or 0)
    widest, shared = max(map(len, rows)), shared_prefix(rows)
    ids = torch.full((len(rows), widest), int(padding))
    real = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        ids[line, :shared], real[line, :shared] = row[:shared].cpu(), 1
        ids[line, widest - len(row) + shared :] = row[shared:].cpu()
        real[line, widest - len(row) + shared :] = 1
    draw: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        draw = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    device = next(model.parameters()).device
    hidden: Any = model.original_model
    if shared:  # a chat template's system message is most of a short question: it is read once
        draw["past_key_values"] = hidden(ids[:1, :shared].to(device), use_cache=True).past_key_values
        draw["past_key_values"].batch_repeat_interleave(len(rows))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _plain_decoding(hidden):
        torch.manual_seed(seed)
        out = hidden.generate(
            ids.to(device),
            attention_mask=real.to(device),
            max_new_tokens=tokens,
            pad_token_id=int(padding),
            eos_token_id=end,
            **draw,
        )
    return [tokenizer.decode(row[widest:], skip_special_tokens=True).strip() for row in out]


@contextlib.contextmanager
def _plain_decoding(hidden: Any) -> Iterator[None]:
    """Without what a model's folder wants of decoding (a penalty for repeating, words that are suppressed): the model alone speaks."""
    from transformers import GenerationConfig

    own, hidden.generation_config = hidden.generation_config, GenerationConfig()
    try:
        yield
    finally:
        hidden.generation_config = own
