"""Which latents fire together: counts, and the correlation of their activations, over all kept rows of a text.

With x_i the activations of latent i on N kept rows (0 where it is silent), n_i the rows on which it fires and n_ij those on
which both do:

    expected      n_i n_j / N                                         rows together if they were independent
    lift          n_ij / expected
    jaccard       n_ij / (n_i + n_j - n_ij)
    correlation   (Σ x_i x_j - Σx_i Σx_j / N) / √((Σx_i² - (Σx_i)² / N) (Σx_j² - (Σx_j)² / N))          Pearson

All sums are in float64. Latents that never fire together have a correlation below 0 and are no company. For one latent the
codes of its own rows are read, n_i L0 slots. For all at once (`companies`) Xᵀ X is made as sparse products, a range of
latents with about PAIRS pairs of slots at a time: the work is the sum of L0² over the rows, and memory does not grow with the text.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import UserError
from ..gather.places import rank_in_group
from ..shelf.shape import damaged
from .codebook import Codebook, codes_of
from .codes_sort import row_chunks

if TYPE_CHECKING:
    from ..shelf.store import FeatureStore

PAIRS = 2**23


class Companion(NamedTuple):
    """A latent that fires together with another on `together` rows; the measures are those of the module's head."""

    latent: int
    together: int
    expected: float
    lift: float
    correlation: float
    jaccard: float


class Companies(NamedTuple):
    """The most correlated companions of every latent; -1, NaN and 0 where it has fewer."""

    latents: Int[Tensor, "latent number"]
    correlation: Float[Tensor, "latent number"]
    together: Int[Tensor, "latent number"]


def company(
    store: FeatureStore, latent: int, number: int = 20, *, by: str = "correlation", least: int = 1
) -> list[Companion]:
    """The `number` latents with the highest `by` ("correlation", "lift" or "jaccard") to `latent`, highest first.

    Only latents that fire together with it on at least `least` rows; ties go to the lower latent, NaN (a latent of constant
    activation) last. UserError if the store kept no codes.
    """
    if by not in ("correlation", "lift", "jaccard"):
        raise UserError(f"expected correlation, lift or jaccard; got {by!r}; choose one of them")
    book, rows = codes_of(store, latent), _kept_rows(store)
    together, products = _sums(book, latent)
    together[latent] = 0
    others = (together >= max(least, 1)).nonzero().squeeze(1)
    pair = torch.full_like(others, latent)
    both = together[others].double()
    expected = book.count[others].double() * int(book.count[latent]) / rows
    measures = {
        "correlation": correlation(book, rows, others, pair, products[others]),
        "lift": both / expected,
        "jaccard": both / (book.count[others] + book.count[latent] - both),
    }
    rank = measures[by].nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)[:number]
    columns = [others, together[others], expected, measures["lift"], measures["correlation"], measures["jaccard"]]
    return [Companion(*row) for row in zip(*(column[rank].tolist() for column in columns), strict=True)]


def _sums(book: Codebook, latent: int) -> tuple[Int[Tensor, "latent"], Float[Tensor, "latent"]]:
    """Rows together with `latent`, and sums of products with its values, of every latent."""
    rows, values = book.firings(latent)
    together = torch.zeros(book.latents, dtype=torch.int64)
    products = torch.zeros(book.latents, dtype=torch.float64)
    at_once = _firings_at_once(book)
    for some, own in zip(rows.split(at_once), values.double().split(at_once), strict=True):
        place, others, theirs = book.slots_of(some)
        together += torch.bincount(others, minlength=book.latents)
        products += torch.bincount(others, own[place] * theirs, book.latents)
    return together, products


def correlation(
    book: Codebook, rows: int, one: Int[Tensor, "pair"], other: Int[Tensor, "pair"], products: Float[Tensor, "pair"]
) -> Float[Tensor, "pair"]:
    """Pearson correlation over `rows` rows of pairs of latents with these sums of products; NaN where one is constant."""
    spread = (book.sum_squares - book.sum.square() / rows).clamp_min(0)
    # What is left of a constant's spread is rounding.
    spread[spread <= 1e-12 * book.sum_squares] = torch.nan
    above = products - book.sum[one] * book.sum[other] / rows
    return (above / (spread[one] * spread[other]).sqrt()).clamp(-1, 1)


