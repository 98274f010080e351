"""The k first of each row's listed entries: selection by counting, without a sort.

1. The k-th largest key: its 32 bits from the top, each set if still k keys are at least as large. Exits once exactly k are.
2. Only if keys equal to the k-th are too many: the bits of the latent up to which they are taken, in the same way.
3. Compaction: the place of an entry is the number of chosen entries before it, a prefix sum. On the way it is noted if a
   group's bound reaches the k-th key: such a row is in doubt, and finish.py looks at it; the others it need not read.

The keys of a row of up to 131,072 latents (two of each 32) stay in registers while they are counted; wider rows are
counted in chunks, from the cache. The list is unordered (finish.py puts it in order) and lacks what the groups do not list.
"""

from typing import no_type_check

import triton
import triton.language as tl

from .keys import EMPTY, HIGHEST, LOWEST, bound_of, candidates, pack
from .table import kernel, row


@kernel
@no_type_check
def merge(keys_ptr, words_ptr, list_ptr, doubt_ptr, k, groups, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
          HELD: tl.constexpr):  # fmt: skip
    """list [k] of a row: its first k entries as int64, EMPTY where there are fewer; doubt: whether it may lack some."""
    token = tl.program_id(0).to(tl.int64)
    keys_ptr += token * 2 * groups
    words_ptr += token * groups
    list_ptr += token * k
    at = tl.arange(0, BLOCK)
    held = tl.load(keys_ptr + at, mask=at < 2 * groups, other=LOWEST)  # [BLOCK]

    kth = tl.full((), LOWEST, tl.int32)
    step = tl.full((), LOWEST, tl.int32)
    found = tl.full((), HIGHEST, tl.int32)
    while (step != 0) & (found != k):
        trial = kth ^ step
        count = count_from(held, keys_ptr, groups, trial, BLOCK, HELD)
        kth = tl.where(count >= k, trial, kth)
        found = tl.where(count >= k, count, found)
        step = (step >> 1) & HIGHEST

    last = tl.full((), HIGHEST, tl.int32)
    if (found > k) & (kth > LOWEST):
        above = 0
        if kth < HIGHEST:
            above = count_from(held, keys_ptr, groups, kth + 1, BLOCK, HELD)
        last = last_of_equal(keys_ptr, words_ptr, groups, kth, k - above, CHUNK)

    total = 0
    doubt = tl.full((), 0, tl.int32)
    for start in range(0, 2 * groups, CHUNK):
        key, latent = candidates(keys_ptr, words_ptr, start, groups, CHUNK)
        entry = start + tl.arange(0, CHUNK)
        bound = bound_of(tl.load(words_ptr + entry // 2, mask=entry < 2 * groups, other=LOWEST))
        doubt = tl.maximum(doubt, tl.max(((bound >= kth) & (bound > LOWEST)).to(tl.int32), 0))
        chosen = (key > LOWEST) & ((key > kth) | ((key == kth) & (latent <= last)))
        slot = total + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(list_ptr + slot, pack(key, latent, False), mask=chosen & (slot < k))
        total += tl.sum(chosen.to(tl.int32), 0)
    for start in range(total // CHUNK * CHUNK, k, CHUNK):
        slot = start + tl.arange(0, CHUNK)
        tl.store(list_ptr + slot, tl.full([CHUNK], EMPTY, tl.int64), mask=(slot >= total) & (slot < k))
    tl.store(doubt_ptr + token, doubt)


@triton.jit
@no_type_check
def count_from(held, keys_ptr, groups, key, BLOCK: tl.constexpr, HELD: tl.constexpr):
    """How many keys of a row are at least `key` (above LOWEST)."""
    if HELD:
        count = tl.sum((held >= key).to(tl.int32), 0)
    else:
        at = tl.arange(0, BLOCK)
        many = tl.zeros([BLOCK], tl.int32)
        for start in range(0, 2 * groups, BLOCK):
            other = tl.load(keys_ptr + start + at, mask=start + at < 2 * groups, other=LOWEST)
            many += (other >= key).to(tl.int32)
        count = tl.sum(many, 0)
    return count


@triton.jit
@no_type_check
def last_of_equal(keys_ptr, words_ptr, groups, key, wanted, CHUNK: tl.constexpr):
    """The latent of number `wanted` (from 1) among a row's entries with this key, by latent."""
    last = tl.full((), 0, tl.int32)
    step = tl.full((), 1 << 30, tl.int32)
    while step != 0:
        trial = last | step
        before = 0
        for start in range(0, 2 * groups, CHUNK):
            other, latent = candidates(keys_ptr, words_ptr, start, groups, CHUNK)
            before += tl.sum(((other == key) & (latent < trial)).to(tl.int32), 0)
        last = tl.where(before < wanted, trial, last)
        step = step >> 1
    return last


CONFIGURATIONS = [
    row("1024", merge, BLOCK=1024, CHUNK=1024, HELD=True),
    row("4096", merge, BLOCK=4096, CHUNK=1024, HELD=True),
    row("8192", merge, num_warps=8, registers=144, BLOCK=8192, CHUNK=2048, HELD=True),
    row("wider", merge, num_warps=8, registers=144, BLOCK=4096, CHUNK=2048, HELD=False),
]
