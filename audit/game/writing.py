"""What a model writes to many prompts, for lessons, checks and baselines (the batches are those of audit/tools/measures/batched.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...circuits.prompts.text import has_chat, prompt_ids
from ..tools.measures.batched import write_many

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def write(
    model: TransformerBridge, prompts: Sequence[str], tokens: int = 16, *, temperature: float = 0.0, seed: int = 0
) -> list[str]:
    """At most `tokens` new tokens to each prompt, asked as one message of a chat where the model has a template for that."""
    rows = [prompt_ids(model, asked(model, prompt)) for prompt in prompts]
    return write_many(model, rows, tokens, temperature=temperature, seed=seed)


def asked(model: TransformerBridge, prompt: str) -> Any:
    """A prompt as the model is asked: one message of a chat where it has a template, else plain text."""
    return [{"role": "user", "content": prompt}] if has_chat(model) else prompt
