"""The token * k largest pre-activations of a whole batch: one threshold, found by counting, with nothing read back.

Entries are ordered by (key descending, token, latent). With n = token * k:

1. The n-th key of what the groups list (keys.py): its 32 bits, four at a time; each pass counts the keys at or above 16
   trial keys with integer atomics, and finds the trial keys from the passes before. Among keys equal to the n-th the
   lower tokens go first (a prefix sum over tokens), in the last of these tokens the lower latents.
2. That n-th entry bounds the threshold from below. A group may hold an unlisted entry before it only if both that it
   lists are, so at most n / 2 groups do: they are counted row by row, given places by a prefix sum, and computed again
   into a buffer of that size (64 n bytes, less where the rows are narrower), which cannot overflow.
3. The same count over listed and recomputed entries is final. Every row writes its entries above the threshold, and
   `order` puts them in the order of their latents.

Exact in the same sense as finish.py: each pre-activation has one value, the tensor cores' or the recomputed one. Bussmann
et al. 2024, arXiv 2412.06410, section 3. Given up: with large k / latent step 2 costs more than the dense matmul did.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from .encode import Groups, group, padded, prepared, strides
from .keys import HIGHEST, LOWEST, bound_of, compact, listed, lowest_rest, pack, rest_of_group
from .table import kernel, row, run

PLACES = 8  # digits of four bits
PROGRAMS = 1024  # that share the counting of one dictionary


class Extras(NamedTuple):
    """Groups computed again: of each row the first one's place and how many, their keys [place 32] and numbers [place]."""

    offset: Tensor
    many: Tensor
    keys: Tensor
    group: Tensor


