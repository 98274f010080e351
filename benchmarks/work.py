"""Bytes and instructions of the Triton kernels, counted from their code in kernels/gpu.

    bytes    from and to device memory
    scratch  those of them that are neither inputs nor weights nor codes
    again    weights and inputs that are read another time, outside of a matmul
    tensor   floating-point operations on tensor cores
    lanes    instructions elsewhere: the fewest it can be, a multiplication with addition as one

What many programs read counts as read once if it fits in CACHE, and every time if it does not; what one program reads twice
counts once if that fits for all programs that run at a time. (In truth the hit rate falls slowly: all or nothing is
pessimistic just above CACHE.) Left out: launches, and the index arithmetic of `deal` and `segments`.
"""

from __future__ import annotations

from math import exp
from typing import NamedTuple

from unweave.kernels.dispatch import expected_repairs

CACHE = 32 * 2**20  # bytes counted on to stay in L2, as in rows.py
EPILOGUE = 11.4  # instructions per pre-activation beyond those of a matmul: kernels.md section 4, sm_90
RUNNING = 132 * 4  # programs of four warps at a time: with up to 128 registers a thread, four on each multiprocessor
WIDEST = 8192  # keys that one program of `merge` holds, and counts once for each of their 32 bits
STRIP = 256  # columns that decode and its derivatives take at a time
SEGMENT = 128  # slots of a latent that one program sums
SORT = (
    8 * 32 + 8
)  # bytes a slot: a radix sort of 64-bit keys with their places, 8 bits a pass, and a histogram (assumed)


