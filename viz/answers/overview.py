"""What is open, in the numbers that one looks at first: a row for each store, Diff, audit and run. Circuits have rows of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...saes import FeatureStore
from ..text import number, readable
from ..things import flat
from .audits import audit_row
from .diffs import diff_row
from .maps import has_map
from .parts import run_sites, sites_of
from .registry import path
from .runs import progress
from .warnings import DENSE

if TYPE_CHECKING:
    from ..things import Run, Things

BINS = 24  # of the histogram of densities
QUANTILES = (0.05, 0.5, 0.95)
MEASURES = ("fvu", "l0", "dead_share", "ce_recovered")


@path("overview")
def overview(things: Things) -> dict[str, Any]:
    """Stores, Diffs, audits and runs in numbers, in the order of the index."""
    return {
        "stores": [store_row(name, store) for name, store in things.stores.items()],
        "diffs": [diff_row(name, found) for name, found in things.diffs.items()],
        "audits": [audit_row(name, found) for name, found in things.audits.items()],
        "runs": [run_row(name, run.fresh()) for name, run in things.runs.items()],
    }


def store_row(name: str, store: FeatureStore) -> dict[str, Any]:
    """One store: where it was collected, how many of its latents are silent or dense, how often they fire, what is said of them.

    density: shares of the kept tokens of those that fire, their 5 %, 50 % and 95 % quantiles and a histogram over log10.
    """
    marks, count, density = store.labels.all(), store.count, store.density
    about, model = (_part(store.manifest, part) for part in ("dictionary", "model"))
    return {
        "name": readable(name),
        "model": readable(model.get("name", "")),
        "site": sites_of(about),
        "latents": len(store),
        "tokens": int(store.manifest.get("kept_rows", store.manifest.get("rows", 0)) or 0),
        "silent": int((count == 0).sum()),
        "dense": int((density > DENSE).sum()),
        "density": _spread(density[count > 0].double()),
        "labelled": sum(mark.label is not None for mark in marks.values()),
        "starred": sum(mark.is_starred for mark in marks.values()),
        "codes": store.codebook is not None,
        "map": has_map(store),
    }


def _spread(density: Tensor) -> dict[str, Any] | None:
    known = density[density > 0]
    if not len(known):
        return None
    logs = known.log10()
    low, high = float(logs.min().floor()), float(logs.max().ceil())
    high = max(high, low + 1)
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    counts = torch.histc(logs, BINS, low, high)
    return {
        "quantiles": [number(float(known.quantile(torch.tensor(part, dtype=torch.float64)))) for part in QUANTILES],
        "edges": [number(10**edge) for edge in edges.tolist()],
        "counts": [int(each) for each in counts.tolist()],
    }


def run_row(name: str, run: Run) -> dict[str, Any]:
    """One run: how far it is, what it trains, and its measures: of the evaluation where there is one, else of the last logged step."""
    config = flat(run.about.get("config", {})) | flat(run.about.get("cfg", {}))
    measured = flat(run.about.get("metrics", {}))
    last = run.rows[-1] if run.rows else {}
    return {
        "name": readable(name),
        **progress(run),
        "site": run_sites(run),
        "activation": readable(config.get("dictionary.activation", config.get("activation", config.get("architecture", "")))),
        "latents": _count(config.get("dictionary.latents", config.get("latents", config.get("d_sae")))),
        "tokens": _count(last.get("tokens")),
        "is_evaluated": bool(measured),
        **{key: number(measured.get(key, last.get(key)), 3) for key in MEASURES},
    }  # fmt: skip


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _part(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = manifest.get(name)
    return found if isinstance(found, dict) else {}
