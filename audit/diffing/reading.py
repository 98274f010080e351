"""What latents write in each of two models, token by token: the one view of a dictionary that ranking and causal scores share.

    at token t, latent j writes  a_m[t, j] D_m[j]  to model m        change[t, j] = a_B[t, j] D_B[j] - a_A[t, j] D_A[j]

A crosscoder has one activation and two decoders; one dictionary read in both models two activations and one decoder; a dictionary
and its fine-tuned copy two of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...kernels import contract
from ...saes import Codes, Dictionary, Shards

ROWS = 4096  # rows of one batch
Both = tuple[Tensor, Tensor]


class Pairs(NamedTuple):
    """Rows that both sides are answered for: activations of A and B, token ids, and the document of each (from 0, in order)."""

    x_a: Float[Tensor, "token d"]
    x_b: Float[Tensor, "token d_b"]
    tokens: Int[Tensor, "token"]
    documents: Int[Tensor, "token"]


@dataclass(frozen=True)
class Reading:
    """Latents in two models: `encode(x_a, x_b)` their Codes in each, `written` their decoders `[latent d]`, `kept` the exclusion rule
    of (positions, x_a, x_b, tokens)."""

    encode: Callable[[Tensor, Tensor], tuple[Codes, Codes]]
    written: Both
    kept: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    @property
    def latents(self) -> int:
        """How many there are."""
        return len(self.written[0])

    @property
    def is_same_width(self) -> bool:
        """Whether both decoders write to streams of one width."""
        return self.written[0].shape[1] == self.written[1].shape[1]

    def directions(self) -> Float[Tensor, "latent d"]:
        """Unit rows: of each latent the longer of its two decoders."""
        is_b = self.written[1].norm(dim=1) >= self.written[0].norm(dim=1)
        return torch.nn.functional.normalize(torch.where(is_b[:, None], self.written[1], self.written[0]), dim=1)

    def change(
        self, x_a: Float[Tensor, "token d"], x_b: Float[Tensor, "token d"], latents: Int[Tensor, "wanted"]
    ) -> Float[Tensor, "wanted token d"]:
        """What B's latents write beyond A's, of the `latents` chosen."""
        of_a, of_b = (codes.of(latents).T[:, :, None] for codes in self.encode(x_a, x_b))
        D_a, D_b = (rows[latents][:, None] for rows in self.written)
        return of_b * D_b - of_a * D_a


def on_cpu(dictionary: Dictionary) -> Dictionary:
    """The same dictionary on the CPU, where rows of Shards are; the one that was given stays where it is."""
    if dictionary.W_enc.device.type == "cpu":
        return dictionary
    tensors = {name: tensor.detach().cpu() for name, tensor in dictionary.named_parameters()}
    return Dictionary(dictionary.config, tensors, dictionary.metadata, dictionary.layout.widths)


def of_one(dictionary: Dictionary) -> Reading:
    """One dictionary that reads each model in turn."""
    return of_two(dictionary, dictionary)


def of_two(a: Dictionary, b: Dictionary) -> Reading:
    """A dictionary of A and one of B, latent for latent."""

    def kept(positions: Tensor, x_a: Tensor, x_b: Tensor, tokens: Tensor) -> Tensor:
        return a.kept(positions, {a.read: x_a}, tokens) & b.kept(positions, {b.read: x_b}, tokens)

    return Reading(lambda x_a, x_b: (a.encode(x_a), b.encode(x_b)), (a.W_dec.detach(), b.W_dec.detach()), kept)


def of_crosscoder(crosscoder: Dictionary) -> Reading:
    """A crosscoder of two sites, A's first."""
    site_a, site_b = crosscoder.config.site

    def encode(x_a: Tensor, x_b: Tensor) -> tuple[Codes, Codes]:
        codes = crosscoder.encode({site_a: x_a, site_b: x_b})
        return codes, codes

    def kept(positions: Tensor, x_a: Tensor, x_b: Tensor, tokens: Tensor) -> Tensor:
        return crosscoder.kept(positions, {site_a: x_a, site_b: x_b}, tokens)

    decoders = crosscoder.decoders()
    return Reading(encode, (decoders[site_a].detach().contiguous(), decoders[site_b].detach().contiguous()), kept)


