"""The proof, its repair, and the order of the output.

Proof. An entry that its group does not list is, by the rule of the output (value, then latent), at best the pair (bound of
the group, lowest latent of the group beside the two listed). If no group's pair comes before the last entry of a row's
list, the list is the row's top k.

Repair, on the device. Each group whose pair does come before is computed again, 32 dot products, and its unlisted entries
replace the list's last ones one by one. The last entry only rises, so groups passed once need no second look. The two
listed entries of a group keep the value of the tensor cores and the others get the recomputed one: one value each, so
the result is the exact top k of one set of float32 pre-activations, and a recomputed sum may differ from the tensor
cores' by the order of its terms only.

Order. The place of an entry is the number of entries of its row that come before it: counted in blocks, no sort.
"""

from typing import no_type_check

import triton.language as tl

from .keys import EMPTY, HIGHEST, LOWEST, bound_of, compact, listed, lowest_rest, pack, rest_of_group, value_of
from .table import kernel, row


@kernel
@no_type_check
def repair(list_ptr, doubt_ptr, words_ptr, x_ptr, w_ptr, b_ptr, tokens, d, latents, groups, k, x_row, w_row, w_stack,
           KP: tl.constexpr, BLOCK: tl.constexpr, BD: tl.constexpr, MATMUL: tl.constexpr):  # fmt: skip
    """Complete a row's list [k] from the groups that fail the proof, if the row is in doubt."""
    token = tl.program_id(0).to(tl.int64)
    if tl.load(doubt_ptr + token) != 0:
        stack = token // tokens
        list_ptr += token * k
        words_ptr += token * groups
        x_ptr += (token % tokens) * x_row
        w_ptr += stack * w_stack
        b_ptr += stack * latents
        slot = tl.arange(0, KP)
        # Slots past k are filled with what is never the last.
        entries = tl.load(list_ptr + slot, mask=slot < k, other=2**63 - 1)
        last = tl.min(entries, 0)
        before = last
        for start in range(0, groups, BLOCK):
            block = start + tl.arange(0, BLOCK)
            word = tl.load(words_ptr + block, mask=block < groups, other=LOWEST)
            best = tl.where(block < groups, pack(bound_of(word), lowest_rest(word, block, groups), False), EMPTY)
            group = tl.min(tl.where(best > last, block, groups), 0)
            while group < groups:
                mine = tl.load(words_ptr + group)
                key, latent = rest_of_group(group, groups, mine, x_ptr, w_ptr, b_ptr, b_ptr, w_row, d, latents,
                                            MATMUL, False, BD)  # fmt: skip
                fresh = tl.where(key > LOWEST, pack(key, latent, False), EMPTY)
                for _ in range(0, tl.sum((fresh > last).to(tl.int32), 0)):
                    first = tl.max(fresh, 0)
                    # The list's last gives way once; when `first` is no better, it takes its own place.
                    at = tl.min(tl.where(entries == last, slot, KP), 0)
                    entries = tl.where(slot == at, tl.maximum(first, last), entries)
                    fresh = tl.where(fresh == first, EMPTY, fresh)
                    last = tl.min(entries, 0)
                group = tl.min(tl.where((best > last) & (block > group), block, groups), 0)
        if last > before:
            tl.store(list_ptr + slot, entries, mask=slot < k)


