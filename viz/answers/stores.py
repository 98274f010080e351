"""Feature stores: what a store is, its columns, the rows of its list, its cards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...saes import Feature, FeatureStore
from ...saes.latents.store import Example
from ..text import jsonable, number, readable, visible
from .registry import nth, path

if TYPE_CHECKING:
    from ..things import Things

DENSE = 0.1  # a latent that fires on more than this share of tokens is called dense
SINGLE_TOKEN = 0.4  # bits; one whose top examples have less token entropy is called single-token
AROUND = 8  # tokens of the list's snippet on each side of the one that fires


def _store(things: Things, place: int, latent: int | None = None) -> FeatureStore:
    found = nth(list(things.stores.values()), place)
    if latent is not None and latent >= len(found):
        raise KeyError(latent)
    return found


@path(r"stores/(\d{1,6})")
def store(things: Things, place: int) -> dict[str, Any]:
    """The store at a place."""
    return store_payload(_store(things, place))


def store_payload(store: FeatureStore, latents: Sequence[int] | None = None) -> dict[str, Any]:
    """What a store is: how many latents, its columns, labels, provenance.

    `latents` are those that a page carries (null: all of them).
    """
    labels = {
        latent: label for latent in range(len(store)) if (label := store.label(latent))
    }  # to become store.labels.all()
    return {
        "total": len(store),
        "latents": None if latents is None else list(latents),
        "columns": list(store.columns),
        "labels": {str(latent): readable(label) for latent, label in labels.items()},
        "provenance": jsonable(dict(store.manifest)),
    }


@path(r"stores/(\d{1,6})/columns/(\w{1,40})")
def column(things: Things, place: int, name: str) -> bytes:
    """One statistic of all latents as little-endian float32."""
    values = _store(things, place).columns[name].to(torch.float32).contiguous().numpy()
    return (values if sys.byteorder == "little" else values.byteswap()).tobytes()


@path(r"stores/(\d{1,6})/rows/(\d{1,9}(?:,\d{1,9}){0,99})")
def rows(things: Things, place: int, wanted: int | str) -> dict[str, Any]:
    """What the list shows of up to a hundred latents: by latent, the text around its strongest example."""
    latents = [int(latent) for latent in str(wanted).split(",")]
    found = _store(things, place, max(latents))
    return {str(latent): row_payload(found, latent) for latent in latents}


def row_payload(store: FeatureStore, latent: int) -> dict[str, Any]:
    """The text around a latent's strongest example: before, the token itself, after."""
    examples = store[latent].examples[:1]
    if not examples:
        return {"before": "", "token": "", "after": ""}
    example = examples[0]
    start, focus = max(example.focus - AROUND, 0), example.focus
    texts = (
        "".join(example.tokens[start:focus]),
        example.tokens[focus],
        "".join(example.tokens[focus + 1 : focus + AROUND]),
    )
    return dict(zip(("before", "token", "after"), (readable(text, 200) for text in texts), strict=True))


@path(r"stores/(\d{1,6})/latents/(\d{1,9})")
def card(things: Things, place: int, latent: int) -> dict[str, Any]:
    """The feature card of one latent."""
    return card_payload(_store(things, place, latent), latent)


def card_payload(store: FeatureStore, latent: int, neighbours: int = 8) -> dict[str, Any]:
    """One feature card: statistics, histogram, logits, examples, neighbours, warnings."""
    feature = store[latent]
    statistics = {
        name: number(getattr(feature, name))
        for name in ("count", "density", "max_value", "mean_value", "token_entropy", "context_entropy")
    }
    near = store.neighbours(latent, neighbours)
    return {
        "latent": int(latent),
        "label": None if feature.label is None else readable(feature.label),
        "statistics": statistics,
        "warnings": warnings(feature),
        "histogram": {
            "edges": [number(float(edge)) for edge in feature.histogram.edges],
            "counts": [int(count) for count in feature.histogram.counts],
        },
        "top_logits": _pairs(feature.top_logits),
        "bottom_logits": _pairs(feature.bottom_logits),
        "examples": [_example(example) for example in feature.examples],
        "neighbours": [
            {"latent": int(other), "cosine": number(cosine, 3), "label": _label(store, other)} for other, cosine in near
        ],
    }


def _label(store: FeatureStore, latent: int) -> str | None:
    label = store.label(latent)
    return None if label is None else readable(label)


def _pairs(pairs: Sequence[tuple[str, float]]) -> list[list[Any]]:
    return [[visible(token), number(value)] for token, value in pairs]


def _example(example: Example) -> dict[str, Any]:
    return {
        "document": int(example.document),
        "position": int(example.position),
        "value": number(example.value),
        "tokens": [readable(token) for token in example.tokens],
        "focus": int(example.focus),
        "values": [number(value, 3) for value in example.values],
    }


def warnings(feature: Feature) -> list[str]:
    """Why a latent's card should be read with care: dead, dense or single-token, each with its rule."""
    if not int(feature.count):
        return ["dead: it never fired in this text"]
    found = []
    if float(feature.density) > DENSE:
        found.append(f"dense: it fires on {float(feature.density):.0%} of all tokens (above {DENSE:.0%})")
    if float(feature.token_entropy) < SINGLE_TOKEN:
        found.append(
            f"single-token: token entropy of its top examples {float(feature.token_entropy):.2f} bits (below {SINGLE_TOKEN})"
        )
    return found
