"""FeatureStats: what each latent does, gathered in one pass over codes, mergeable and resumable.

For every latent: how often it fires, sum and sum of squares, a histogram of its values in fixed half-octave bins, its top
examples, uniform samples of each bin, and on which tokens and at which positions it fires. All of it is exact, costs no dense
`[token latent]` matrix, and merges: statistics of parts of a text, merged in any order, are those of the whole (the two sums
up to rounding). `state` and `load` keep a pass that is under way; `freeze` makes the tensors of a FeatureStore.

Top examples: the largest values, ties to the lower row, at most one per block (the block's largest), so that a phrase that
repeats within a block does not fill the list. Samples: of each bin the firings of lowest hash (places.py), whatever their
block; `freeze` keeps as many of each bin as fit, first one of every bin, then a second, …

A batch is sorted once, by latent and token; that one list gives everything (places.Firings).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...codes import Codes
from .counters import PairCounts, PositionCounts
from .places import Firings, Part, Places, around, best_of_blocks, firings, hash_score, rank_in_group, top_score
from .windows import place_arrays

BINS = 56
LOWEST = -12  # the first bin begins at 2**LOWEST; each spans half an octave, the outer ones hold what lies beyond
TOKENS = 8
SUMS = ("count", "sum", "sum_squares", "histogram", "token_rows")


def histogram_edges() -> Float[Tensor, "edge"]:
    """The BINS + 1 bin edges, in the unit of the activations."""
    return 2.0 ** (LOWEST + 0.5 * torch.arange(BINS + 1))


class FeatureStats:
    """Collector: `update` with codes of consecutive rows (whole blocks), `merge` with another, then `freeze`.

    `context` is the number of positions that are told apart, `vocab` that of token ids (0: tokens are not counted), and
    `per_bin` and `samples` how many samples a bin and a latent keep. State per latent, in bytes: 24 for count and sums, 224
    for the histogram, 4 x BINS + 25 a sample, 25 an example, 3 for each value around one, 4 x context, and 12 for every
    different token it fires on.
    """

    def __init__(
        self, latents: int, examples: int = 16, before: int = 20, after: int = 11, *, samples: int = 40, per_bin: int = 6,
        context: int = 128, vocab: int = 0, seed: int = 0,
    ):  # fmt: skip
        self.before, self.after, self.samples, self.seed = before, after, samples, seed
        self.rows = self.kept = 0
        self.count = torch.zeros(latents, dtype=torch.int64)
        self.sum = torch.zeros(latents, dtype=torch.float64)
        self.sum_squares = torch.zeros(latents, dtype=torch.float64)
        self.histogram = torch.zeros(latents, BINS, dtype=torch.int32)
        self.token_rows = torch.zeros(vocab, dtype=torch.int64)
        self.tokens, self.positions = PairCounts(), PositionCounts(latents, context)
        self._top, self._samples = Places(latents, examples), Places(latents * BINS, per_bin)

    def update(
        self,
        codes: Codes,
        positions: Int[Tensor, "token"],
        first_row: int,
        kept: Bool[Tensor, "token"],
        tokens: Int[Tensor, "token"] | None = None,
    ) -> None:
        """Add the codes of the rows `first_row`, `first_row` + 1, …; rows that are not `kept` count as silent.

        A block must lie within one update: its rows are those from a position 0 to the next. `tokens` are the rows' token
        ids, which `vocab` asks for.
        """
        self.rows += len(codes.values)
        self.kept += int(kept.sum())
        found = firings(codes, positions, kept)
        place = torch.searchsorted(histogram_edges()[1:-1], found.value, right=True)
        group = found.latent * BINS + place
        self.count += torch.bincount(found.latent, minlength=len(self.count))
        self.sum += torch.bincount(found.latent, found.value.double(), len(self.count))
        self.sum_squares += torch.bincount(found.latent, found.value.double().square(), len(self.count))
        self.histogram.view(-1).index_add_(0, group, torch.ones(len(group), dtype=torch.int32))
        self.positions.add(found.latent, positions[found.token])
        if tokens is not None and len(self.token_rows):
            self.tokens.add(found.latent, tokens[found.token])
            self.token_rows += torch.bincount(tokens[kept], minlength=len(self.token_rows))
        self._offer_top(found, first_row)
        self._offer_samples(found, group, first_row)

    def _offer_top(self, found: Firings, first_row: int) -> None:
        score = top_score(found.value)
        hopeful = (score <= self._top.limit[found.latent]).nonzero().squeeze(1)
        some = Firings(*(field[hopeful] for field in found))
        best = hopeful[best_of_blocks(some, score[hopeful])]
        chosen = best[self._top.chosen(found.latent[best], score[best])]
        self._top.add(self._part(found, found.latent, score, chosen, first_row))

    def _offer_samples(self, found: Firings, group: Int[Tensor, "n"], first_row: int) -> None:
        score = hash_score(found.token + first_row, found.latent, self.seed)
        self._samples.add(self._part(found, group, score, self._samples.chosen(group, score), first_row))

    def _part(self, found: Firings, group: Tensor, score: Tensor, chosen: Tensor, first_row: int) -> Part:
        near = around(found, chosen, self.before, self.after)
        return Part(group[chosen] << 31 | score[chosen], found.token[chosen] + first_row, found.value[chosen], near)

    def merge(self, other: FeatureStats) -> FeatureStats:
        """Add the statistics of other rows of the same text, gathered under the same settings; returns self."""
        self.rows, self.kept = self.rows + other.rows, self.kept + other.kept
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.positions.counts += other.positions.counts
        self.positions.sum += other.positions.sum
        self.tokens.merge(other.tokens)
        self._top.add(other._top.held())
        self._samples.add(other._samples.held())
        return self

    def state(self) -> dict[str, Tensor]:
        """All that was gathered, as tensors that `load` takes."""
        out = {name: getattr(self, name) for name in SUMS} | self.tokens.tensors()
        out |= {"rows": torch.tensor(self.rows), "kept": torch.tensor(self.kept)}
        out |= {"positions.counts": self.positions.counts, "positions.sum": self.positions.sum}
        return out | self._top.tensors("top") | self._samples.tensors("samples")

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave to a collector of the same settings."""
        for name in SUMS:
            setattr(self, name, state[name])
        self.rows, self.kept = int(state["rows"]), int(state["kept"])
        self.positions.counts, self.positions.sum = state["positions.counts"], state["positions.sum"]
        self.tokens.load(state)
        self._top.load("top", state)
        self._samples.load("samples", state)

    def freeze(self) -> dict[str, Tensor]:
        """The arrays of a FeatureStore that the pass gives (docs/formats.md)."""
        count = self.count.clamp_min(1)
        samples = self._samples.held()
        samples = samples.take(_fitting(samples.key >> 31, self.samples))
        places = place_arrays(self._top.held(), self._top.keep, samples, self.samples, BINS, len(self.count))
        out = {
            "count": self.count,
            "density": (self.count / max(self.kept, 1)).float(),
            "mean_value": (self.sum / count).float(),
            "std_value": (self.sum_squares / count - (self.sum / count).square()).clamp_min(0).sqrt().float(),
            "max_value": places["example_values"][:, 0].clone(),
            "histogram": self.histogram,
        }
        return out | places | self.positions.top(self.count) | (self._token_arrays() if len(self.token_rows) else {})

    def _token_arrays(self) -> dict[str, Tensor]:
        """Tokens of each latent; lift is the share of a token's kept rows that it fires on over that of all kept rows."""
        found = self.tokens.top(len(self.count), TOKENS)
        rows = self.token_rows[found["token_ids"].clamp_min(0).long()].clamp_min(1)
        found["token_lift"] = (found["token_counts"] * (self.kept / rows) / self.count.clamp_min(1)[:, None]).float()
        found["token_share"] = (found["token_counts"][:, 0] / self.count.clamp_min(1)).float()
        return found


def _fitting(group: Int[Tensor, "sample"], most: int) -> Int[Tensor, "chosen"]:
    """Of sorted samples (groups of latent and bin) at most `most` a latent: one of every bin, highest first, then more."""
    latent, rank = group // BINS, rank_in_group(group)
    order = (latent << 16 | rank << 8 | BINS - 1 - group % BINS).argsort()
    return order[rank_in_group(latent[order]) < most].sort().values
