"""Counts, histogram and top examples of each latent: one program reads one latent's part of the sorted slots.

The sort (segment.py) packs latent, value and token into one key, from which the kernel takes the values back; so its reads
are consecutive, its counts need no atomics, and the top examples are the first of the part.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..reference import check_indices
from ..segment import sorted_keys
from .keys import HIGHEST, value_of
from .table import kernel, row, run

BINS = 64  # of one program


def segment(
    values: Tensor, indices: Tensor, latents: int, edges: Tensor, examples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See segment.py; float64 is computed by the definition."""
    check_indices(indices, latents)
    if values.dtype == torch.float64:
        return reference.segment(values, indices, latents, edges, examples)
    device, bins = values.device, len(edges) - 1
    keys, slots, offsets = sorted_keys(values, indices, latents)
    counts = torch.empty(latents, dtype=torch.int64, device=device)
    histogram = torch.empty(latents, bins, dtype=torch.int32, device=device)
    top_values = torch.empty(latents, examples, dtype=values.dtype, device=device)
    top_tokens = torch.empty(latents, examples, dtype=torch.int64, device=device)
    edges = edges.to(device, torch.float32).contiguous()
    run(
        SEGMENT, "segment", (latents, -(-bins // BINS)), keys, slots, offsets, edges, counts, histogram, top_values,
        top_tokens, max(indices.shape[1], 1), bins, examples,
    )  # fmt: skip
    return counts, histogram, top_values, top_tokens


@kernel
@no_type_check
def segment_latent(key_list_ptr, slots_ptr, offset_ptr, edges_ptr, counts_ptr, histogram_ptr, values_ptr, tokens_ptr,
                   k, bins, examples, CHUNK: tl.constexpr, BINS: tl.constexpr):  # fmt: skip
    """One latent, BINS bins of its histogram; the programs of its first bins do the rest too."""
    latent = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offset_ptr + latent), tl.load(offset_ptr + latent + 1)
    at = tl.arange(0, CHUNK)
    place = tl.program_id(1) * BINS + tl.arange(0, BINS)
    lower = tl.load(edges_ptr + place, mask=(place > 0) & (place < bins), other=float("-inf"))
    upper = tl.load(edges_ptr + place + 1, mask=place < bins, other=0.0)
    many = tl.zeros([BINS], tl.int32)
    for start in range(begin, end, CHUNK):
        value = listed_value(key_list_ptr, start + at, end)
        # "Not below", so that NaN is in the last bin, and in no other.
        here = (value[:, None] < lower[None, :]) == 0
        here = here & ((value[:, None] < upper[None, :]) | (place == bins - 1)[None, :])
        many += tl.sum((here & (start + at < end)[:, None]).to(tl.int32), 0)  # [BINS]
    tl.store(histogram_ptr + latent * bins + place, many, mask=place < bins)
    if tl.program_id(1) == 0:
        tl.store(counts_ptr + latent, end - begin)
        for first in range(0, examples, CHUNK):
            number = first + at
            slot = begin + number
            value = listed_value(key_list_ptr, slot, end)
            token = tl.load(slots_ptr + slot, mask=slot < end, other=0) // k
            out = latent * examples + number
            value = tl.where(slot < end, value, 0.0).to(values_ptr.dtype.element_ty)
            tl.store(values_ptr + out, value, mask=number < examples)
            tl.store(tokens_ptr + out, tl.where(slot < end, token, -1), mask=number < examples)


@triton.jit
@no_type_check
def listed_value(key_list_ptr, slot, end):
    """The values in the keys of these slots."""
    key = tl.load(key_list_ptr + slot, mask=slot < end, other=0)
    return value_of(key.to(tl.int32) ^ HIGHEST)


SEGMENT = [row("segment", segment_latent, CHUNK=32, BINS=BINS)]
CONFIGURATIONS = SEGMENT
