"""BatchTopK over ranks: the n k largest pre-activations of the whole batch and of all latents, exactly, without gathering them.

each rank    takes more of its own than it can expect to keep (the best SLACK n k / ranks), which is a superset of what it keeps
             unless its smallest candidate lies above the threshold; then it takes twice as many, and all begin again
threshold    the (n k)-th largest key: positive floats are ordered as their bits are, so the key is found 16 bits at a time from
             histograms of 65,536 bins that are summed over the ranks
ties         of the values that equal the threshold those of the lowest token, then of the lowest latent, as one process takes them
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...kernels import encode_batch_topk
from .ranks import Ranks

SLACK = 1.5
BITS = 16


def shared_batch_topk(
    x: Float[Tensor, "token d"],
    W_enc: Float[Tensor, "latent d"],
    b_enc: Float[Tensor, "latent"],
    k: int,
    ranks: Ranks,
) -> tuple[Float[Tensor, "token width"], Int[Tensor, "token width"]]:
    """This rank's part of `encode_batch_topk` over all ranks: its tokens `x`, its share of the latents; differentiable likewise."""
    if ranks.size == 1:
        return encode_batch_topk(x, W_enc, b_enc, k)
    latents = len(W_enc)
    taken = min(math.ceil(SLACK * k / ranks.latent) + 4, latents)
    while True:
        values, indices = encode_batch_topk(x, W_enc, b_enc, taken)
        found = values.detach()[values.detach() > 0]
        threshold, room, equal = nth_largest(found, len(x) * ranks.data * k, ranks)
        # Cut short among what counts: there may be more above, or level with, the threshold.
        is_short = taken < latents and len(found) == len(x) * taken and bool(found.min() >= threshold)
        if not int(ranks.reduce(torch.tensor(int(is_short), device=x.device), "all", op="max")):
            break
        taken = min(2 * taken, latents)
    is_kept = values.detach() > threshold
    is_level = (values.detach() == threshold) & (values.detach() > 0)
    if room < equal:
        is_level = is_level & first_of(is_level, indices, latents, room, ranks)
    return torch.where(is_kept | is_level, values, 0), indices


def nth_largest(found: Float[Tensor, "value"], n: int, ranks: Ranks) -> tuple[Tensor, int, int]:
    """Of all positive values the n-th largest (0 if there are fewer), how many equal ones are among the n, how many there are."""
    wide = found.dtype == torch.float64
    keys = found.contiguous().view(torch.int64 if wide else torch.int32).long()
    prefix, room, equal = 0, n, 0
    for shift in range(64 - BITS if wide else 32 - BITS, -1, -BITS):
        digits = (keys >> shift) & (2**BITS - 1)
        counts = ranks.reduce(torch.bincount(digits, minlength=2**BITS), "all")
        above = counts.flip(0).cumsum(0).flip(0)  # values whose digit is at least this one
        if int(above[0]) < room:
            return found.new_zeros(()), 0, 0
        digit = int((above >= room).sum()) - 1
        room -= int(above[digit] - counts[digit])
        equal = int(counts[digit])
        keys, prefix = keys[digits == digit], prefix << BITS | digit
    as_bits = torch.tensor([prefix], dtype=torch.int64 if wide else torch.int32, device=found.device)
    return as_bits.view(found.dtype)[0], room, equal


def first_of(
    is_level: Bool[Tensor, "token width"], indices: Int[Tensor, "token width"], latents: int, room: int, ranks: Ranks
) -> Bool[Tensor, "token width"]:
    """True for the `room` lowest places, by token of the batch and then latent of the dictionary, that are set on any rank."""
    token = torch.arange(len(is_level), device=indices.device)[:, None] + len(is_level) * ranks.data_rank
    place = token * (latents * ranks.latent) + indices + latents * ranks.latent_rank
    own = place[is_level]
    longest = int(ranks.reduce(torch.tensor(len(own), device=own.device), "all", op="max"))
    padded = torch.nn.functional.pad(own, (0, longest - len(own)), value=2**62)
    every = torch.cat(ranks.gather(padded, "all")).sort().values
    return place <= every[room - 1]
