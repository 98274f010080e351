"""From dense recorded rows to a graph's sparse edges, in bounded memory.

Each batch is made sparse as it comes (`Piece`); `assemble` puts the pieces in order of target and source. Where all
entries would be more than `max_edges`, a row keeps its largest and the others are summed, by sign, in two leaves: weights of
what stays, and row sums, do not change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..graph import Edges
from .record import Recorded


class Piece(NamedTuple):
    """The non-zero entries of a batch of rows, row after row: which nodes, how many each, sources, weights; row values."""

    node: Int[Tensor, "row"]
    count: Int[Tensor, "row"]
    source: Int[Tensor, "entry"]
    weight: Float[Tensor, "entry"]
    value: Float[Tensor, "row"]


def sparse(rows: Recorded, most: int | None = None, rest: int = -1) -> Piece:
    """Keep the `most` largest entries of each row (None: all); columns `rest` and `rest + 1` take the others by sign."""
    weights = rows.weights.cpu()
    if most is not None and most < weights.shape[1]:
        weights = _bounded(weights, most, rest)
    row, column = weights.nonzero(as_tuple=True)
    return Piece(rows.node, row.bincount(minlength=len(weights)), column.int(), weights[row, column], rows.value.cpu())


def _bounded(weights: Float[Tensor, "row column"], most: int, rest: int) -> Float[Tensor, "row column"]:
    best = weights.abs().topk(most, dim=1).indices
    kept = torch.zeros_like(weights).scatter_(1, best, weights.gather(1, best))
    dropped = weights - kept
    kept[:, rest] += dropped.clamp_min(0).sum(1)
    kept[:, rest + 1] += dropped.clamp_max(0).sum(1)
    return kept


def assemble(pieces: list[Piece], nodes: int) -> tuple[Edges, Float[Tensor, "node"]]:
    """All entries in order of target and source, and every row's value; empties `pieces`, so no second copy is held."""
    dtype = pieces[0].weight.dtype
    counts, values = torch.zeros(nodes, dtype=torch.int64), torch.full((nodes,), float("nan"), dtype=dtype)
    for piece in pieces:
        counts[piece.node], values[piece.node] = piece.count, piece.value
    starts, total = counts.cumsum(0) - counts, int(counts.sum())
    target = torch.repeat_interleave(torch.arange(nodes, dtype=torch.int32), counts)
    edges = Edges(target, torch.empty(total, dtype=torch.int32), torch.empty(total, dtype=dtype))
    while pieces:
        piece = pieces.pop()
        begin = 0
        for place, count in zip(starts[piece.node].tolist(), piece.count.tolist(), strict=True):
            edges.source[place : place + count] = piece.source[begin : begin + count]
            edges.weight[place : place + count] = piece.weight[begin : begin + count]
            begin += count
    return edges, values
