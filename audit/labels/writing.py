"""Labels into the store, through its own labels: a person's label always stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...saes import FeatureStore
from ...saes.latents.said.labels import Change


def is_ours(store: FeatureStore, latent: int, author: str) -> bool:
    """Whether nobody but `author` made the label that stands (or there is none)."""
    if store.labels.get(latent).label is None:
        return True
    last = _last(store.labels.history(latent))
    return last is not None and last.author == author


def write_label(store: FeatureStore, latent: int, text: str, score: Mapping[str, Any], author: str) -> bool:
    """Put a label with its score where no person's stands; False where one does.

    A person may speak between the look and the change: the history tells, and the change is taken back.
    """
    if not is_ours(store, latent, author):
        return False
    before = store.labels.get(latent)
    store.labels.set(latent, label=text, score=dict(score), author=author)
    last = _last(store.labels.history(latent))
    if last is not None and last.author == author and "label" in last.before and last.before["label"] != before.label:
        store.labels.undo(latent, author=author)
        return False
    return True


def _last(history: list[Change]) -> Change | None:
    return next((change for change in history if "label" in change.after), None)