class Shape(NamedTuple):
    """Sizes, and bytes of an element of inputs and weights: 2 or 4."""

    tokens: int
    d: int
    latents: int
    k: int
    size: int

    @property
    def groups(self) -> int:
        """Groups of 32 latents of a row, four to a tile."""
        return -(-self.latents // 128) * 4

    @property
    def slots(self) -> int:
        """Entries of the codes."""
        return self.tokens * self.k

    @property
    def x(self) -> int:
        """Bytes of a matrix [token d]."""
        return self.tokens * self.d * self.size

    @property
    def weights(self) -> int:
        """Bytes of W_enc or W_dec."""
        return self.latents * self.d * self.size


class Work(NamedTuple):
    """What a kernel does; see the head of this file."""

    bytes: float
    scratch: float = 0.0
    again: float = 0.0
    tensor: float = 0.0
    lanes: float = 0.0


def matmul(s: Shape, written: float, epilogue: float = 0.0) -> Work:
    """x @ W.T in tiles [128 128] (16 bits) or [64 128], eight tiles of tokens to one of latents: W is read once a band."""
    rows = 128 if s.size == 2 else 64
    bands = 1 if s.weights <= CACHE else -(-s.tokens // (8 * rows))
    products = float(-(-s.tokens // rows) * rows * s.groups * 32 * s.d)
    is_exact = s.size == 4
    lanes = epilogue * s.tokens * s.latents + (products if is_exact else 0)
    return Work(s.x + bands * s.weights + written, written, 0, 0 if is_exact else 2 * products, lanes)


def dense_matmul(s: Shape) -> Work:
    """A matmul that writes [token latent]."""
    return matmul(s, s.tokens * s.latents * s.size)


def topk_of_matrix(s: Shape) -> Work:
    """`torch.topk` of [token latent]: eight bits a pass and a pass to gather, so 3 reads of 16 bits and 5 of 32."""
    scratch = (s.size + 1) * s.tokens * s.latents * s.size
    return Work(scratch + 12 * s.slots, scratch)


def group_matmul(s: Shape) -> Work:
    """Writes two keys and a word of each group; bias and floor in the order of the tiles are written and read once."""
    return matmul(s, 12 * s.tokens * s.groups + 2 * 8 * 32 * s.groups, EPILOGUE)


def merge(s: Shape) -> Work:
    """Keys and words once, in segments of WIDEST keys, a list of each; with several, these are read for the first k."""
    segments = -(-2 * s.groups // WIDEST)
    moved = 12 * s.tokens * s.groups + segments * (8 * s.slots + 4 * s.tokens)
    lanes = 2.0 * 32 * s.tokens * 2 * s.groups
    if segments > 1:
        moved += (segments + 1) * (8 * s.slots + 4 * s.tokens)
        lanes += 2.0 * 64 * segments * s.slots
    return Work(moved, moved, lanes=lanes)


def recompute(s: Shape) -> Work:
    """Groups that fail the proof, for random rows: 32 rows of W, the token's row and 32 biases each."""
    groups = s.tokens * expected_repairs(s.latents, s.k)
    again = groups * ((0 if s.weights <= CACHE else 32 * s.d * s.size) + s.d * s.size + 32 * 4)
    return Work(again, 0, again, lanes=32.0 * s.d * groups)


def repair(s: Shape) -> Work:
    """Reads every row's doubt; of a row in doubt the words and the list, which is written again."""
    # A group is in doubt by the k first of its segment, which are more than those of the row.
    segments = -(-2 * s.groups // WIDEST)
    doubted, more = 1 - exp(-segments * expected_repairs(-(-s.latents // segments), s.k)), recompute(s)
    scratch = 4 * s.tokens + doubted * (4 * s.tokens * s.groups + 2 * 8 * s.slots)
    return Work(scratch + more.bytes, scratch, more.again, lanes=more.lanes)


def order(s: Shape) -> Work:
    """Reads the list, again and again from the cache, and writes values and indices."""
    return Work((8 + 12) * s.slots, 8 * s.slots, lanes=2.0 * s.slots * s.k)


def gather_active(s: Shape) -> Work:
    """Reads keys and words, then words; writes a list and its length; recomputes groups with more than two active."""
    words = 4 * s.tokens * s.groups if RUNNING * 12 * s.groups > CACHE else 0
    scratch, more = 12 * s.tokens * s.groups + words + 8 * s.slots + 2 * 4 * s.tokens, recompute(s)
    return Work(scratch + more.bytes, scratch, more.again, lanes=more.lanes)


def batch_threshold(s: Shape) -> Work:
    """All of batch.py between the matmul and `order`: twice eight passes over the keys, and four over keys and words."""
    keys, row = 8 * s.tokens * s.groups, 12 * s.tokens * s.groups
    scratch, more = (1 if keys <= CACHE else 16) * keys + 4 * row + 8 * s.slots, recompute(s)
    # Each pass compares and counts every key with 16 trial keys.
    return Work(scratch + more.bytes, scratch, more.again, lanes=2.0 * 16 * 16 * keys / 4 + more.lanes)


def rows_by_slot(s: Shape, rows: int) -> int:
    """Bytes of a matrix [rows d] of which every slot takes a row, strip by strip: once if a strip stays in the cache."""
    is_cached = rows * min(STRIP, s.d) * s.size <= CACHE
    return (min(rows, s.slots) if is_cached else s.slots) * s.d * s.size


def decode(s: Shape) -> Work:
    """Weights and places once a strip, bounds of the slots, rows of W, float32 out."""
    codes = 12 * s.slots * -(-s.d // STRIP)
    moved = codes + 2 * 16 * s.tokens + rows_by_slot(s, s.latents) + 4 * s.tokens * s.d
    return Work(moved, lanes=float(s.slots * s.d))


def contract(s: Shape) -> Work:
    """Rows, places once a strip, rows of W; with several strips partial results are written, read and added."""
    fit = CACHE // (s.latents * s.size) // STRIP * STRIP
    strips = -(-s.d // min(fit, s.d)) if fit else 1
    out = 4 * s.slots * (1 if strips == 1 else 2 * strips + 1)
    W = (min(s.latents, s.slots) if fit else s.slots) * s.d * s.size
    return Work(s.x + 8 * s.slots * strips + W + out, lanes=float(s.slots * s.d))


def listed(s: Shape) -> float:
    """Bytes to list slots by latent: the sort, the token of each, and three bounds of every segment."""
    return s.slots * (SORT + 16) + 3 * 16 * (s.latents + s.slots / SEGMENT)


def partial_rows(s: Shape) -> float:
    """Bytes of the rows of further segments, written and added, if there are as many as there can be."""
    return 2 * 4.0 * s.slots / SEGMENT * s.d


def weight_gradient(s: Shape) -> Work:
    """Slots listed by latent, their weights gathered; weights and tokens once a strip; rows of x; float32 out."""
    codes = 16 * s.slots + 12 * s.slots * -(-s.d // STRIP)
    moved = listed(s) + codes + rows_by_slot(s, s.tokens) + partial_rows(s) + 4 * s.latents * s.d
    return Work(moved, lanes=float(s.slots * s.d))


def sae_gradient(s: Shape) -> Work:
    """Slots listed once; a row of W_dec for each segment; whole rows of g and x for each slot; float32 out."""
    rows = 2 * (s.tokens if 2 * s.x <= CACHE else s.slots) * s.d * s.size
    W = s.weights + s.slots / SEGMENT * s.d * s.size
    moved = listed(s) + 24 * s.slots + W + rows + 2 * partial_rows(s) + 8 * s.latents * s.d + 4 * s.latents
    return Work(moved, lanes=3.0 * s.slots * s.d)


def adam(s: Shape) -> Work:
    """torch's fused Adam, all float32: reads weight, gradient and two moments, writes three."""
    parameters = 2 * s.latents * s.d + s.latents + s.d
    return Work(28 * parameters, lanes=10.0 * parameters)