@kernel
@no_type_check
def gather_active(keys_ptr, words_ptr, list_ptr, count_ptr, x_ptr, w_ptr, b_ptr, t_ptr, tokens, d, latents, groups,
                  capacity, x_row, w_row, w_stack, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
                  BD: tl.constexpr):  # fmt: skip
    """A row's entries above the threshold: the first `capacity` found to the list, and how many there are."""
    token = tl.program_id(0).to(tl.int64)
    stack = token // tokens
    keys_ptr += token * 2 * groups
    words_ptr += token * groups
    list_ptr += token * capacity
    x_ptr += (token % tokens) * x_row
    w_ptr += stack * w_stack
    b_ptr += stack * latents
    t_ptr += stack * latents
    total = 0
    for start in range(0, 2 * groups, CHUNK):
        key, latent, _ = listed(keys_ptr, words_ptr, start, 0, groups, groups, CHUNK)
        total = compact(list_ptr, total, capacity, pack(key, latent, True), key > LOWEST)
    for start in range(0, groups, BLOCK):
        block = start + tl.arange(0, BLOCK)
        word = tl.load(words_ptr + block, mask=block < groups, other=LOWEST)
        more = bound_of(word) > LOWEST
        group = tl.min(tl.where(more, block, groups), 0)
        while group < groups:
            mine = tl.load(words_ptr + group)
            key, latent = rest_of_group(group, groups, mine, x_ptr, w_ptr, b_ptr, t_ptr, w_row, d, latents,
                                        True, True, BD)  # fmt: skip
            total = compact(list_ptr, total, capacity, pack(key, latent, True), key > LOWEST)
            group = tl.min(tl.where(more & (block > group), block, groups), 0)
    tl.store(count_ptr + token, total)


@kernel
@no_type_check
def order(list_ptr, count_ptr, values_ptr, indices_ptr, capacity, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
          BY_LATENT: tl.constexpr):  # fmt: skip
    """BLOCK slots of a row's list to their places in the output.

    BY_LATENT: `count` of them are there (else all); the slots after them get (0, 0), and a row that has more than
    `capacity` is NaN.
    """
    token = tl.program_id(0).to(tl.int64)
    list_ptr += token * capacity
    count = capacity
    if BY_LATENT:
        count = tl.load(count_ptr + token)
    slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_there = slot < tl.where(count <= capacity, count, 0)
    mine = tl.load(list_ptr + slot, mask=is_there, other=EMPTY)
    place = slot
    # Nothing to count where all of this block is empty or the row overflows.
    if (tl.program_id(1) * BLOCK < count) & (count <= capacity):
        ahead = tl.zeros([BLOCK], tl.int32)
        for start in range(0, count, CHUNK):
            at = start + tl.arange(0, CHUNK)
            other = tl.load(list_ptr + at, mask=at < count, other=EMPTY)
            ahead += tl.sum((other[None, :] > mine[:, None]).to(tl.int32), 1)
        place = tl.where(is_there, ahead, slot)
    high, low = (mine >> 32).to(tl.int32), mine.to(tl.int32)
    if BY_LATENT:
        value, latent = value_of(low), high ^ HIGHEST
        value = tl.where(is_there, value, tl.where(count > capacity, float("nan"), 0.0))
    else:
        value, latent = value_of(high), low ^ HIGHEST
    latent = tl.where(is_there, latent, 0)
    tl.store(values_ptr + token * capacity + place, value.to(values_ptr.dtype.element_ty), mask=slot < capacity)
    tl.store(indices_ptr + token * capacity + place, latent.to(tl.int64), mask=slot < capacity)


REPAIR = [
    row("matmul", repair, registers=168, KP=1024, BLOCK=1024, BD=64, MATMUL=True, x="bf16"),
    row("matmul_wide", repair, num_warps=8, KP=2048, BLOCK=1024, BD=64, MATMUL=True, x="bf16"),
    row("rows", repair, KP=128, BLOCK=256, BD=64, MATMUL=False, x="bf16"),
    row("rows_wide", repair, num_warps=8, KP=2048, BLOCK=256, BD=64, MATMUL=False, x="bf16"),
]
ACTIVE = [row("active", gather_active, CHUNK=1024, BLOCK=1024, BD=64, x="bf16")]
ORDER = [
    row("by_value", order, BLOCK=128, CHUNK=32, BY_LATENT=False),
    row("by_latent", order, BLOCK=128, CHUNK=32, BY_LATENT=True),
]
CONFIGURATIONS = [*REPAIR, *ACTIVE, *ORDER]
