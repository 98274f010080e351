"""Feature stores: what a store is, its columns, the rows of its list, what people said of its latents."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...saes import FeatureStore
from ..text import jsonable, readable
from .parts import KINDS, has_intervals, store_at, strongest
from .registry import path
from .warnings import RULES

if TYPE_CHECKING:
    from ...saes.latents.said.labels import Mark
    from ..things import Things

AROUND = 8  # tokens of the list's snippet on each side of the one that fires
MOST_LABELS = 2048  # labels that `stores/S` carries; where there are more, each row brings its own
MOST_TAGS = 500
NOTES = {"label_score": "held-out score of the label; how it was measured stands on the card"}


@path(r"stores/(\d{1,6})")
def store(things: Things, place: int) -> dict[str, Any]:
    """The store at a place."""
    return store_payload(store_at(things, place))


def store_payload(store: FeatureStore, latents: Sequence[int] | None = None) -> dict[str, Any]:
    """What a store is: how many latents, its columns with their meaning, labels, tags, the rules of warnings, provenance.

    `latents` are those that a page carries (null: all of them); labels and tags are of these. More than MOST_LABELS labels
    are left to the rows.
    """
    marks = known_marks(store, latents)
    labelled = [latent for latent, mark in marks.items() if mark.label is not None]
    told = labelled if len(labelled) <= MOST_LABELS else []
    tags = Counter(tag for mark in marks.values() for tag in mark.tags)
    return {
        "total": len(store),
        "latents": None if latents is None else list(latents),
        "columns": column_names(store, marks),
        "notes": {name: readable(note, 400) for name, note in {**store.column_notes, **NOTES}.items()},
        "labels": {str(latent): readable(marks[latent].label) for latent in told},
        "marked": {
            "labels": len(labelled),
            "stars": sum(mark.is_starred for mark in marks.values()),
            "tags": {readable(tag): count for tag, count in tags.most_common(MOST_TAGS)},
        },
        "rules": {name: rule.filter for name, rule in RULES.items() if rule.columns <= set(store.columns)},
        "intervals": list(KINDS) if has_intervals(store) else [],
        "company": store.codebook is not None,
        "provenance": jsonable(_provenance(store, is_page=latents is not None)),
    }


def known_marks(store: FeatureStore, latents: Sequence[int] | None = None) -> dict[int, Mark]:
    """What is said of a store's latents, or of some of them."""
    marks = store.labels.all()
    return marks if latents is None else {latent: marks[latent] for latent in latents if latent in marks}


def column_names(store: FeatureStore, marks: dict[int, Mark]) -> list[str]:
    """The statistics of a store; the scores of labels are one of them where there are any."""
    scored = any(mark.score is not None for mark in marks.values())
    return [*store.columns, *(["label_score"] if scored else [])]


def column_values(store: FeatureStore, name: str) -> Tensor:
    """One statistic of all latents, `[latent]`; KeyError where there is none of this name."""
    if name != "label_score":
        return store.columns[name].to(torch.float32)
    values = torch.full((len(store),), float("nan"))
    for latent, mark in store.labels.all().items():
        if mark.score is not None and latent < len(store):
            values[latent] = float(mark.score["value"])
    return values


def _provenance(store: FeatureStore, is_page: bool) -> dict[str, Any]:
    """The manifest; a page, which may be handed on, does not tell where on this disk the dictionary lies."""
    manifest = dict(store.manifest)
    if is_page and isinstance(manifest.get("dictionary"), dict):
        manifest["dictionary"] = {key: value for key, value in manifest["dictionary"].items() if key != "folder"}
    return manifest


@path(r"stores/(\d{1,6})/columns/(\w{1,40})")
def column(things: Things, place: int, name: str) -> bytes:
    """One statistic of all latents as little-endian float32."""
    values = column_values(store_at(things, place), name).contiguous().numpy()
    return (values if sys.byteorder == "little" else values.byteswap()).tobytes()


@path(r"stores/(\d{1,6})/rows/(\d{1,9}(?:,\d{1,9}){0,99})")
def rows(things: Things, place: int, wanted: str) -> dict[str, Any]:
    """What the list shows of up to a hundred latents, by latent: label, star, the text around its strongest example."""
    latents = [int(latent) for latent in wanted.split(",")]
    return rows_payload(store_at(things, place, max(latents)), latents)


def rows_payload(store: FeatureStore, latents: Sequence[int]) -> dict[str, Any]:
    """The rows of some latents."""
    marks = known_marks(store, latents)
    return {str(latent): row_payload(store, latent, marks.get(latent)) for latent in latents}


def row_payload(store: FeatureStore, latent: int, mark: Mark | None = None) -> dict[str, Any]:
    """One row: the label and the star, and of the strongest example the text before, the token itself, the text after."""
    said = {
        "label": None if mark is None or mark.label is None else readable(mark.label),
        "star": mark is not None and mark.is_starred,
    }
    example = strongest(store, latent)
    if example is None:
        return {**said, "before": "", "token": "", "after": ""}
    start, focus = max(example.focus - AROUND, 0), example.focus
    texts = (
        "".join(example.tokens[start:focus]),
        example.tokens[focus],
        "".join(example.tokens[focus + 1 : focus + AROUND]),
    )
    return {**said, **dict(zip(("before", "token", "after"), (readable(text, 200) for text in texts), strict=True))}


@path(r"stores/(\d{1,6})/marks")
def marks(things: Things, place: int) -> dict[str, Any]:
    """Which latents are labelled, starred, noted and tagged."""
    return marks_payload(known_marks(store_at(things, place)))


def marks_payload(marks: dict[int, Mark]) -> dict[str, Any]:
    """Latents by what is said of them, ascending."""
    tagged: dict[str, list[int]] = {}
    for latent, mark in sorted(marks.items()):
        for tag in mark.tags:
            tagged.setdefault(readable(tag), []).append(latent)
    return {
        "labelled": [latent for latent, mark in sorted(marks.items()) if mark.label is not None],
        "starred": [latent for latent, mark in sorted(marks.items()) if mark.is_starred],
        "noted": [latent for latent, mark in sorted(marks.items()) if mark.note],
        "tags": tagged,
    }
