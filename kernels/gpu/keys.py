"""Order-preserving keys, and what the kernels of the encoder family share.

    key(v)  = the bits of float32 v as int32, the lower 31 flipped if v is negative: v < w exactly if key(v) < key(w)
    latent  = group + groups * position     position 0..31 of the group, so the groups' latents are `groups` apart

-0.0 has the key of 0.0, every NaN the largest int32, and LOWEST (the smallest int32) marks what is not there: a latent
past the end or one below its threshold. A key gives its value back exactly.

A row (one token in one dictionary) is summarised group by group: the two largest keys, and a word with their positions and
an upper bound of the third key (rounded up to a multiple of 1024, exact for small integers and zero):

    keys [2 groups]    first, second of group 0, of group 1, ...       positions ascend with latents: ties to the lowest
    words [groups]     bound | position of second << 5 | position of first

An entry is one int64 that sorts like the rule: (key, 2^31 - 1 - latent) if the largest come first, or
(2^31 - 1 - latent, key) if the lowest latents do. Entries of a row are never equal.

`no_type_check` under `triton.jit` keeps the tests' type checker, which wraps every function of the package, out of kernels.
"""

from typing import no_type_check

import triton
import triton.language as tl

GROUP = tl.constexpr(32)
LOWEST = tl.constexpr(-(2**31))
HIGHEST = tl.constexpr(2**31 - 1)
EMPTY = tl.constexpr(-(2**63))
TOP_BOUND = tl.constexpr(2**31 - 1024)


@triton.jit
@no_type_check
def key_of(value):
    """Key of a float32 that is not -0.0 (add a zero first)."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(value != value, HIGHEST, bits ^ ((bits >> 31) & HIGHEST))


@triton.jit
@no_type_check
def value_of(key):
    return (key ^ ((key >> 31) & HIGHEST)).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def pack(key, latent, BY_LATENT: tl.constexpr):
    """Entries that in descending order are in the order of the output."""
    place = (latent ^ HIGHEST).to(tl.int64)
    if BY_LATENT:
        entry = (place << 32) | (key.to(tl.int64) & 0xFFFFFFFF)
    else:
        entry = (key.to(tl.int64) << 32) | place
    return entry


@triton.jit
@no_type_check
def two_largest(keys, position, AXIS: tl.constexpr):
    """The two largest along an axis of 32, and the word that places them and bounds the third."""
    first = tl.max(keys, AXIS)
    at_first = tl.min(tl.where(keys == tl.expand_dims(first, AXIS), position, 32), AXIS)
    keys = tl.where(position == tl.expand_dims(at_first, AXIS), LOWEST, keys)
    second = tl.max(keys, AXIS)
    at_second = tl.min(tl.where(keys == tl.expand_dims(second, AXIS), position, 32), AXIS)
    keys = tl.where(position == tl.expand_dims(at_second, AXIS), LOWEST, keys)
    third = tl.minimum(tl.max(keys, AXIS), TOP_BOUND)
    return first, second, ((third + 1023) & -1024) | (at_second << 5) | at_first


@triton.jit
@no_type_check
def bound_of(word):
    """Upper bound of the keys of a group beside its two largest; LOWEST if there are none."""
    bound = word & -1024
    return tl.where(bound == TOP_BOUND, HIGHEST, bound)


@triton.jit
@no_type_check
def lowest_rest(word, group, groups):
    """Lower bound of the latents of a group beside its two largest."""
    first, second = word & 31, (word >> 5) & 31
    low, high = tl.minimum(first, second), tl.maximum(first, second)
    position = tl.where(low > 0, 0, tl.where(high > 1, 1, 2))
    return group + groups * position


@triton.jit
@no_type_check
def listed(keys_ptr, words_ptr, start, first, many, groups, CHUNK: tl.constexpr):
    """Keys, latents and bounds of their groups, all [CHUNK], of a row's listed entries from number `start` on.

    The pointers stand at the row's group `first`; `many` groups are read on from there: 0 and `groups` for the whole row.
    """
    entry = start + tl.arange(0, CHUNK)
    inside = entry < 2 * many
    key = tl.load(keys_ptr + entry, mask=inside, other=LOWEST)
    word = tl.load(words_ptr + entry // 2, mask=inside, other=LOWEST)
    return key, first + entry // 2 + groups * ((word >> (5 * (entry % 2))) & 31), bound_of(word)


@triton.jit
@no_type_check
def compact(list_ptr, total, k, entry, chosen):
    """Write the chosen entries after the `total` that are there; returns the new total."""
    slot = total + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(list_ptr + slot, entry, mask=chosen & (slot < k))
    return total + tl.sum(chosen.to(tl.int32), 0)


@triton.jit
@no_type_check
def rest_of_group(group, groups, word, x_ptr, w_ptr, b_ptr, t_ptr, w_row, d, latents,
                  MATMUL: tl.constexpr, THRESHOLD: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    """Keys [32] and latents [32] of a group, computed again; LOWEST where listed, past the end or not above the threshold.

    Without MATMUL `x_ptr` is the row of given pre-activations itself.
    """
    position = tl.arange(0, GROUP)
    latent = group + groups * position
    inside = latent < latents
    if MATMUL:
        pre = tl.zeros([GROUP], tl.float32)
        rows = w_ptr + latent.to(tl.int64) * w_row
        for start in range(0, d, BD):
            column = start + tl.arange(0, BD)
            x = tl.load(x_ptr + column, mask=column < d, other=0.0).to(tl.float32)
            mask = inside[:, None] & (column < d)[None, :]
            w = tl.load(rows[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)  # [32, BD]
            pre += tl.sum(w * x[None, :], 1)
        pre += tl.load(b_ptr + latent, mask=inside, other=0.0).to(tl.float32) + 0.0
    else:
        pre = tl.load(x_ptr + latent, mask=inside, other=0.0).to(tl.float32) + 0.0
    there = inside & (position != (word & 31)) & (position != ((word >> 5) & 31))
    if THRESHOLD:
        # "not at most", so that NaN shows.
        low = pre <= tl.load(t_ptr + latent, mask=inside, other=0.0).to(tl.float32)
        there = there & (low == 0)
    return tl.where(there, key_of(pre), LOWEST), latent