def companies(store: FeatureStore, number: int = 20) -> Companies:
    """The `number` most correlated companions of every latent, as `company` gives them. UserError without codes."""
    book, rows = codes_of(store), _kept_rows(store)
    shape = (book.latents, min(number, book.latents - 1))
    out = Companies(torch.full(shape, -1), torch.full(shape, torch.nan), torch.zeros(shape, dtype=torch.int64))
    edges = torch.cat([book.count.new_zeros(1), book.count.cumsum(0)])
    for first, last in row_chunks(edges, _firings_at_once(book)):
        if last == first + 1:
            together, products = _sums(book, first)
            other = together.nonzero().squeeze(1)
            _rank(book, rows, torch.full_like(other, first), other, together[other], products[other], out)
        else:
            _rank(book, rows, *_pairs(book, first, last), out)
    return out


def _pairs(book: Codebook, first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents of the range, latents that fire together with them, rows together, sums of products; sorted by both latents."""
    latents, where, own = book.firings_of(first, last)
    rows, place = where.unique(return_inverse=True)
    slots = book.slots_of(rows)
    left, right = torch.stack([latents - first, place]), torch.stack([slots.place, slots.latents.long()])
    size = last - first, len(rows), book.latents
    own, theirs = own.double(), slots.values.double()
    found = _product(left, own, right, theirs, size)
    one, other = found.indices()
    together = _product(left, torch.ones_like(own), right, torch.ones_like(theirs), size).values().long()
    return one + first, other, together, found.values()


def _product(left: Tensor, own: Tensor, right: Tensor, theirs: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Matrix product of sparse `[m, r]` and `[r, n]`, both sorted by their first index; the places do not depend on values."""
    one = torch.sparse_coo_tensor(left, own, size[:2], is_coalesced=True, check_invariants=False)
    other = torch.sparse_coo_tensor(right, theirs, size[1:], is_coalesced=True, check_invariants=False)
    with warnings.catch_warnings():  # of CSR tensors being young, which are its own affair
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse.mm(one, other).coalesce()


def _rank(
    book: Codebook, rows: int, one: Tensor, other: Tensor, together: Tensor, products: Tensor, out: Companies
) -> None:
    """Fill in the most correlated of the latents `one`, all of whose pairs are here."""
    number = out.latents.shape[1]
    found = correlation(book, rows, one, other, products)
    key = torch.where(one == other, -torch.inf, found.nan_to_num(nan=-2.0))
    order = (key >= _least(key, one, other, book.latents, number)).nonzero().squeeze(1)
    order = order[key[order].argsort(descending=True, stable=True)]
    order = order[one[order].argsort(stable=True)]
    rank = rank_in_group(one[order])
    is_out = (rank < number) & (one != other)[order]
    order, rank = order[is_out], rank[is_out]
    out.latents[one[order], rank] = other[order]
    out.correlation[one[order], rank] = found[order].float()
    out.together[one[order], rank] = together[order]


def _least(key: Tensor, one: Tensor, other: Tensor, latents: int, number: int) -> Tensor:
    """For each pair a bound that the best `number` of its latent reach: worth having only if most pairs are here."""
    if not len(one) or number == 0:
        return key
    first, last = int(one[0]), int(one[-1]) + 1
    if (last - first) * latents > 4 * len(one):
        return key
    table = key.new_full(((last - first), latents), -torch.inf)
    table[one - first, other] = key
    return table.topk(number, dim=1).values[:, -1][one - first]


def _firings_at_once(book: Codebook) -> int:
    """Firings whose rows have about PAIRS slots."""
    return max(1, PAIRS * book.rows // max(book.slots, 1))


def _kept_rows(store: FeatureStore) -> int:
    rows = store.manifest.get("kept_rows")
    if type(rows) is not int or not 0 < rows <= len(store.tokens):
        raise damaged(store.folder, f"{rows!r} kept rows")
    return rows
