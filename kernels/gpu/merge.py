"""The k first of each row's listed entries: selection by counting, without a sort, reading what is listed once.

1. The k-th largest key: its 32 bits from the top, each set if still k keys are at least as large. Exits once exactly k are.
2. Only if keys equal to the k-th are too many: the bits of the latent up to which they are taken, in the same way.
3. Compaction: the place of an entry is the number of chosen entries before it, a prefix sum. On the way it is noted if a
   group's bound reaches the k-th key: such a row is in doubt, and finish.py looks at it; the others it need not read.

The keys stay in registers while they are counted. A row of more than 131,072 latents (two keys of each 32) is cut into
segments, a program each, and `merge_lists` takes the k first of their lists, counting whole entries, which are never equal. The
list is unordered (finish.py puts it in order) and lacks what the groups do not list.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from .keys import EMPTY, HIGHEST, LOWEST, compact, listed, pack
from .table import kernel, row, run

WIDEST = 8192  # keys that one program holds


def merge(keys: Tensor, words: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of rows [row 2*groups] and [row groups]: entries [row k] as int64, EMPTY where there are fewer; doubt [row] int32."""
    rows, width = keys.shape
    segments = max(1, -(-width // WIDEST))
    many = -(-(width // 2) // segments)
    entries = torch.empty(rows, segments, k, dtype=torch.int64, device=keys.device)
    doubt = torch.empty(rows, segments, dtype=torch.int32, device=keys.device)
    shape = next(shape for shape in ("1024", "4096", "8192") if 2 * many <= int(shape))
    run(MERGE, shape, (rows, segments), keys, words, entries, doubt, k, width // 2, many)
    if segments == 1:
        return entries.squeeze(1), doubt.squeeze(1)
    return _first(entries.flatten(1), k), doubt.amax(1)


def _first(entries: Tensor, k: int) -> Tensor:
    rows, width = entries.shape
    shape = next((shape for shape in ("1024", "2048") if width <= int(shape)), None)
    if shape is None:
        return entries.topk(k, dim=1, sorted=False).values
    first = entries.new_empty(rows, k)
    run(LISTS, shape, (rows,), entries, first, width, k)
    return first


@kernel
@no_type_check
def merge_keys(keys_ptr, words_ptr, list_ptr, doubt_ptr, k, groups, many, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """The list [k] of one segment: the groups from `many` times its number on."""
    token, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = segment * many
    many = tl.minimum(many, groups - first)
    keys_ptr += token * 2 * groups + 2 * first
    words_ptr += token * groups + first
    place = token * tl.num_programs(1) + segment
    list_ptr += place * k
    at = tl.arange(0, BLOCK)
    held = tl.load(keys_ptr + at, mask=at < 2 * many, other=LOWEST)  # [BLOCK]

    kth = tl.full((), LOWEST, tl.int32)
    step = tl.full((), LOWEST, tl.int32)
    found = tl.full((), HIGHEST, tl.int32)
    while (step != 0) & (found != k):
        trial = kth ^ step
        count = tl.sum((held >= trial).to(tl.int32), 0)
        kth = tl.where(count >= k, trial, kth)
        found = tl.where(count >= k, count, found)
        step = (step >> 1) & HIGHEST

    last = tl.full((), HIGHEST, tl.int32)
    if (found > k) & (kth > LOWEST):
        above = tl.sum((held > kth).to(tl.int32), 0)
        last = last_of_equal(keys_ptr, words_ptr, first, many, groups, kth, k - above, CHUNK)

    total = 0
    doubt = tl.full((), 0, tl.int32)
    for start in range(0, 2 * many, CHUNK):
        key, latent, bound = listed(keys_ptr, words_ptr, start, first, many, groups, CHUNK)
        doubt = tl.maximum(doubt, tl.max(((bound >= kth) & (bound > LOWEST)).to(tl.int32), 0))
        chosen = (key > LOWEST) & ((key > kth) | ((key == kth) & (latent <= last)))
        total = compact(list_ptr, total, k, pack(key, latent, False), chosen)
    fill(list_ptr, total, k, CHUNK)
    tl.store(doubt_ptr + place, doubt)


@triton.jit
@no_type_check
def fill(list_ptr, total, k, CHUNK: tl.constexpr):
    """EMPTY in the places from `total` on."""
    for start in range(total // CHUNK * CHUNK, k, CHUNK):
        slot = start + tl.arange(0, CHUNK)
        tl.store(list_ptr + slot, tl.full([CHUNK], EMPTY, tl.int64), mask=(slot >= total) & (slot < k))


@triton.jit
@no_type_check
def last_of_equal(keys_ptr, words_ptr, first, many, groups, key, wanted, CHUNK: tl.constexpr):
    """The latent of number `wanted` (from 1) among a segment's entries with this key, by latent."""
    last = tl.full((), 0, tl.int32)
    step = tl.full((), 1 << 30, tl.int32)
    while step != 0:
        trial = last | step
        before = 0
        for start in range(0, 2 * many, CHUNK):
            other, latent, _ = listed(keys_ptr, words_ptr, start, first, many, groups, CHUNK)
            before += tl.sum(((other == key) & (latent < trial)).to(tl.int32), 0)
        last = tl.where(before < wanted, trial, last)
        step = step >> 1
    return last


@kernel
@no_type_check
def merge_lists(entries_ptr, list_ptr, length, k, BLOCK: tl.constexpr):
    """The k first of a row's `length` entries, in the order they came; EMPTY where there are fewer."""
    token = tl.program_id(0).to(tl.int64)
    list_ptr += token * k
    at = tl.arange(0, BLOCK)
    held = tl.load(entries_ptr + token * length + at, mask=at < length, other=EMPTY)  # [BLOCK]
    kth = tl.full((), EMPTY, tl.int64)
    step = tl.full((), EMPTY, tl.int64)
    while step != 0:
        trial = kth ^ step
        kth = tl.where(tl.sum((held >= trial).to(tl.int32), 0) >= k, trial, kth)
        step = (step >> 1) & (2**63 - 1)
    total = compact(list_ptr, 0, k, held, (held >= kth) & (held > EMPTY))
    fill(list_ptr, total, k, 1024)


MERGE = [
    row("1024", merge_keys, BLOCK=1024, CHUNK=1024),
    row("4096", merge_keys, BLOCK=4096, CHUNK=1024),
    row("8192", merge_keys, num_warps=8, registers=144, BLOCK=WIDEST, CHUNK=2048),
]
LISTS = [
    row("1024", merge_lists, BLOCK=1024),
    row("2048", merge_lists, num_warps=8, BLOCK=2048),
]
CONFIGURATIONS = [*MERGE, *LISTS]
