"""FeatureStats: what each latent does, gathered in one pass over codes, mergeable.

For every latent: how often it fires, sum and sum of squares, a histogram of its values in fixed half-octave bins, and its
top examples with the latent's values on the tokens around them. All of it is exact, costs no dense `[token latent]`
matrix, and merges: statistics of parts of a text, merged in any order, are those of the whole.

Top examples: the largest values, ties to the lower row, at most one per block (the block's largest), so that a phrase that
repeats within a block does not fill the list. `freeze` turns the collector into the tensors that a FeatureStore keeps.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...kernels import segment
from ..codes import Codes

BINS = 56
LOWEST = (
    -12
)  # the first histogram bin begins at 2**LOWEST; each spans half an octave, the outer ones hold what lies beyond
PIECE = 4096


def histogram_edges() -> Float[Tensor, "edge"]:
    """The BINS + 1 bin edges, in the unit of the activations."""
    return 2.0 ** (LOWEST + 0.5 * torch.arange(BINS + 1))


class FeatureStats:
    """Collector: `update` with codes of consecutive rows (whole blocks), `merge` with another, then `freeze`.

    State per latent: 8 bytes each for count, sum, sum of squares; 4 x BINS for the histogram; `examples` x
    (12 + 2 x (before + 1 + after)) for the examples.
    """

    def __init__(self, latents: int, examples: int = 16, before: int = 20, after: int = 11):
        self.before, self.after = before, after
        self.rows = self.kept = 0
        self.count = torch.zeros(latents, dtype=torch.int64)
        self.sum = torch.zeros(latents, dtype=torch.float64)
        self.sum_squares = torch.zeros(latents, dtype=torch.float64)
        self.histogram = torch.zeros(latents, BINS, dtype=torch.int32)
        self.top_values = torch.zeros(latents, examples)
        self.top_rows = torch.full((latents, examples), -1, dtype=torch.int64)
        self.top_windows = torch.zeros(latents, examples, before + 1 + after, dtype=torch.float16)

    def update(
        self, codes: Codes, positions: Int[Tensor, "token"], first_row: int, kept: Bool[Tensor, "token"]
    ) -> None:
        """Add the codes of the rows `first_row`, `first_row` + 1, …; rows that are not `kept` count as silent.

        A block must lie within one update: its rows are those from a position 0 to the next.
        """
        values = torch.where(kept[:, None], codes.values, 0.0).float()
        token, slot = (values > 0).nonzero(as_tuple=True)
        active, latent = values[token, slot], codes.indices[token, slot]
        self.rows += len(values)
        self.kept += int(kept.sum())
        found = segment(values.clamp_min(0), codes.indices, len(self.count), histogram_edges(), examples=1)
        self.count += found.counts
        self.histogram += found.histogram
        self.sum.index_add_(0, latent, active.double())
        self.sum_squares.index_add_(0, latent, active.double().square())
        self._offer(values, codes.indices, positions, first_row, active, latent, token)

    def _offer(
        self,
        values: Tensor,
        indices: Tensor,
        positions: Tensor,
        first_row: int,
        active: Tensor,
        latent: Tensor,
        token: Tensor,
    ) -> None:
        """Merge the best of these rows into the top examples."""
        promising = active >= self.top_values[latent, -1]
        active, latent, token = active[promising], latent[promising], token[promising]
        block_start = token - positions[token]
        latent, active, token = best_per_group(latent, active, token, block_start, self.top_values.shape[1])
        windows = self._windows(values, indices, positions, token, latent)
        part = FeatureStats.__new__(FeatureStats)
        rank = _rank_in_group(latent)
        part.top_values = torch.zeros_like(self.top_values)
        part.top_rows = torch.full_like(self.top_rows, -1)
        part.top_windows = torch.zeros_like(self.top_windows)
        part.top_values[latent, rank] = active
        part.top_rows[latent, rank] = token + first_row
        part.top_windows[latent, rank] = windows
        self._merge_top(part)

    def _windows(
        self, values: Tensor, indices: Tensor, positions: Tensor, token: Tensor, latent: Tensor
    ) -> Float[Tensor, "example window"]:
        """Values of each example's latent on the tokens around it, zero outside its block."""
        offsets = torch.arange(-self.before, self.after + 1)
        out = torch.zeros(len(token), len(offsets), dtype=torch.float16)
        for piece in torch.arange(len(token)).split(PIECE):
            around = token[piece, None] + offsets
            inside = (around >= 0) & (around < len(values))
            around = around.clamp(0, len(values) - 1)
            inside &= (around - positions[around]) == (token[piece] - positions[token[piece]])[:, None]
            found = (values[around] * (indices[around] == latent[piece, None, None])).sum(-1)
            out[piece] = torch.where(inside, found, 0.0).clamp_max(65504).half()
        return out

    def merge(self, other: FeatureStats) -> FeatureStats:
        """Add the statistics of other rows of the same text; returns self."""
        for name in ("rows", "kept", "count", "sum", "sum_squares", "histogram"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._merge_top(other)
        return self

    def _merge_top(self, other: FeatureStats) -> None:
        values = torch.cat([self.top_values, other.top_values], 1)
        rows = torch.cat([self.top_rows, other.top_rows], 1)
        by_row = rows.argsort(dim=1, stable=True)
        order = by_row.gather(1, values.gather(1, by_row).argsort(dim=1, descending=True, stable=True))
        order = order[:, : self.top_values.shape[1]]
        self.top_values, self.top_rows = values.gather(1, order), rows.gather(1, order)
        windows = torch.cat([self.top_windows, other.top_windows], 1)
        self.top_windows = windows.gather(1, order[:, :, None].expand(-1, -1, windows.shape[2]))

    def freeze(self) -> dict[str, Tensor]:
        """The fixed-width arrays of a FeatureStore (docs/formats.md)."""
        count = self.count.clamp_min(1)
        return {
            "count": self.count,
            "density": (self.count / max(self.kept, 1)).float(),
            "mean_value": (self.sum / count).float(),
            "std_value": (self.sum_squares / count - (self.sum / count).square()).clamp_min(0).sqrt().float(),
            "max_value": self.top_values[:, 0].clone(),
            "histogram": self.histogram,
            "example_values": self.top_values,
            "example_rows": self.top_rows,
            "example_windows": self.top_windows,
        }


def best_per_group(
    latent: Int[Tensor, "n"], value: Float[Tensor, "n"], token: Int[Tensor, "n"], block: Int[Tensor, "n"], keep: int
) -> tuple[Int[Tensor, "m"], Float[Tensor, "m"], Int[Tensor, "m"]]:
    """For each latent its `keep` largest values, one per block, ties to the lower token; sorted by latent, then value."""
    order = token.argsort(stable=True)
    order = order[value[order].argsort(descending=True, stable=True)]
    pair = latent[order] * (int(block.max()) + 1 if len(block) else 1) + block[order]
    grouped = pair.argsort(stable=True)
    order = order[grouped[_rank_in_group(pair[grouped]) == 0].sort().values]
    order = order[latent[order].argsort(stable=True)]
    order = order[_rank_in_group(latent[order]) < keep]
    return latent[order], value[order], token[order]


def _rank_in_group(sorted_keys: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """0, 1, 2, … within each run of equal keys."""
    first = torch.searchsorted(sorted_keys, sorted_keys, right=False)
    return torch.arange(len(sorted_keys)) - first
