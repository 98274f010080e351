"""Activations of blocks of tokens: of one, or of many, those of like length in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from ...saes.capture import capture
from ...saes.text import Block, pad_blocks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BATCH = 8  # blocks of one forward pass


def activations(model: TransformerBridge, block: Int[Tensor, "token"], sites: list[str]) -> dict[str, Tensor]:
    """`[token d]` of each site (canonical names) on the CPU; UserError where one is not finite."""
    return activations_of(model, [block], sites)[0]


def activations_of(
    model: TransformerBridge, blocks: Sequence[Int[Tensor, "_"]], sites: list[str]
) -> list[dict[str, Tensor]]:
    """`activations` of each block, in their order. Attention is causal, so what a block is padded with cannot reach it."""
    found: dict[int, dict[str, Tensor]] = {}
    order = sorted(range(len(blocks)), key=lambda number: len(blocks[number]))
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        rows = capture(model, pad_blocks([Block(blocks[number].cpu(), number) for number in numbers]), sites)
        lengths = [len(blocks[number]) for number in numbers]
        parts = {site: of_site.split(lengths) for site, of_site in rows.items()}
        found |= {number: {site: parts[site][place] for site in rows} for place, number in enumerate(numbers)}
    return [found[number] for number in range(len(blocks))]