def kept_pairs(reading: Reading, shards: Shards, rows: Bool[Tensor, "row"]) -> Iterator[Pairs]:
    """The chosen `rows` of joined Shards that the reading answers for, in text order; documents are numbered from 0 over `rows`."""
    numbers = shards.documents[rows].unique()
    site_a, site_b = shards.sites
    for batch in shards.batches(ROWS, None, rows=rows):
        x_a, x_b = (batch.activations[site].to(reading.written[0].dtype) for site in (site_a, site_b))
        kept = reading.kept(batch.positions, x_a, x_b, batch.tokens)
        documents = torch.searchsorted(numbers, batch.documents[kept])
        yield Pairs(x_a[kept], x_b[kept], batch.tokens[kept], documents)


class ByDocument:
    """Sums over the tokens of each document, of each latent: `[document latent]` in float64."""

    def __init__(self, documents: int, latents: int):
        self.sums = torch.zeros(documents * latents, dtype=torch.float64)
        self._shape = (documents, latents)

    def add(
        self, documents: Int[Tensor, "token"], indices: Int[Tensor, "token k"], values: Float[Tensor, "token k"]
    ) -> None:
        """Add what each slot of some codes is worth; empty slots must be worth 0."""
        places = documents[:, None] * self._shape[1] + indices
        self.sums.index_add_(0, places.flatten(), values.flatten().double())

    @property
    def table(self) -> Float[Tensor, "document latent"]:
        """The sums."""
        return self.sums.view(self._shape)


class Projected(NamedTuple):
    """By document and latent, how far A and B lie along the latent's direction where it fires, a token; and where it fires."""

    a: Float[Tensor, "document latent"]
    b: Float[Tensor, "document latent"]
    density: Float[Tensor, "latent"]
    mean: Float[Tensor, "latent"]


def projected(
    reading: Reading, directions: Float[Tensor, "latent d"], shards: Shards, rows: Bool[Tensor, "row"]
) -> Projected:
    """sum_t w[t, j] <direction_j, x_m[t]> / tokens of the document, for m = A, B.

    The weight w is the mean of the latent's activation as it is and with the two models changed round, so that it says nothing
    about which is which: a latent that fires where B is large by chance must not make B look larger. Reading latents from B alone
    would (regression to the mean), and no permutation would notice.
    """
    count = len(shards.documents[rows].unique())
    sums = [ByDocument(count, reading.latents) for _ in range(2)]
    tokens, fired = torch.zeros(count, dtype=torch.float64), torch.zeros(reading.latents, dtype=torch.float64)
    total = torch.zeros(reading.latents, dtype=torch.float64)
    for pair in kept_pairs(reading, shards, rows):
        tokens += torch.bincount(pair.documents, minlength=count)
        both = [*reading.encode(pair.x_a, pair.x_b), *reading.encode(pair.x_b, pair.x_a)]
        for number, codes in enumerate(both):
            for own, x in zip(sums, (pair.x_a, pair.x_b), strict=True):
                own.add(pair.documents, codes.indices, codes.values * contract(x, codes.indices, directions) / 4)
            if number < 2:
                flat = codes.indices.flatten()
                fired.index_add_(0, flat, (codes.values != 0).double().flatten() / 2)
                total.index_add_(0, flat, codes.values.double().flatten() / 2)
    seen = max(float(tokens.sum()), 1.0)
    a, b = (own.table / tokens.clamp_min(1)[:, None] for own in sums)
    return Projected(a, b, fired / seen, total / seen)


def firing_tokens(
    reading: Reading, shards: Shards, rows: Bool[Tensor, "row"], latents: Int[Tensor, "wanted"], top: int = 5
) -> Int[Tensor, "wanted top"]:
    """The token ids on which each of the `latents` sums up to most, in both models together; -1 where there are fewer."""
    sums = torch.zeros(int(shards.tokens.max()) + 1, len(latents), dtype=torch.float64)
    for pair in kept_pairs(reading, shards, rows):
        of_a, of_b = (codes.of(latents).double() for codes in reading.encode(pair.x_a, pair.x_b))
        sums.index_add_(0, pair.tokens, of_a + of_b)
    values, ids = sums.topk(min(top, len(sums)), dim=0)
    return torch.where(values > 0, ids, -1).T
