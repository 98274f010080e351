"""What is known of two stores together: whether they can be matched, and their matching, kept or quickly made."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from torch import Tensor

from ...saes import FeatureStore
from ...saes.errors import UserError
from ...saes.latents.across.matches import cannot_correlate, read_matching
from ...saes.latents.across.matching import Matching, match_activations, match_decoders

if TYPE_CHECKING:
    from ..things import Things

PRODUCTS, SUMS = 2**35, 2**26  # more work than this is an action, not an answer
KEPT = 4  # decoders, and matchings made here, in memory
_ONE_AT_A_TIME = threading.Lock()
_DECODERS: OrderedDict[FeatureStore, Tensor | UserError] = OrderedDict()
_MADE: OrderedDict[tuple[FeatureStore, FeatureStore, str], Matching] = OrderedDict()


def unlike(a: int, b: int) -> str:
    """The words for decoders that cannot be matched by direction."""
    return f"expected decoders of one width; these write {a} and {b} dimensions; compare them by activation"


def decoder(things: Things, store: FeatureStore) -> Tensor:
    """The decoder rows of a store's dictionary, the last few of which are kept in memory; UserError where it is nowhere."""
    from ..finding import open_dictionary  # imports things.py, which opens what answers describe

    with _ONE_AT_A_TIME:
        if store not in _DECODERS:
            try:
                _DECODERS[store] = open_dictionary(things, store).W_dec.detach()
            except UserError as error:
                _DECODERS[store] = error
            while len(_DECODERS) > KEPT:
                _DECODERS.popitem(last=False)
        found = _DECODERS[store]
    if isinstance(found, UserError):
        raise UserError(str(found))
    return found


@lru_cache(maxsize=64)
def _cannot_correlate(a: FeatureStore, b: FeatureStore) -> str | None:
    return cannot_correlate(a, b)


def why_not(things: Things, a: FeatureStore, b: FeatureStore, method: str) -> str | None:
    """Why two stores cannot be matched by a method, None where they can."""
    if method == "correlation":
        return _cannot_correlate(a, b)
    try:
        widths = [decoder(things, store).shape[1] for store in (a, b)]
    except UserError as error:
        return str(error)
    return None if widths[0] == widths[1] else unlike(*widths)


@lru_cache(maxsize=16)
def _kept(a: FeatureStore, b: FeatureStore, method: str) -> Matching | None:
    return read_matching(a, b, method)


def forget_matchings() -> None:
    """Look for kept matchings again: one was made."""
    _kept.cache_clear()


def known_matching(things: Things, a: FeatureStore, b: FeatureStore, method: str) -> Matching | None:
    """The matching of two stores, kept, or made here if that takes a few seconds; None where it is neither.

    UserError for a kept one that is damaged.
    """
    found = _kept(a, b, method)
    if found is not None or why_not(things, a, b, method) is not None:
        return found
    if method == "cosine":
        rows = decoder(things, a), decoder(things, b)
        is_quick = len(rows[0]) * rows[1].numel() <= PRODUCTS
        return _once((a, b, method), lambda: match_decoders(*rows)) if is_quick else None
    one, other = a.codebook, b.codebook
    if one is None or other is None or one.slots * other.slots > SUMS * max(other.rows, 1):
        return None
    return _once((a, b, method), lambda: match_activations(one, other))


def _once(key: tuple[FeatureStore, FeatureStore, str], make: Callable[[], Matching]) -> Matching:
    with _ONE_AT_A_TIME:
        if key not in _MADE:
            _MADE[key] = make()
        while len(_MADE) > KEPT:
            _MADE.popitem(last=False)
        return _MADE[key]
