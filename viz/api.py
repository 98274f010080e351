"""The read-only questions that the front end asks, as paths.

| path | answer |
|---|---|
| `index` | title, what is open, numbers of the run, metrics of each run |
| `runs/R` | one training run: curves, config, evaluation |
| `stores/S` | table of latents, provenance |
| `stores/S/text/B` | text of the top examples of the table's rows BLOCK·B to BLOCK·(B + 1), for the search box |
| `stores/S/latents/J` | one feature card |
| `graphs/G` | one circuit |

R, S and G count from 0 in the order of the index. The live server computes an answer when it is asked; a page is the
same answers, frozen: `frozen(things)` gives every path with its answer, for at most `cards` latents over all stores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from ..saes import FeatureStore
from ..saes.errors import UserError
from .payload import card_payload, graph_payload, run_payload, store_payload, text_payload
from .text import jsonable, readable
from .things import Things, flat

_PATH = re.compile(r"(runs|stores|graphs)/(\d{1,6})(?:/(text|latents)/(\d{1,9}))?")
BLOCK = 256


def answer(things: Things, path: str) -> dict[str, Any]:
    """The answer to one path; KeyError when there is no such path."""
    if path == "index":
        return index(things)
    match = _PATH.fullmatch(path)
    shelf = list(getattr(things, match[1]).values()) if match else []
    if match is None or int(match[2]) >= len(shelf) or (match[3] and match[1] != "stores"):
        raise KeyError(path)
    thing = shelf[int(match[2])]
    if match[1] == "runs":
        return run_payload(thing.rows, thing.about)
    if match[1] == "graphs":
        return graph_payload(thing) | {"stores": _stores_by_layer(things, thing)}
    if match[3] is None:
        return store_payload(thing)
    number = int(match[4])
    if match[3] == "text":
        return text_payload(thing, range(number * BLOCK, min((number + 1) * BLOCK, len(thing))))
    if number >= len(thing):
        raise KeyError(path)
    return card_payload(thing, number)


def index(things: Things) -> dict[str, Any]:
    """What is open, and the numbers that describe the whole."""
    return {
        "title": readable(things.title),
        "version": version("unweave"),
        "numbers": jsonable(flat(things.numbers)),
        "runs": [
            {
                "name": readable(name),
                "metrics": jsonable(flat(run.about.get("metrics", {}))),
                "sites": _sites(run.about),
            }
            for name, run in things.runs.items()
        ],
        "stores": [{"name": readable(name), "latents": len(store)} for name, store in things.stores.items()],
        "graphs": [
            {"name": readable(name), "prompt": readable(graph.metadata.get("prompt", ""), 400)}
            for name, graph in things.graphs.items()
        ],
    }


def _sites(about: dict[str, Any]) -> str:
    config = flat(about.get("config", {}))
    sites = [config.get(name) for name in ("dictionary.site", "dictionary.site_out", "site", "site_out")]
    names = [", ".join(map(str, site)) if isinstance(site, (list, tuple)) else str(site) for site in sites if site]
    return readable(" → ".join(dict.fromkeys(names)))


def _stores_by_layer(things: Things, graph: Any) -> dict[str, int]:
    """Layer → number of the open store that shows that layer's latents, by the dictionary's fingerprint."""
    fingerprints = [set(map(str, flat(store.manifest).values())) for store in things.stores.values()]
    found = {}
    for reference in graph.metadata.get("dictionaries") or []:
        layer = re.search(r"\.(\d+)\.", str(reference.get("site", "")))
        place = next((i for i, known in enumerate(fingerprints) if str(reference.get("fingerprint")) in known), None)
        if layer and place is not None:
            found[layer[1]] = place
    return found


def frozen(things: Things, cards: int = 200) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every path and its answer, with at most `cards` latents over all stores."""
    if cards < 1:
        raise UserError(f"expected at least 1 feature card; got {cards}; give a positive number")
    yield "index", index(things)
    for place in range(len(things.runs)):
        yield f"runs/{place}", answer(things, f"runs/{place}")
    graphs = [answer(things, f"graphs/{place}") for place in range(len(things.graphs))]
    for place, graph in enumerate(graphs):
        yield f"graphs/{place}", graph
    share = max(cards // max(len(things.stores), 1), 1)
    for place, store in enumerate(things.stores.values()):
        latents = _worth_a_card(store, _in_circuits(graphs, place), share)
        yield f"stores/{place}", store_payload(store, latents)
        for block, start in enumerate(range(0, len(latents), BLOCK)):
            yield f"stores/{place}/text/{block}", text_payload(store, latents[start : start + BLOCK])
        for latent in latents:
            yield f"stores/{place}/latents/{latent}", card_payload(store, latent)


def _in_circuits(graphs: list[dict[str, Any]], place: int) -> list[int]:
    """The drawn latents that store number `place` describes, most influential first."""
    nodes = [
        (-(node["influence"] or 0), node["index"])
        for graph in graphs
        for node in graph["nodes"].values()
        if node["kind"] == "latent" and "x" in node and graph["stores"].get(str(node["layer"])) == place
    ]
    return list(dict.fromkeys(index for _, index in sorted(nodes)))


def _worth_a_card(store: FeatureStore, in_circuits: list[int], share: int) -> list[int]:
    """At most `share` latents: of circuits (up to half), then `store.interesting`, then those that fire most."""
    by_count = store.count.argsort(descending=True, stable=True)
    alive = by_count[store.count[by_count] > 0].tolist()
    known = [latent for latent in in_circuits if latent < len(store)]
    wanted = dict.fromkeys([*known[: share // 2], *store.interesting(share), *alive])
    return sorted(list(wanted)[:share])
