"""What stores of either version offer to the answers: labels, codes, intervals, company; absent parts are empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...saes import FeatureStore
from ...saes.latents.shelf.store import Example
from ..text import readable
from ..things import flat
from .registry import nth

if TYPE_CHECKING:
    from ..things import Run, Things

KINDS = ("width", "count", "log")


def store_at(things: Things, place: int, latent: int | None = None) -> FeatureStore:
    """The store at a place; KeyError where there is none, or it has no such latent."""
    found = nth(list(things.stores.values()), place)
    if latent is not None and latent >= len(found):
        raise KeyError(latent)
    return found


def sites_of(about: Mapping[str, Any]) -> str:
    """Where a dictionary reads and, if elsewhere, writes: `site` and `site_out` are names, by commas, or lists of names."""
    names = [about.get("site"), about.get("site_out")]
    listed = [list(name) if isinstance(name, (list, tuple)) else str(name).split(", ") for name in names if name]
    return readable(" → ".join(dict.fromkeys(map(_short, listed))))


def _short(sites: Sequence[Any]) -> str:
    """Several sites as the first of them and how many more there are."""
    return str(sites[0]) if len(sites) == 1 else f"{sites[0]} and {len(sites) - 1} more" if sites else ""


def run_sites(run: Run) -> str:
    """The sites of a run's dictionary."""
    config = flat(run.about.get("config", {}))
    return sites_of({name: config.get(f"dictionary.{name}") or config.get(name) for name in ("site", "site_out")})


def has_intervals(store: FeatureStore) -> bool:
    """Whether examples by interval can be had: from the kept codes, or from samples."""
    return store.codebook is not None or store.manifest.get("version", 1) > 1


def strongest(store: FeatureStore, latent: int) -> Example | None:
    """The example with the largest value, None for a latent that never fires."""
    if direct := getattr(store, "strongest", None):
        return direct(latent)
    row = int(store._arrays["example_rows"][latent, 0])
    return (
        store.example_at(latent, row, torch.zeros(1 + store.manifest["before"] + store.manifest["after"]))
        if row >= 0
        else None
    )


def interval_list(store: FeatureStore, latent: int, kind: str, examples: int) -> list[Any]:
    """The intervals of a latent; KeyError where the store has none."""
    if not has_intervals(store):
        raise KeyError(kind)
    from ...saes.latents.codes.intervals import intervals

    return intervals(store, latent, kind, examples=examples)


def companions(store: FeatureStore, latent: int, most: int) -> tuple[list[Any], str | None]:
    """The latents that fire together with one, and why there are none."""
    if store.codebook is None:
        return [], "the codes of this text were not kept, so co-occurrence is not known"
    from ...saes.latents.codes.company import company

    return company(store, latent, most), None
