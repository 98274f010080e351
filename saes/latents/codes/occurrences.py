"""In which documents and at which positions a latent fires, from the kept codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ..shelf.shape import damaged
from .codebook import codes_of

if TYPE_CHECKING:
    from ..shelf.store import FeatureStore


class Document(NamedTuple):
    """A document in which a latent fires: on `count` rows, a `share` of its rows, most strongly with `value` on `row`."""

    document: int
    count: int
    share: float
    value: float
    row: int


class Occurrences(NamedTuple):
    """The documents with most firings, how many have any, and the firings at each position up to the last that has one."""

    documents: list[Document]
    documents_total: int
    positions: Int[Tensor, "position"]


def occurrences(store: FeatureStore, latent: int, number: int = 20) -> Occurrences:
    """Where a latent fires: the `number` documents with most firings (ties to the lower number), and its positions.

    UserError if the store kept no codes. The share of a document counts all of its rows, kept or not.
    """
    rows, values = codes_of(store, latent).firings(latent)
    documents, positions = store.documents[rows].long(), store.positions[rows].long()
    if len(rows) and (int(positions.min()) < 0 or int(positions.max()) >= len(store.tokens)):
        raise damaged(store.folder, "positions of the text")
    names, place, count = documents.unique(return_inverse=True, return_counts=True)
    order = values.argsort(descending=True, stable=True)
    order = order[place[order].argsort(stable=True)]
    strongest = order[count.cumsum(0) - count]
    found = []
    for one in count.argsort(descending=True, stable=True)[:number].tolist():
        size, best = int((store.documents == names[one]).sum()), strongest[one]
        found.append(
            Document(int(names[one]), int(count[one]), int(count[one]) / size, float(values[best]), int(rows[best]))
        )
    return Occurrences(found, len(names), torch.bincount(positions, minlength=1))
