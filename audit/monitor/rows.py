"""Activations of one block of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from ...saes.capture import capture
from ...saes.text import Block, pad_blocks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def activations(model: TransformerBridge, block: Int[Tensor, "token"], sites: list[str]) -> dict[str, Tensor]:
    """`[token d]` of each site (canonical names) on the CPU; UserError where one is not finite."""
    return capture(model, pad_blocks([Block(block.cpu(), 0)]), sites)
