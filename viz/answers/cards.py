"""Feature cards: everything that is known of one latent, and the parts of it that are asked for separately.

| path | answer |
|---|---|
| `stores/S/latents/J` | the card: statistics, warnings, histograms, logits, tokens, top examples, neighbours, what people said |
| `stores/S/latents/J/intervals/KIND` | examples by interval of the activation, with counts and shares |
| `stores/S/latents/J/histogram` | the activations in bins of equal width |
| `stores/S/latents/J/company` | the latents that fire together with it |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...saes import FeatureStore
from ...saes.latents.shelf.store import Example, Histogram
from ..text import jsonable, number, readable, visible
from .parts import KINDS, companions, interval_list, store_at
from .registry import path
from .warnings import warnings

if TYPE_CHECKING:
    from ...saes.latents.said.labels import Mark
    from ..things import Things

WIDTH_BINS = 40


@path(r"stores/(\d{1,6})/latents/(\d{1,9})")
def card(things: Things, place: int, latent: int) -> dict[str, Any]:
    """The feature card of one latent."""
    return card_payload(store_at(things, place, latent), latent)


def card_payload(store: FeatureStore, latent: int, neighbours: int = 8) -> dict[str, Any]:
    """One feature card. What a store of an earlier version lacks is null or empty."""
    feature = store[latent]
    return {
        "latent": int(latent),
        "label": None if feature.label is None else readable(feature.label),
        "mark": mark_payload(store.labels.get(latent)),
        "statistics": {name: number(column[latent].item()) for name, column in store.columns.items()},
        "warnings": warnings(feature),
        "histogram": _histogram(feature.histogram),
        "logit_histogram": _histogram(feature.logit_histogram),
        "top_logits": _pairs(feature.top_logits),
        "bottom_logits": _pairs(feature.bottom_logits),
        "tokens": [
            {
                "token": visible(one.token),
                "count": int(one.count),
                "share": number(one.share),
                "lift": number(one.lift, 3),
            }
            for one in feature.tokens
        ],
        "examples": [example_payload(example) for example in feature.examples],
        "neighbours": [
            {"latent": int(other), "cosine": number(cosine, 3), "label": _label(store, other)}
            for other, cosine in store.neighbours(latent, neighbours)
        ],
    }


def mark_payload(mark: Mark) -> dict[str, Any]:
    """What people said of a latent. Texts are as they were written, for editing; `shown` is what may be shown of one."""
    return {
        "label": _whole(mark.label or ""),
        "note": _whole(mark.note),
        "tags": [{"tag": _whole(tag), "shown": readable(tag)} for tag in mark.tags],
        "star": mark.is_starred,
        "shown": None if mark.label is None else readable(mark.label),
        "score": None if mark.score is None else jsonable(dict(mark.score)),
    }


def _whole(text: str) -> str:
    """Text that a person may edit and give back: nothing is replaced but what UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _histogram(histogram: Histogram | None) -> dict[str, Any] | None:
    if histogram is None:
        return None
    edges, counts = (part.tolist() for part in histogram)
    return {"edges": [number(float(edge)) for edge in edges], "counts": [int(count) for count in counts]}


def _label(store: FeatureStore, latent: int) -> str | None:
    label = store.label(latent)
    return None if label is None else readable(label)


def _pairs(pairs: Iterable[tuple[str, float]]) -> list[list[Any]]:
    return [[visible(token), number(value)] for token, value in pairs]


def example_payload(example: Example) -> dict[str, Any]:
    """A place where a latent fires; `values` are null where it is silent."""
    return {
        "row": int(example.row),
        "document": int(example.document),
        "position": int(example.position),
        "value": number(example.value),
        "tokens": [readable(token) for token in example.tokens],
        "focus": int(example.focus),
        "values": [number(value, 3) or None for value in example.values],
    }


@path(rf"stores/(\d{{1,6}})/latents/(\d{{1,9}})/intervals/({'|'.join(KINDS)})")
def intervals(things: Things, place: int, latent: int, kind: str) -> dict[str, Any]:
    """Examples by interval of the activation: of equal width, of equal count, or of equal ratio (log)."""
    return intervals_payload(store_at(things, place, latent), latent, kind)


def intervals_payload(store: FeatureStore, latent: int, kind: str, examples: int = 5) -> dict[str, Any]:
    """The intervals, strongest first. `is_exact` is false where counts are estimates; each then has its `error`."""
    found = interval_list(store, latent, kind, examples)
    return {
        "kind": kind,
        "is_exact": all(one.is_exact for one in found),
        "intervals": [
            {
                "low": number(one.low),
                "high": number(one.high),
                "count": number(float(one.count)),
                "share": number(one.share),
                "error": None if one.is_exact else number(getattr(one, "error", None), 3),
                "examples": [example_payload(example) for example in one.examples],
            }
            for one in sorted(found, key=lambda one: -one.high)
        ],
    }


@path(r"stores/(\d{1,6})/latents/(\d{1,9})/histogram")
def histogram(things: Things, place: int, latent: int) -> dict[str, Any]:
    """The activations in bins of equal width."""
    return histogram_payload(store_at(things, place, latent), latent)


def histogram_payload(store: FeatureStore, latent: int) -> dict[str, Any]:
    """WIDTH_BINS bins from 0 to the largest value: exact from the kept codes, else spread from the log-spaced bins."""
    codebook, largest = store.codebook, float(store.max_value[latent])
    edges = torch.linspace(0, max(largest, 1e-12), WIDTH_BINS + 1, dtype=torch.float64)
    if codebook is not None:
        values = codebook.firings(latent)[1].double()
        counts = torch.bincount(
            (torch.searchsorted(edges, values, right=True) - 1).clamp(0, WIDTH_BINS - 1), minlength=WIDTH_BINS
        )
        return {**(_histogram(Histogram(edges, counts)) or {}), "is_exact": True}
    spread = spread_counts(store[latent].histogram, edges)
    return {
        "edges": [number(edge) for edge in edges.tolist()],
        "counts": [number(count) for count in spread.tolist()],
        "is_exact": False,
    }


def spread_counts(histogram: Histogram, edges: torch.Tensor) -> torch.Tensor:
    """Counts in the bins of `edges`, as if values lay evenly within each of the histogram's bins, none above the last edge."""
    counts = histogram.counts.double()
    inner = histogram.edges.double().clamp_max(edges[-1])
    inner[0] = 0.0
    inner[-1] = edges[-1]
    below = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    place = torch.searchsorted(inner, edges, right=True).clamp(1, len(counts)) - 1
    width = (inner[place + 1] - inner[place]).clamp_min(1e-300)
    return (below[place] + counts[place] * (edges - inner[place]) / width).diff()


@path(r"stores/(\d{1,6})/latents/(\d{1,9})/company")
def company(things: Things, place: int, latent: int) -> dict[str, Any]:
    """The latents that fire together with this one."""
    return company_payload(store_at(things, place, latent), latent)


def company_payload(store: FeatureStore, latent: int, most: int = 20) -> dict[str, Any]:
    """Co-occurrence and correlation with other latents over the kept tokens, or the reason why there is none."""
    found, reason = companions(store, latent, most)
    rows: Sequence[Any] = [
        {
            "latent": int(one.latent),
            "together": int(one.together),
            "expected": number(one.expected, 3),
            "lift": number(one.lift, 3),
            "correlation": number(one.correlation, 3),
            "jaccard": number(one.jaccard, 3),
            "label": _label(store, one.latent),
        }
        for one in found
    ]
    return {"companions": rows, "reason": reason}
