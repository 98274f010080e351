"""The answers that a page carries: every path of what is open, for a bounded number of latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ...saes import FeatureStore
from ...saes.errors import UserError
from ..text import number
from .audits import frozen_audits
from .cards import card_payload, company_payload, histogram_payload, intervals_payload
from .compare import frozen_compare
from .diffs import first_latents, frozen_diffs
from .frozen_graphs import frozen_graphs
from .index import index
from .maps import frozen_map
from .parts import KINDS
from .registry import answer
from .stores import column_names, column_values, known_marks, marks_payload, rows_payload, store_payload

if TYPE_CHECKING:
    from ..things import Things

FROZEN_EXAMPLES = 2  # of each interval


def frozen(things: Things, cards: int = 200, has_plotly: bool = True) -> Iterator[tuple[str, Any]]:
    """Every path and its answer, with at most `cards` latents over all stores; figures only for a page that has plotly.

    Where the live answer is about all latents (`columns/NAME`, `rows`), a page's is about those that `stores/S` names.
    """
    if cards < 1:
        raise UserError(f"expected at least 1 feature card; got {cards}; give a positive number")
    yield "overview", answer(things, "overview")
    for place in range(len(things.runs)):
        yield f"runs/{place}", answer(things, f"runs/{place}")
    graphs: list[Any] = [answer(things, f"graphs/{place}") for place in range(len(things.graphs))]
    for place, graph in enumerate(graphs):
        yield f"graphs/{place}", graph
    yield from frozen_graphs(things, has_plotly)
    share = max(cards // max(len(things.stores), 1), 1)
    carried = {
        place: _worth_a_card(store, [*_in_circuits(graphs, place), *first_latents(things, place, share)], share)
        for place, store in enumerate(things.stores.values())
    }
    for place, store in enumerate(things.stores.values()):
        yield from _store(store, f"stores/{place}", carried[place])
        yield from frozen_map(things, place, carried[place])
    yield from frozen_diffs(things)
    yield from frozen_audits(things)
    compared = dict(frozen_compare(things, carried))
    yield from compared.items()
    yield "index", index(things) | {"compared": bool(compared)}


def _store(store: FeatureStore, base: str, latents: list[int]) -> Iterator[tuple[str, Any]]:
    yield base, store_payload(store, latents)
    chosen, marks = torch.tensor(latents, dtype=torch.int64), known_marks(store, latents)
    for name in column_names(store, marks):
        yield f"{base}/columns/{name}", [number(value, 6) for value in column_values(store, name)[chosen].tolist()]
    yield f"{base}/rows", rows_payload(store, latents)
    yield f"{base}/marks", marks_payload(marks)
    for latent in latents:
        yield f"{base}/latents/{latent}", card_payload(store, latent)
        yield from _from_codes(store, f"{base}/latents/{latent}", latent)


def _from_codes(store: FeatureStore, base: str, latent: int) -> Iterator[tuple[str, Any]]:
    """What is exact only from the kept codes; a page carries it where they are, with fewer examples than the live browser."""
    if store.codebook is None:
        return
    for kind in KINDS:
        yield f"{base}/intervals/{kind}", intervals_payload(store, latent, kind, examples=FROZEN_EXAMPLES)
    yield f"{base}/histogram", histogram_payload(store, latent)
    yield f"{base}/company", company_payload(store, latent)


def _in_circuits(graphs: list[Any], place: int) -> list[int]:
    """The drawn latents that store number `place` describes, most influential first."""
    nodes = [
        (-(node["influence"] or 0), node["index"])
        for graph in graphs
        for node in graph["nodes"].values()
        if node["kind"] == "latent" and "x" in node and graph["stores"].get(str(node["layer"])) == place
    ]
    return list(dict.fromkeys(index for _, index in sorted(nodes)))


def _worth_a_card(store: FeatureStore, elsewhere: list[int], share: int) -> list[int]:
    """At most `share` latents: of circuits and Diffs (up to half), then `store.interesting`, then those that fire most."""
    by_count = store.count.argsort(descending=True, stable=True)
    alive = by_count[store.count[by_count] > 0].tolist()
    known = [latent for latent in elsewhere if latent < len(store)]
    wanted = dict.fromkeys([*known[: share // 2], *store.interesting(share), *alive])
    return sorted(list(wanted)[:share])
