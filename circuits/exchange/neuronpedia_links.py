"""Links of a JSON graph → Edges: ids into numbers, nodes into causal order.

circuit-tracer up to 2026 gave the error of layer l the id `0_l_position`, which is also that of latent l of layer 0. Of two nodes with
one id, the target of a link is the one that has a row; a source is the first, and for a repeated link the next one.
"""

from __future__ import annotations

import heapq
from math import isfinite
from typing import Any, NamedTuple

import torch

from ...saes.errors import UserError
from ..graph import Edges, Node
from .json_check import check_json, real, want

PLAIN = {"source", "target", "weight"}


class Links(NamedTuple):
    """Numbers of the JSON nodes that each link joins, and its weight."""

    source: list[int]
    target: list[int]
    weight: list[float]


def read_links(links: list[Any], records: list[dict[str, Any]], nodes: list[Node]) -> Links:
    """The links by the numbers of their nodes."""
    known: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        known.setdefault(record["node_id"], []).append(number)
    seen: dict[tuple[str, str], int] = {}
    # Flat lists: an object for each of millions of links would keep the garbage collector busy.
    read = Links([], [], [])
    for i, link in enumerate(links):
        if type(link) is not dict or link.keys() != PLAIN:
            _check_link(link, i)
        source, target, weight = link["source"], link["target"], link["weight"]
        for name, end in (("source", source), ("target", target)):
            if type(end) is not str or end not in known:
                want(False, f"links[{i}].{name}", "the node_id of a node")
        sources, targets = known[source], known[target]
        nth = 0
        if len(sources) > 1:
            nth = seen[source, target] = seen.get((source, target), -1) + 1
        read.source.append(sources[min(nth, len(sources) - 1)])
        read.target.append(next((n for n in targets if nodes[n].kind in ("latent", "logit")), targets[0]))
        read.weight.append(weight if type(weight) is float and isfinite(weight) else real(weight, f"links[{i}].weight"))
    return read


def _check_link(link: Any, i: int) -> None:
    want(isinstance(link, dict), f"links[{i}]", "an object")
    check_json(link, f"links[{i}]")
    for name in ("source", "target", "weight"):
        want(name in link, f"links[{i}].{name}", "an id or a weight")


def causal_order(nodes: list[Node], links: Links, records: list[dict[str, Any]]) -> list[int]:
    """Numbers of the nodes such that every link's source comes first; leaves, latents, logits where links leave it open."""
    pairs = list(zip(links.source, links.target, strict=True))
    if all(source < target for source, target in pairs):
        return list(range(len(nodes)))
    waiting, after = [0] * len(nodes), [[] for _ in nodes]
    for source, target in pairs:
        waiting[target] += 1
        after[source].append(target)
    rank = {"latent": 1, "logit": 2}
    ready = [(rank.get(node.kind, 0), number) for number, node in enumerate(nodes) if not waiting[number]]
    heapq.heapify(ready)
    order = []
    while ready:
        _, number = heapq.heappop(ready)
        order.append(number)
        for target in after[number]:
            waiting[target] -= 1
            if not waiting[target]:
                heapq.heappush(ready, (rank.get(nodes[target].kind, 0), target))
    if len(order) < len(nodes):
        stuck = next(number for number, left in enumerate(waiting) if left)
        raise UserError(
            f"expected links without a cycle; got one at or before nodes[{stuck}] ({records[stuck]['node_id'][:80]!r}); "
            "an attribution graph only goes upwards"
        )
    return order


def edges_of(links: Links, order: list[int], dtypes: dict[str, str]) -> Edges:
    """Edges in the numbering of `order`, repeated ones summed."""
    place = torch.empty(len(order), dtype=torch.int64)
    place[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
    source, target = (place[torch.tensor(numbers, dtype=torch.int64)] for numbers in links[:2])
    weight = torch.tensor(links.weight, dtype=torch.float64)
    keys, member = (target * max(len(order), 1) + source).unique(return_inverse=True)
    total = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, member, weight)
    index = getattr(torch, dtypes["index"])
    total = total.to(getattr(torch, dtypes["weight"]))
    want(bool(total.isfinite().all()), "links", "weights within the range of their dtype")
    return Edges((keys // max(len(order), 1)).to(index), (keys % max(len(order), 1)).to(index), total)