def encode_batch_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """`[s token capacity]` pre-activations and latents, latents ascending, and how many `[s token]`.

    A capacity of -1 is what the widest token needs, at the cost of one host synchronisation.
    """
    inputs = prepared(x, W_enc, b_enc)
    x, W_enc, _ = inputs
    tokens, (stack, latents, d) = len(x), W_enc.shape
    found = group(*inputs)
    rows, groups = found.words.shape
    none = torch.zeros(rows, dtype=torch.int64, device=x.device)
    few = min(tokens * groups, tokens * k // 2) * stack
    extras = Extras(
        none,
        none.int(),
        none.new_empty(max(32 * few, 1), dtype=torch.int32),
        none.new_empty(max(few, 1), dtype=torch.int32),
    )
    listed = torch.arange(stack + 1, device=x.device) * (tokens * 2 * groups)
    common = (tokens, groups, tokens * k)

    digits, last = _threshold(found, extras, [(found.keys, listed)], *common)
    run(FIND, "find", (rows,), *found, digits, last, extras.many, *common)
    end = extras.many.cumsum(0)
    extras = extras._replace(offset=end - extras.many)
    run(
        FILL, "fill", (rows,), *found, digits, last, *extras, *inputs, tokens, d, latents, groups, tokens * k, few,
        *strides(x, W_enc),
    )  # fmt: skip
    computed = torch.cat([end.new_zeros(1), end])[torch.arange(stack + 1, device=x.device) * tokens] * 32
    digits, last = _threshold(found, extras, [(found.keys, listed), (extras.keys, computed)], *common)

    def gather(slots: int) -> tuple[Tensor, Tensor]:
        entries = none.new_empty(rows, slots)
        count = none.new_empty(rows, dtype=torch.int32)
        run(GATHER, "gather", (rows,), *found, digits, last, *extras, entries, count, *common, slots)
        return entries, count

    return padded(gather, (stack, tokens), latents, capacity)


def _threshold(
    found: Groups, extras: Extras, lists: list[tuple[Tensor, Tensor]], tokens: int, groups: int, target: int
) -> tuple[Tensor, Tensor]:
    """Digits of the threshold's key, and of each row the last latent that is taken of those equal to it."""
    rows = len(found.words)
    stack = rows // max(tokens, 1)
    device = found.words.device
    digits = torch.zeros(stack, PLACES, 16, dtype=torch.int64, device=device)
    for place in range(PLACES):
        for keys, bounds in lists:
            run(COUNT, "count", (stack, PROGRAMS if device.type == "cuda" else 1), keys, bounds, digits, target, place)
    above, equal, last = torch.zeros(3, rows, dtype=torch.int32, device=device)
    run(TIES, "ties", (rows,), *found, digits, *extras, above, equal, tokens, groups, target)
    equal = equal.view(stack, tokens)
    left = target - above.view(stack, tokens).sum(1, keepdim=True)
    quota = (left - (equal.cumsum(1) - equal)).clamp(min=0).minimum(equal).int()
    run(LAST, "last", (rows,), *found, digits, *extras, quota, equal.contiguous(), last, tokens, groups, target)
    return digits, last


@kernel
@no_type_check
def count_digits(keys_ptr, bounds_ptr, digits_ptr, target, place, BLOCK: tl.constexpr):
    """Count a dictionary's keys from each of 16 trial keys on."""
    stack = tl.program_id(0)
    begin, end = tl.load(bounds_ptr + stack), tl.load(bounds_ptr + stack + 1)
    digits_ptr += stack * 128
    number = tl.arange(0, 16)
    trial = threshold_key(digits_ptr, target, place) ^ (number << (28 - 4 * place))
    many = tl.zeros([16], tl.int64)
    for start in range(begin + tl.program_id(1) * BLOCK, end, tl.num_programs(1) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        key = tl.load(keys_ptr + at, mask=at < end, other=LOWEST)
        here = (key[None, :] >= trial[:, None]) & (key > LOWEST)[None, :]  # [16, BLOCK]
        many += tl.sum(here.to(tl.int32), 1)
    tl.atomic_add(digits_ptr + place * 16 + number, many)


@triton.jit
@no_type_check
def threshold_key(digits_ptr, target, places):
    """The first `places` digits of the largest key that still `target` keys reach; LOWEST if there are not so many."""
    number = tl.arange(0, 16)
    key = tl.full((), LOWEST, tl.int32)
    for place in range(0, places):
        many = tl.load(digits_ptr + place * 16 + number)
        digit = tl.sum(((many >= target) & (number > 0)).to(tl.int32), 0)
        key = key ^ (digit << (28 - 4 * place))
    return key


@triton.jit
@no_type_check
def count_row(keys_ptr, words_ptr, extra_ptr, group_ptr, many, groups, key, end, CHUNK: tl.constexpr):
    """Of a row's entries, how many are above `key`, and how many equal to it and of a latent before `end`."""
    above, equal = 0, 0
    for start in range(0, 2 * groups, CHUNK):
        other, latent, _ = listed(keys_ptr, words_ptr, start, 0, groups, groups, CHUNK)
        above += tl.sum((other > key).to(tl.int32), 0)
        equal += tl.sum(((other == key) & (other > LOWEST) & (latent < end)).to(tl.int32), 0)
    for number in range(0, many):
        other, latent = extra(extra_ptr, group_ptr, number, groups)
        above += tl.sum((other > key).to(tl.int32), 0)
        equal += tl.sum(((other == key) & (other > LOWEST) & (latent < end)).to(tl.int32), 0)
    return above, equal


@triton.jit
@no_type_check
def extra(extra_ptr, group_ptr, number, groups):
    """Keys [32] and latents [32] of a row's recomputed group."""
    position = tl.arange(0, 32)
    return tl.load(extra_ptr + number * 32 + position), tl.load(group_ptr + number) + groups * position


@kernel
@no_type_check
def count_ties(keys_ptr, words_ptr, digits_ptr, offset_ptr, many_ptr, extra_ptr, group_ptr, above_ptr, equal_ptr,
               tokens, groups, target, CHUNK: tl.constexpr):  # fmt: skip
    """How many entries of a row are above the threshold's key and how many are equal to it."""
    token = tl.program_id(0).to(tl.int64)
    key = threshold_key(digits_ptr + token // tokens * 128, target, 8)
    offset, many = tl.load(offset_ptr + token), tl.load(many_ptr + token)
    above, equal = count_row(keys_ptr + token * 2 * groups, words_ptr + token * groups, extra_ptr + offset * 32,
                             group_ptr + offset, many, groups, key, HIGHEST, CHUNK)  # fmt: skip
    tl.store(above_ptr + token, above)
    tl.store(equal_ptr + token, equal)


@kernel
@no_type_check
def last_tie(keys_ptr, words_ptr, digits_ptr, offset_ptr, many_ptr, extra_ptr, group_ptr, quota_ptr, equal_ptr,
             last_ptr, tokens, groups, target, CHUNK: tl.constexpr):  # fmt: skip
    """The latent up to which a row's entries equal to the threshold's key are taken: `quota` of them; -1 for none."""
    token = tl.program_id(0).to(tl.int64)
    quota, equal = tl.load(quota_ptr + token), tl.load(equal_ptr + token)
    last = tl.full((), HIGHEST, tl.int32)
    if quota == 0:
        last = tl.full((), -1, tl.int32)
    elif quota < equal:
        key = threshold_key(digits_ptr + token // tokens * 128, target, 8)
        offset, many = tl.load(offset_ptr + token), tl.load(many_ptr + token)
        last = tl.full((), 0, tl.int32)
        step = tl.full((), 1 << 30, tl.int32)
        while step != 0:
            _, before = count_row(keys_ptr + token * 2 * groups, words_ptr + token * groups, extra_ptr + offset * 32,
                                  group_ptr + offset, many, groups, key, last | step, CHUNK)  # fmt: skip
            last = tl.where(before < quota, last | step, last)
            step = step >> 1
    tl.store(last_ptr + token, last)


@triton.jit
@no_type_check
def may_hold_more(keys_ptr, words_ptr, block, groups, key, last):
    """Which groups of a block may have unlisted entries before the threshold (key, last): see step 2 above."""
    word = tl.load(words_ptr + block, mask=block < groups, other=LOWEST)
    second = tl.load(keys_ptr + 2 * block + 1, mask=block < groups, other=LOWEST)
    latent = block + groups * ((word >> 5) & 31)
    is_second = (second > key) | ((second == key) & (latent <= last))
    bound = bound_of(word)
    is_rest = (bound > key) | ((bound == key) & (lowest_rest(word, block, groups) <= last))
    return (block < groups) & (bound > LOWEST) & (second > LOWEST) & is_second & is_rest


@kernel
@no_type_check
def find_extras(keys_ptr, words_ptr, digits_ptr, last_ptr, many_ptr, tokens, groups, target, BLOCK: tl.constexpr):
    """How many groups of a row are to be computed again."""
    token = tl.program_id(0).to(tl.int64)
    key, last = threshold_key(digits_ptr + token // tokens * 128, target, 8), tl.load(last_ptr + token)
    many = 0
    for start in range(0, groups, BLOCK):
        block = start + tl.arange(0, BLOCK)
        more = may_hold_more(keys_ptr + token * 2 * groups, words_ptr + token * groups, block, groups, key, last)
        many += tl.sum(more.to(tl.int32), 0)
    tl.store(many_ptr + token, many)


@kernel
@no_type_check
def fill_extras(keys_ptr, words_ptr, digits_ptr, last_ptr, offset_ptr, many_ptr, extra_ptr, group_ptr, x_ptr, w_ptr,
                b_ptr, tokens, d, latents, groups, target, few, x_row, w_row, w_stack, BLOCK: tl.constexpr,
                BD: tl.constexpr):  # fmt: skip
    """Compute them."""
    token = tl.program_id(0).to(tl.int64)
    stack = token // tokens
    key, last = threshold_key(digits_ptr + stack * 128, target, 8), tl.load(last_ptr + token)
    keys_ptr += token * 2 * groups
    words_ptr += token * groups
    x_ptr += (token % tokens) * x_row
    w_ptr += stack * w_stack
    b_ptr += stack * latents
    slot = tl.load(offset_ptr + token)
    end = slot + tl.load(many_ptr + token)
    start = 0
    while slot < end:
        block = start + tl.arange(0, BLOCK)
        more = may_hold_more(keys_ptr, words_ptr, block, groups, key, last)
        group = tl.min(tl.where(more, block, groups), 0)
        while group < groups:
            word = tl.load(words_ptr + group)
            fresh, _ = rest_of_group(
                group, groups, word, x_ptr, w_ptr, b_ptr, b_ptr, w_row, d, latents, True, False, BD
            )
            # Never false: step 2 bounds the number of places.
            if slot < few:
                tl.store(extra_ptr + slot * 32 + tl.arange(0, 32), fresh)
                tl.store(group_ptr + slot, group)
            slot += 1
            group = tl.min(tl.where(more & (block > group), block, groups), 0)
        start += BLOCK


@kernel
@no_type_check
def gather_chosen(keys_ptr, words_ptr, digits_ptr, last_ptr, offset_ptr, many_ptr, extra_ptr, group_ptr, list_ptr,
                  count_ptr, tokens, groups, target, capacity, CHUNK: tl.constexpr):  # fmt: skip
    """A row's entries from the threshold on: the first `capacity` found to the list, and how many there are."""
    token = tl.program_id(0).to(tl.int64)
    key, last = threshold_key(digits_ptr + token // tokens * 128, target, 8), tl.load(last_ptr + token)
    keys_ptr += token * 2 * groups
    words_ptr += token * groups
    list_ptr += token * capacity
    offset, many = tl.load(offset_ptr + token), tl.load(many_ptr + token)
    extra_ptr += offset * 32
    group_ptr += offset
    total = 0
    for start in range(0, 2 * groups, CHUNK):
        other, latent, _ = listed(keys_ptr, words_ptr, start, 0, groups, groups, CHUNK)
        chosen = (other > LOWEST) & ((other > key) | ((other == key) & (latent <= last)))
        total = compact(list_ptr, total, capacity, pack(other, latent, True), chosen)
    for number in range(0, many):
        other, latent = extra(extra_ptr, group_ptr, number, groups)
        chosen = (other > LOWEST) & ((other > key) | ((other == key) & (latent <= last)))
        total = compact(list_ptr, total, capacity, pack(other, latent, True), chosen)
    tl.store(count_ptr + token, total)


COUNT = [row("count", count_digits, BLOCK=1024)]
TIES = [row("ties", count_ties, CHUNK=1024)]
LAST = [row("last", last_tie, CHUNK=1024)]
FIND = [row("find", find_extras, BLOCK=1024)]
FILL = [row("fill", fill_extras, x="bf16", BLOCK=256, BD=64)]
GATHER = [row("gather", gather_chosen, CHUNK=1024)]
CONFIGURATIONS = [*COUNT, *TIES, *LAST, *FIND, *FILL, *GATHER]
