"""The one pass over token x latent: the two largest of each group of 32 latents, and a bound of the rest.

    pre[t, i] = <x[t], W_enc[s, i]> + b_enc[s, i]      (or given)      -> keys [s token 2 groups], words [s token groups]

A program computes a tile of pre-activations [BM, 128] in float32 and reduces it before it leaves the registers, so what
is written is 12 bytes for 32 latents instead of 128. The columns of the tile are dealt to its four groups in pairs,
(0 1), (8 9), (16 17), ... to the first: in the layout of the tensor cores' accumulators (sm_80 to sm_90) those are one
thread's, and the reductions need no shuffles. Latents of one group are `groups` apart (keys.py), because trained and
nested dictionaries are ordered by frequency: neighbours would crowd one group.

Given up: entries past the second of a group are not written; who needs them computes the group again (finish.py).
"""

from typing import no_type_check

import torch
import triton.language as tl
from torch import Tensor

from .keys import HIGHEST, LOWEST, key_of, two_largest
from .table import kernel, row


@kernel
@no_type_check
def group_matmul(x_ptr, w_ptr, bias_ptr, floor_ptr, keys_ptr, words_ptr, tokens, d, latents, groups, x_row, w_row,
                 w_stack, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """One tile [BM, BN] of pre-activations to BN / 32 groups of each of BM rows.

    bias and floor [stack, 32 groups] are in the order of the tiles' columns (`deal`); a key up to its floor is not there.
    """
    down = tl.cdiv(tokens, BM)
    across = groups // (BN // 32)
    stack, pid = tl.program_id(0) // (down * across), tl.program_id(0) % (down * across)
    # Eight tiles of tokens in turn meet one tile of latents: both stay in L2.
    band = pid // (8 * across)
    height = tl.minimum(down - 8 * band, 8)
    place = pid % (8 * across)
    tile = place // height
    token = (8 * band + place % height) * BM + tl.arange(0, BM)  # [BM]

    column = tl.arange(0, BN)
    latent = tile * (BN // 32) + (column % 8) // 2 + groups * (column // 8 * 2 + column % 2)  # [BN]
    # Clamped rather than masked: rows past the end are read in place of none, and not written.
    x_rows = x_ptr + tl.minimum(token, tokens - 1).to(tl.int64) * x_row
    w_rows = w_ptr + stack.to(tl.int64) * w_stack + tl.minimum(latent, latents - 1).to(tl.int64) * w_row
    pre = tl.zeros([BM, BN], tl.float32)
    for start in range(0, d, BK):
        step = start + tl.arange(0, BK)
        x = tl.load(x_rows[:, None] + step[None, :], mask=(step < d)[None, :], other=0.0)  # [BM, BK]
        w = tl.load(w_rows[None, :] + step[:, None], mask=(step < d)[:, None], other=0.0)  # [BK, BN]
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        pre = tl.dot(x, w, pre, input_precision="ieee")

    at = (stack * across + tile) * BN + column
    bias, floor = tl.load(bias_ptr + at), tl.load(floor_ptr + at)  # [BN]
    keys = key_of(pre + bias[None, :])
    keys = tl.where(keys <= floor[None, :], LOWEST, keys)
    keys = tl.reshape(keys, [BM, BN // 8, 4, 2])
    keys = tl.reshape(tl.permute(keys, [0, 2, 1, 3]), [BM, 4, BN // 4])
    first, second, word = two_largest(keys, tl.arange(0, 32)[None, None, :], 2)  # [BM, 4]

    at = (stack.to(tl.int64) * tokens + token)[:, None] * groups + (tile * 4 + tl.arange(0, 4))[None, :]
    written = (token < tokens)[:, None] & (tl.arange(0, 4) < 4)[None, :]
    tl.store(words_ptr + at, word, mask=written)
    pair = tl.join(first, second)  # [BM, 4, 2]
    pairs = 2 * tl.expand_dims(at, 2) + tl.arange(0, 2)[None, None, :]
    tl.store(keys_ptr + pairs, pair, mask=tl.broadcast_to(tl.expand_dims(written, 2), pair.shape))


@kernel
@no_type_check
def group_rows(pre_ptr, keys_ptr, words_ptr, latents, groups, pre_row, BG: tl.constexpr):
    """BG groups of one row of given pre-activations."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BG + tl.arange(0, BG)
    position = tl.arange(0, 32)
    latent = group[None, :] + groups * position[:, None]  # [32, BG]
    inside = (group < groups)[None, :] & (latent < latents)
    pre = tl.load(pre_ptr + token * pre_row + latent, mask=inside, other=0.0).to(tl.float32) + 0.0
    first, second, word = two_largest(tl.where(inside, key_of(pre), LOWEST), position[:, None], 0)  # [BG]
    at = token * groups + group
    tl.store(words_ptr + at, word, mask=group < groups)
    tl.store(keys_ptr + 2 * at, first, mask=group < groups)
    tl.store(keys_ptr + 2 * at + 1, second, mask=group < groups)


def deal(b_enc: Tensor, threshold: Tensor | None) -> tuple[Tensor, Tensor]:
    """Bias and floor of every column of the tiles, both [stack, tiles * 128], from those of the latents."""
    latents = b_enc.shape[1]
    tiles = -(-latents // 128)
    column = torch.arange(128 * tiles, device=b_enc.device)
    tile, column = column // 128, column % 128
    latent = tile * 4 + column % 8 // 2 + 4 * tiles * (column // 8 * 2 + column % 2)
    inside, latent = latent < latents, latent.clamp(max=latents - 1)
    # A sum is -0.0 only if both terms are, and the bias is not, after adding zero.
    bias = b_enc.float()[:, latent] + 0.0
    if threshold is None:
        floor = torch.full_like(bias, LOWEST.value, dtype=torch.int32)
    else:
        at = threshold.float()[:, latent] + 0.0
        bits = at.view(torch.int32)
        # "Not at most" rather than "above": a NaN threshold lets everything pass, and shows.
        floor = torch.where(at.isnan(), LOWEST.value, bits ^ ((bits >> 31) & HIGHEST.value))
    return bias, torch.where(inside, floor, HIGHEST.value)


MATMUL = [
    row("16_bit", group_matmul, x="bf16", num_warps=4, num_stages=3, registers=255, BM=128, BN=128, BK=64),
    row("32_bit", group_matmul, num_warps=8, num_stages=3, BM=64, BN=128, BK=16),
]
ROWS = [row("rows", group_rows, BG=32)]
CONFIGURATIONS = [*MATMUL, *ROWS]
