"""Which latent of one dictionary is which of another: by the directions that they write, or by where they fire.

    cosine       c[i, j] = <w_i, v_j> / (|w_i| |v_j|)               decoder rows of A and B, of one width
    correlation  r[i, j] = (sum_t a_ti b_tj - N m_i n_j) / (N s_i t_j)   values over the N rows of one text, exactly

Both keep their sign: a latent that points or fires the opposite way is no match. From either come, for each latent, its
CANDIDATES best partners on the other side, and a one-to-one matching: pairs that are each other's best are taken, and
again among the latents that are left, until no candidate is. That is the greedy matching over the candidates of both
sides, strongest pair first; unlike an optimal assignment it never gives up a good pair for the sake of two poor ones.

Correlations take every row of the text, and a row that a dictionary leaves out by its training rule counts as silent there.
`floor` says what chance gives: the same matching of a sample of A with B turned at random (cosine: keeps the angles within B)
or with B's text shifted by half its length (correlation: keeps how often each latent fires).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ....kernels import select_topk
from ..codes.codebook import Codebook
from .maps import quiet, unit_rows

CANDIDATES = 5
SAMPLE = 256  # latents of A that the floor is measured on
PRODUCTS = 2**26  # cosines in memory at once
SUMS = 2**24  # float64 sums in memory at once
SLOTS = 2**21  # slots joined at once

Tell = Callable[[str, float], None]


class Side(NamedTuple):
    """For each latent of one side its best partners on the other, best first, with their scores; -1 is an empty place."""

    best: Int[Tensor, "latent candidate"]
    score: Float[Tensor, "latent candidate"]


class Matching(NamedTuple):
    """Both sides, the partner of each latent of A and of B in the one-to-one matching (-1: none), and the floor: the sorted
    best scores of a sample of A by chance."""

    a: Side
    b: Side
    pair_a: Int[Tensor, "latent_a"]
    pair_b: Int[Tensor, "latent_b"]
    floor: Float[Tensor, "sample"]


@torch.no_grad()
def match_decoders(
    W_a: Float[Tensor, "latent_a d"], W_b: Float[Tensor, "latent_b d_b"], *, seed: int = 0, tell: Tell = quiet
) -> Matching:
    """Match by decoder cosine; ValueError unless the widths agree.

    Two passes of latent_a * latent_b * d products in blocks of PRODUCTS, so memory is bounded. A row of zeros matches none.
    """
    if W_a.shape[1] != W_b.shape[1]:
        raise ValueError(f"expected decoders of one width; got {W_a.shape[1]} and {W_b.shape[1]}")
    a, b = unit_rows(W_a).cpu(), unit_rows(W_b).cpu()
    from_a = _nearest(a, b, lambda share: tell("cosines", share / 2))
    from_b = _nearest(b, a, lambda share: tell("cosines", (1 + share) / 2))
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(a.shape[1], a.shape[1], generator=generator))[0]
    some = a[_sample(len(a), generator)]
    return _matched(from_a, from_b, _nearest(some @ turn, b, lambda share: None).score[:, 0])


def _nearest(a: Tensor, b: Tensor, tell: Callable[[float], None]) -> Side:
    piece, count, zero = max(PRODUCTS // len(b), 1), min(CANDIDATES, len(b)), torch.zeros(len(b))
    parts = []
    for begin in range(0, len(a), piece):
        tell(begin / len(a))
        parts.append(select_topk(a[begin : begin + piece], b, zero, count))
    score, best = (torch.cat(part) for part in zip(*parts, strict=True))
    nothing = ~(a.any(1)[:, None] & b.any(1)[best])
    return Side(best.masked_fill(nothing, -1), score.masked_fill(nothing, -math.inf))


def _sample(latents: int, generator: torch.Generator) -> Int[Tensor, "sample"]:
    return torch.randperm(latents, generator=generator)[:SAMPLE].sort().values


@torch.no_grad()
def match_activations(a: Codebook, b: Codebook, *, seed: int = 0, tell: Tell = quiet) -> Matching:
    """Match by the correlation of values over one text; ValueError unless both have the same rows.

    Work: for each slot of A, the codes of B on its row. Memory: SUMS sums and SLOTS slots. A latent that never fires,
    or always with the same value, matches none, and neither does a pair that never fires together.
    """
    if a.rows != b.rows:
        raise ValueError(f"expected codes of one text; got {a.rows} and {b.rows} rows")
    from_a, from_b = _correlated(a, b, torch.arange(a.latents), 0, lambda share: tell("correlations", share))
    some = _sample(a.latents, torch.Generator().manual_seed(seed))
    floor = _correlated(a, b, some, a.rows // 2, lambda share: None)[0].score[:, 0]
    return _matched(from_a, from_b, floor)


def _correlated(
    a: Codebook, b: Codebook, latents: Tensor, shift: int, tell: Callable[[float], None]
) -> tuple[Side, Side]:
    """Both sides of the correlations of some latents of A with all of B, block by block of the former."""
    count, back, mine = min(CANDIDATES, b.latents), min(CANDIDATES, len(latents)), []
    theirs = Side(torch.empty(b.latents, 0, dtype=torch.int64), torch.empty(b.latents, 0, dtype=torch.float64))
    done = 0
    for part in latents.split(max(SUMS // b.latents, 1)):
        tell(done / len(latents))
        block = correlations(a, b, part, shift)
        value, found = block.topk(count, dim=1)
        mine.append(_known(found, value))
        value, found = block.T.topk(min(back, len(part)), dim=1)
        theirs = Side(torch.cat([theirs.best, part[found]], 1), torch.cat([theirs.score, value], 1))
        order = theirs.score.argsort(dim=1, descending=True, stable=True)[:, :back]
        theirs = Side(theirs.best.gather(1, order), theirs.score.gather(1, order))
        done += len(part)
    return Side(*(torch.cat(column) for column in zip(*mine, strict=True))), _known(*theirs)


def _known(best: Tensor, score: Tensor) -> Side:
    nothing = score <= 0
    return Side(best.masked_fill(nothing, -1), score.masked_fill(nothing, -math.inf).float())


def correlations(
    a: Codebook, b: Codebook, latents: Int[Tensor, "some"], shift: int = 0
) -> Float[Tensor, "some latent_b"]:
    """Pearson correlation of some latents of A with all of B over the rows of one text, in float64; 0 where one is constant.

    With `shift`, row t of A meets row (t + shift) mod rows of B.
    """
    sums = torch.zeros(len(latents) * b.latents, dtype=torch.float64)
    for place, rows, values in _slots(a, latents):
        met = b.slots_of((rows + shift) % b.rows)
        sums.index_add_(0, place[met.place] * b.latents + met.latents, values[met.place] * met.values.double())
    mean_a, spread_a = _moments(a)
    mean_b, spread_b = _moments(b)
    covariance = sums.view(len(latents), b.latents) / a.rows - mean_a[latents][:, None] * mean_b
    scale = spread_a[latents][:, None] * spread_b
    return torch.where(scale > 0, covariance / scale.clamp_min(1e-300), 0.0)


def _moments(codes: Codebook) -> tuple[Float[Tensor, "latent"], Float[Tensor, "latent"]]:
    mean, square = codes.sum / codes.rows, codes.sum_squares / codes.rows
    variance = square - mean.square()
    return mean, torch.where(variance > 1e-12 * square, variance, 0.0).clamp_min(0).sqrt()


def _slots(codes: Codebook, latents: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The firings of some latents: which of them, row and value, at most about SLOTS slots of the other side at a time."""
    pending: list[tuple[Tensor, Tensor, Tensor]] = []
    held, most = 0, max(SLOTS // max(codes.slots // max(codes.rows, 1), 1), 1)
    for place, latent in enumerate(latents.tolist()):
        rows, values = codes.firings(latent)
        for begin in range(0, len(rows), most):
            piece = rows[begin : begin + most], values[begin : begin + most].double()
            pending.append((torch.full_like(piece[0], place), *piece))
            held += len(piece[0])
            if held >= most:
                yield _joined(pending)
                pending, held = [], 0
    if pending:
        yield _joined(pending)


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    place, rows, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return place, rows, values


def _matched(a: Side, b: Side, floor: Tensor) -> Matching:
    pair_a, pair_b = one_to_one(a, b)
    return Matching(a, b, pair_a, pair_b, floor[floor.isfinite()].sort().values)


def one_to_one(a: Side, b: Side) -> tuple[Int[Tensor, "latent_a"], Int[Tensor, "latent_b"]]:
    """Partner of each latent of A and of B, -1 for none: the greedy matching over the candidates of both sides.

    Strongest pair first; of equal pairs the one with the lowest latent of A, then of B.
    """
    left, right, score = _edges(a, b)
    order = score.argsort(descending=True, stable=True)
    left, right = left[order], right[order]
    pair_a, pair_b = torch.full((len(a.best),), -1), torch.full((len(b.best),), -1)
    rank = torch.arange(len(left))
    while len(left):
        # A pair that stands first for both of its latents is what the greedy walk would take, whatever comes before it.
        first_a = torch.full((len(pair_a),), len(order)).scatter_reduce(0, left, rank, "amin")
        first_b = torch.full((len(pair_b),), len(order)).scatter_reduce(0, right, rank, "amin")
        taken = (first_a[left] == rank) & (first_b[right] == rank)
        pair_a[left[taken]], pair_b[right[taken]] = right[taken], left[taken]
        free = (pair_a[left] < 0) & (pair_b[right] < 0)
        left, right, rank = left[free], right[free], rank[free]
    return pair_a, pair_b


def _edges(a: Side, b: Side) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates of both sides as pairs, each once, ordered by latent of A, then of B."""
    ends = []
    for side, swap in ((a, False), (b, True)):
        own, place = (side.best >= 0).nonzero(as_tuple=True)
        other, score = side.best[own, place], side.score[own, place]
        ends.append((other, own, score) if swap else (own, other, score))
    left, right, score = (torch.cat(part) for part in zip(*ends, strict=True))
    key, where = (left * max(len(b.best), 1) + right).unique(return_inverse=True)
    best = torch.full((len(key),), -math.inf).scatter_reduce(0, where, score.float(), "amax")
    return key // max(len(b.best), 1), key % max(len(b.best), 1), best
