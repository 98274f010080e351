"""Two stores side by side: what can be compared, the matching kept with one of them, and the latents of one pair.

By cosine two stores can be compared where their decoder rows have one width; by correlation where both kept their codes of
one text: the same token ids at the same positions with the same vocabulary. A matching is kept in the first store's folder as
`matches/METHOD-FINGERPRINT.safetensors`, named by the second store's dictionary and, for correlations, its text.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UserError
from ...io import map_tensors, write_tensors
from ..shelf.store import FeatureStore
from .matching import Matching, Side

FORMAT, VERSION, METHODS = "unweave.matching", "1", ("cosine", "correlation")
ARRAYS = ("a_best", "a_score", "b_best", "b_score", "pair_a", "pair_b", "floor")


def same_text(a: FeatureStore, b: FeatureStore) -> bool:
    """Whether row t is the same token at the same place of the same text in both."""
    rows = len(a.tokens) == len(b.tokens)
    return bool(
        rows
        and torch.equal(a.tokens, b.tokens)
        and torch.equal(a.positions, b.positions)
        and torch.equal(a.documents, b.documents)
        and a.vocabulary == b.vocabulary
    )


def cannot_correlate(a: FeatureStore, b: FeatureStore) -> str | None:
    """Why activations of two stores cannot be compared, None where they can."""
    if not same_text(a, b):
        return "the two stores were collected on different texts"
    missing = [store.folder.name for store in (a, b) if store.codebook is None]
    return f"the codes of the text were not kept in {' and '.join(missing)}" if missing else None


class Pair(NamedTuple):
    """One latent of A and one of B on one text: rows on which both fire, only the one, only the other; their correlation."""

    both: int
    only_a: int
    only_b: int
    correlation: float


def pair_activity(a: FeatureStore, b: FeatureStore, i: int, j: int) -> Pair | None:
    """How a latent of A and one of B fire over all rows, exactly; None where the stores cannot be compared so.

    The correlation is NaN where one of them never fires, or always with the same value. Call `cannot_correlate` first: texts
    are not compared again here.
    """
    if a.codebook is None or b.codebook is None:
        return None
    one, other, rows = a.codebook.firings(i), b.codebook.firings(j), a.codebook.rows
    if not (len(one.rows) and len(other.rows)):
        return Pair(0, len(one.rows), len(other.rows), float("nan"))
    place = torch.searchsorted(other.rows, one.rows).clamp_max(len(other.rows) - 1)
    met = other.rows[place] == one.rows
    x, y = one.values.double(), other.values.double()
    both = int(met.sum())
    above = (x[met] * y[place[met]]).sum() - x.sum() * y.sum() / rows
    correlation = (above / (_spread(x, rows) * _spread(y, rows)).sqrt()).clamp(-1, 1)
    return Pair(both, len(one.rows) - both, len(other.rows) - both, float(correlation))


def _spread(values: Float[Tensor, "firing"], rows: int) -> Float[Tensor, ""]:
    """Squared deviations from the mean over all rows; NaN where only rounding is left of them."""
    squares = values.square().sum()
    spread = squares - values.sum().square() / rows
    return torch.where(spread > 1e-12 * squares, spread, torch.nan)


def match_file(a: FeatureStore, b: FeatureStore, method: str) -> Path:
    """Where the matching of A with B is kept."""
    about = b.manifest["dictionary"]["fingerprint"] + (str(b.manifest.get("shards")) if method == "correlation" else "")
    return a.folder / "matches" / f"{method}-{hashlib.blake2b(about.encode(), digest_size=8).hexdigest()}.safetensors"


def _about(a: FeatureStore, b: FeatureStore, method: str) -> dict[str, str]:
    names = [store.manifest["dictionary"]["fingerprint"] for store in (a, b)]
    texts = [str(store.manifest.get("shards")) if method == "correlation" else "" for store in (a, b)]
    return {
        "format": FORMAT,
        "version": VERSION,
        "method": method,
        "a": names[0],
        "b": names[1],
        "texts": json.dumps(texts),
    }


def write_matching(a: FeatureStore, b: FeatureStore, method: str, matching: Matching) -> None:
    """Keep a matching with A."""
    parts = (*matching.a, *matching.b, matching.pair_a, matching.pair_b, matching.floor)
    tensors = {
        name: part.int() if part.dtype == torch.int64 else part for name, part in zip(ARRAYS, parts, strict=True)
    }
    write_tensors(match_file(a, b, method), tensors, _about(a, b, method))


def swapped(matching: Matching) -> Matching:
    """The same with A and B in each other's place; the floor is that of the old A."""
    return Matching(matching.b, matching.a, matching.pair_b, matching.pair_a, matching.floor)


def read_matching(a: FeatureStore, b: FeatureStore, method: str) -> Matching | None:
    """The matching kept with A, or with B the other way round; None where there is none, or one of other dictionaries or texts.

    UserError for a damaged file.
    """
    found = _read(a, b, method)
    if found is not None:
        return found
    found = _read(b, a, method)
    return None if found is None else swapped(found)


def _read(a: FeatureStore, b: FeatureStore, method: str) -> Matching | None:
    from safetensors import SafetensorError, safe_open

    path = match_file(a, b, method)
    if not path.exists():
        return None
    try:
        with safe_open(str(path), "pt") as file:
            about: dict[str, Any] = file.metadata() or {}
        if about != _about(a, b, method):
            return None
        tensors = map_tensors(path)
        parts = [tensors[name] for name in ARRAYS]
        widths = (parts[0].shape[1:], parts[2].shape[1:])
    except (OSError, SafetensorError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"expected a matching at {path}; could not read it ({error}); match the stores again"
        ) from error
    shapes = [(len(a), *widths[0])] * 2 + [(len(b), *widths[1])] * 2 + [(len(a),), (len(b),), parts[6].shape]
    is_whole = [tuple(part.shape) for part in parts] == [tuple(shape) for shape in shapes] and parts[6].ndim == 1
    is_whole = is_whole and all(
        part.dtype == torch.int32 and _within(part, limit)
        for part, limit in ((parts[0], len(b)), (parts[4], len(b)), (parts[2], len(a)), (parts[5], len(a)))
    )
    if not is_whole:
        raise UserError(f"expected a matching at {path}; its arrays do not fit together; match the stores again")
    sides = Side(parts[0].long(), parts[1]), Side(parts[2].long(), parts[3])
    return Matching(*sides, parts[4].long(), parts[5].long(), parts[6])


def _within(part: Tensor, limit: int) -> bool:
    return not part.numel() or bool(part.min() >= -1 and part.max() < limit)
