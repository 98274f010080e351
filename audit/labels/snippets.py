"""Snippets: windows of a store's text that a label is made from or judged on.

The documents are split once for the whole store: those of one half explain, those of the other score, so that no document, for any
latent, is on both sides (delphi drew both from one list with one seed: 20 of 50 test examples were training examples). What else an
explainer sees is of the explaining half or of the weights alone; the store's own token table counts all documents and is not used.

    positives   places where the latent fires, one a block, taken in turn from every bin of the histogram of its values, so that weak
                activations count as much as strong ones; for explaining, half of them are the strongest instead
    negatives   windows in which it is silent throughout (negatives.py), which only kept codes can tell

Every draw depends on the seed and the latent alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...saes import FeatureStore, UserError
from ...saes.latents.codes.codebook import Codebook, codes_of
from ...saes.latents.gather.stats import histogram_edges

LARGEST_SEED = 2**32


class Snippet(NamedTuple):
    """A window of text. `marks` are the places where the latent fires, of a negative the one place that it was chosen for.

    `kind` is positive, random, neighbour or same_token; `value` the latent's at `row`, 0 for a negative.
    """

    row: int
    document: int
    tokens: tuple[str, ...]
    marks: tuple[int, ...]
    kind: str
    value: float = 0.0

    @property
    def text(self) -> str:
        """The tokens as one string."""
        return "".join(self.tokens)


@dataclass(frozen=True)
class Draws:
    """How many snippets are drawn: `explain` and `score` positives, `negatives` of each kind; below `least` there is no score.

    The explaining half has `explain` negatives of each kind. A language model is shown 20 of the positives.
    """

    explain: int = 80
    score: int = 20
    negatives: int = 20
    least: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        too_few = min(self.explain, self.score, self.negatives) < self.least or self.least < 2
        if too_few or not 0 <= self.seed < LARGEST_SEED:
            raise UserError(
                f"expected at least {max(self.least, 2)} snippets of each kind and a seed of 0 to {LARGEST_SEED - 1}; got "
                f"explain {self.explain}, score {self.score}, negatives {self.negatives}, least {self.least}, seed {self.seed}; ask anew"
            )


class StoreRows:
    """The rows of a store whose codes were kept, ready to draw from; UserError without codes or with a single document.

    `is_scored [row]` tells the half of the documents that score from the half that explain.
    """

    def __init__(self, store: FeatureStore, seed: int = 0):
        self.store, self.book = store, codes_of(store)
        self.tokens, self.positions = store.tokens.long(), store.positions.long()
        self.documents = store.documents.long()
        self.is_scored = split(self.documents, seed)
        rows = torch.arange(len(self.positions))
        self.block = rows - self.positions  # a block is named by its first row
        starts = torch.cat([(self.positions == 0).nonzero().squeeze(1), rows.new_tensor([len(rows)])])
        self.block_end = starts[torch.searchsorted(starts, rows, right=True)]

    def windows(self, rows: Int[Tensor, "n"]) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
        """First row, and row after the last, of the window around each row."""
        text = self.store.text
        start = rows - torch.minimum(self.positions[rows], torch.tensor(text.before))
        return start, torch.minimum(rows + 1 + text.after, self.block_end[rows])

    def silent(self, rows: Int[Tensor, "n"], firing: Int[Tensor, "firing"]) -> Bool[Tensor, "n"]:
        """Where a window has none of the rows `firing` (ascending)."""
        start, stop = self.windows(rows)
        return torch.searchsorted(firing, start) == torch.searchsorted(firing, stop)

    def snippet(self, row: int, kind: str, firing: Int[Tensor, "firing"], value: float = 0.0) -> Snippet:
        """The window around `row`, marked where `firing` says, or for a negative at `row` itself."""
        start, stop = (int(edge) for edge in self.windows(torch.tensor([row])))
        low, high = torch.searchsorted(firing, torch.tensor([start, stop])).tolist()
        marks = (firing[low:high] - start).tolist() or [row - start]
        return Snippet(
            row, int(self.documents[row]), tuple(self.store.text.strings(start, stop)), tuple(marks), kind, value
        )


def split(documents: Int[Tensor, "row"], seed: int) -> Bool[Tensor, "row"]:
    """Whether each row's document is of the scoring half: a random half of the documents, the smaller one where they are odd."""
    known, index = documents.unique(return_inverse=True)
    if len(known) < 2:
        raise UserError(
            f"expected text of two documents or more, to explain on some and score on others; got {len(known)}; collect more"
        )
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    return (order % 2).bool()[index]


def one_per_block(rows: Int[Tensor, "n"], block: Int[Tensor, "row"]) -> Int[Tensor, "m"]:
    """The first of the rows of each block, in the order in which they came, as places within `rows`."""
    index = block[rows].unique(return_inverse=True)[1]
    first = torch.full((int(index.max()) + 1 if len(rows) else 0,), len(rows))
    first.scatter_reduce_(0, index, torch.arange(len(rows)), "amin")
    return first.sort().values


def positives(
    rows: StoreRows, latent: int, scored: bool, number: int, generator: torch.Generator, strongest: int = 0
) -> list[Snippet]:
    """At most `number` places of one half where `latent` fires, the `strongest` first, then in turn from every bin."""
    book: Codebook = rows.book
    firing, values = book.firings(latent)
    here = (rows.is_scored[firing] == scored).nonzero().squeeze(1)
    here = here[torch.randperm(len(here), generator=generator)]
    top = here[values[here].argsort(descending=True, stable=True)]
    chosen = top[one_per_block(firing[top], rows.block)][:strongest]
    rest = here[~torch.isin(rows.block[firing[here]], rows.block[firing[chosen]])]
    rest = rest[one_per_block(firing[rest], rows.block)]
    chosen = torch.cat([chosen, rest[_in_turn(values[rest])]])[:number]
    return [
        rows.snippet(row, "positive", firing, value)
        for row, value in zip(firing[chosen].tolist(), values[chosen].tolist(), strict=True)
    ]


def _in_turn(values: Tensor) -> Int[Tensor, "n"]:
    """An order: one of every bin, the highest first, then a second, …"""
    bins = torch.searchsorted(histogram_edges()[1:-1], values, right=True)
    rank = torch.zeros(len(values), dtype=torch.int64)
    for bin in bins.unique().tolist():
        rank[bins == bin] = torch.arange(int((bins == bin).sum()))
    return (rank * 1000 - bins).argsort(stable=True)


def generator_of(seed: int, latent: int, purpose: int) -> torch.Generator:
    """Its own random numbers for each latent and purpose, whichever latents are drawn with it."""
    return torch.Generator().manual_seed((seed * 1_000_003 + latent) * 16 + purpose)
