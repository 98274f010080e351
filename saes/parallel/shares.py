"""Which rows of a dictionary's tensors a rank holds: of every block the same share of its latents, so that each rank has work in each.

What has no row for each latent (b_dec, W_skip) is held alike by all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .ranks import Ranks

SHARED_OUT = {"W_enc", "W_dec", "b_enc", "r_mag", "b_mag", "log_threshold", "threshold", "silent_tokens"}
FACTOR = re.compile(r"\.v\d$")  # of a factored moment


def is_shared_out(name: str) -> bool:
    """Whether a tensor of a run's state (`weight.W_enc`, `adam.W_enc.m`, `silent_tokens`) has a row for each latent.

    The factored optimiser's do not all have one; but with it no latents are shared out.
    """
    return not SHARED_OUT.isdisjoint(name.split(".")) and not FACTOR.search(name)


def gathered(
    tensors: Mapping[str, Tensor], blocks: int, ranks: Ranks, everywhere: bool = True
) -> dict[str, Tensor] | None:
    """Whole tensors from each rank's rows, on the CPU; None where this is not the first rank, unless they are wanted `everywhere`."""
    if ranks.size == 1:
        return dict(tensors)
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = ranks.gather(tensor, "latent", "result") if is_shared_out(name) else [tensor]
        if everywhere or ranks.is_first:
            whole[name] = interleaved([part.cpu() for part in parts], blocks) if len(parts) > 1 else parts[0].cpu()
    return whole if everywhere or ranks.is_first else None


def interleaved(parts: list[Tensor], blocks: int) -> Tensor:
    """The rows of all ranks in the order of the dictionary: block by block, in each the shares in the order of the ranks."""
    chunks = [part.chunk(blocks) for part in parts]
    return torch.cat([of_rank[block] for block in range(blocks) for of_rank in chunks])


def share_of(whole: Tensor, blocks: int, ranks: Ranks) -> Tensor:
    """The rows of a whole tensor that a rank holds; the inverse of `interleaved`."""
    if ranks.latent == 1:
        return whole
    return torch.cat([block.chunk(ranks.latent)[ranks.latent_rank] for block in whole.chunk(blocks)])
