"""What each latent does, in one pass over codes: how often, how strongly, and where most.

    counts[i]       slots that name latent i, empty ones (value 0) left out
    histogram[i, b] of these, how many have a value in bin b
    top[i]          the largest of their values and their tokens, ties to the lowest token

A slot's bin is the last whose lower edge its value reaches; the outer bins are open, so every slot is in one. Values of any
sign count, NaN as the largest. The slots are sorted once, by latent, value and token packed into one key; all else reads a
latent's part of that list (segment means this part). Exact and repeatable; nothing of size token * latent is held.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .dispatch import path_of


class Segment(NamedTuple):
    """Statistics of each latent; where it has fewer examples than asked for, value 0 and token -1."""

    counts: Int[Tensor, "latent"]
    histogram: Int[Tensor, "latent bin"]
    top_values: Float[Tensor, "latent example"]
    top_tokens: Int[Tensor, "latent example"]


def segment(
    values: Float[Tensor, "token k"],
    indices: Int[Tensor, "token k"],
    latents: int,
    edges: Float[Tensor, "edge"],
    examples: int,
) -> Segment:
    """Counts (int64), histogram (int32) over the bins between ascending `edges`, and top examples of each latent.

    For example codes `[[2., 1.], [3., 0.]]` of latents `[[0, 1], [0, 0]]` give with edges `[0., 1.5, 9.]` and one example
    counts [2, 1], histogram [[0, 2], [1, 0]], top values [[3], [1]] (in the type of `values`) and top tokens [[1], [0]].
    Not differentiable. Raises ValueError for fewer than two edges or less than one example, and, on the CPU only, for an
    index outside [0, latents).
    """
    if len(edges) < 2 or examples < 1:
        raise ValueError(
            f"expected two or more edges of bins and at least one example; got {len(edges)} edges, {examples} examples"
        )
    return Segment(*_segment(values.detach(), indices, latents, edges, examples))


@torch.library.custom_op(
    "unweave::segment",
    mutates_args=(),
    schema="(Tensor values, Tensor indices, int latents, Tensor edges, int examples) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _segment(
    values: Tensor, indices: Tensor, latents: int, edges: Tensor, examples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return path_of("segment", values)(values, indices, latents, edges, examples)


@_segment.register_fake
def _(
    values: Tensor, indices: Tensor, latents: int, edges: Tensor, examples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    top = (latents, examples)
    return (
        values.new_empty(latents, dtype=torch.int64),
        values.new_empty(latents, len(edges) - 1, dtype=torch.int32),
        values.new_empty(top),
        values.new_empty(top, dtype=torch.int64),
    )


def sorted_keys(values: Tensor, indices: Tensor, latents: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [slot] ascending by latent, then value descending, then token; the slot of each; where each latent's begin.

    A key is the latent << 32, less the order-preserving 32 bits of the float32 value; empty slots come last, as of the latent
    `latents`. The sort is stable, so equal values keep the order of their tokens.
    """
    value = values.float().reshape(-1)
    bits = value.view(torch.int32)
    # As in gpu/keys.py: negative values flipped; NaN, of whatever sign, above all.
    key = torch.where(value.isnan(), 2**31 - 1, bits ^ ((bits >> 31) & (2**31 - 1))).long()
    latent = torch.where(value == 0, latents, indices.reshape(-1).long())
    keys, slots = torch.sort((latent << 32) + (2**31 - 1 - key), stable=True)
    return keys, slots, torch.searchsorted(keys, torch.arange(latents + 1, device=keys.device) << 32)
