"""Graphs as the JSON of Neuronpedia and of Anthropic's viewer, which circuit-tracer writes too: Graph → JSON.

Four required parts: `metadata` (slug, scan, prompt_tokens, prompt), `qParams` (a viewer's state: pinned ids, supernodes),
`nodes` and `links`. Viewers know tokens, latents, errors and logits:

| kind | node_id | feature | layer | feature_type |
|---|---|---|---|---|
| latent of an MLP | `{layer}_{index}_{position}` | cantor(layer, index) | layer | cross layer transcoder |
| error | `{layer}_-1_{position}` | -1 | layer | mlp reconstruction error |
| token | `E_{id}_{position}` | position | E | embedding |
| logit | `{n_layers + 1}_{id}_{position}` | id | n_layers + 1 | logit |

A graph of ours has more, and each kind takes the form that misleads least. `rest` and `first` are MLP output that no node
explains, so they are errors there (ids `_-2_`, `_-3_`), and scores of others are not flattered by them. `bias` and the
learned positions keep names of their own (`_-4_`, `_-5_`), as do neurons, gates, components and latents of other
sites: the schema allows any type, viewers draw an unknown one as a plain node under its label (`clerp`), and the type of an
MLP latent would have them look up another latent's dashboard. An id that is taken gets `_2`, `_3`, ... behind it.

What has no place at all stands under the key `unweave`, of each node (its exact fields and row value: the ledger) and of the
document (metadata, scores, residual, and `lost`: what a reader that ignores this key will not see). So Graph → JSON → Graph
is exact. The other direction, and documents that others made, are neuronpedia_read.py and neuronpedia_keep.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import torch

from ...saes.errors import UserError
from ..graph import FEATURES, KINDS, Graph, Node
from ..simplify.scores import influence, normalised, target_weights
from .json_check import check_json

SCHEMA = 1
MLP_SITES = ("mlp.hook_in", "hook_resid_mid", "ln2.hook_normalized")
ERROR = "mlp reconstruction error"
CODES = {"error": -1, "rest": -2, "first": -3, "bias": -4, "position": -5}
TYPES = {"token": "embedding", "logit": "logit", "error": ERROR, "rest": ERROR, "first": ERROR}
TYPES |= {"position": "position embedding", "head": "attention head"}
SAID = {
    "bias": "constants of this layer, summed over positions",
    "position": "position embedding",
    "rest": "sources that did not become nodes",
    "first": "MLP output at the first position",
}


def to_neuronpedia(
    graph: Graph,
    *,
    slug: str | None = None,
    scan: str | None = None,
    node_threshold: float | None = None,
    feature_details: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The graph as a JSON object; a graph that came from one gives back that one, but for what was changed since.

    `slug` names it (default: of the prompt), `scan` its model and dictionaries (default: the model's name), `node_threshold`
    is where a viewer's slider starts (default .8), `feature_details` tells viewers where dashboards are, `info` who
    made it. UserError for numbers that JSON does not have.
    """
    from .neuronpedia_keep import rewrite

    given = {"slug": slug, "scan": scan, "node_threshold": node_threshold, "feature_details": feature_details}
    options = {name: value for name, value in (given | {"info": info}).items() if value is not None}
    if "neuronpedia" in graph.metadata:
        return rewrite(graph, options)
    nodes = node_records(graph)
    ids = [node["node_id"] for node in nodes]
    columns = zip(*(column.tolist() for column in graph.edges), strict=True)
    links = [{"source": ids[source], "target": ids[target], "weight": weight} for target, source, weight in columns]
    state = {
        "pinnedIds": [],
        "supernodes": [[label, *(ids[i] for i in members)] for label, *members in supernodes(graph)],
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
    }
    metadata = _metadata(graph) | options
    document = {"metadata": metadata, "qParams": state, "nodes": nodes, "links": links, "unweave": ours(graph)}
    check_json({**document, "links": [float(graph.edges.weight.abs().sum())]}, "the graph")
    return document


def cantor(layer: int, index: int) -> int:
    """The one number by which dashboards are filed: (layer + index)(layer + index + 1)/2 + index."""
    return (layer + index) * (layer + index + 1) // 2 + index


def uncantor(number: int) -> tuple[int, int]:
    """(layer, index) of a `cantor` number of any size (an integer root: floats fail from 2^53 on)."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - diagonal * (diagonal + 1) // 2
    return diagonal - index, index


def supernodes(graph: Graph) -> list[list[Any]]:
    """`[[label, node index, ...], ...]` of the metadata; UserError where an entry is no such list."""
    groups = graph.metadata.get("supernodes", [])
    for group in groups if isinstance(groups, list) else [groups]:
        label, *members = group if isinstance(group, list | tuple) and group else [None]
        if not isinstance(label, str) or not all(type(i) is int and 0 <= i < len(graph) for i in members):
            raise UserError(
                f"expected supernodes as [label, node index, ...] of {len(graph)} nodes; got {group!r}; group again"
            )
    return [list(group) for group in groups]


def ours(graph: Graph) -> dict[str, Any]:
    """The document's entry `unweave`: what only this package reads."""
    names = {"weight": graph.edges.weight, "index": graph.edges.target, "row": graph.row_values}
    return {
        "schema": SCHEMA,
        "metadata": {key: value for key, value in graph.metadata.items() if key != "neuronpedia"},
        "dtypes": {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in names.items()},
        "scores": graph.scores()._asdict(),
        "residual": graph.residual,
        "lost": lost(graph),
    }


def our_node(node: Node, row_value: float) -> dict[str, Any]:
    """A node's entry `unweave`: its fields, and the value that its row sums to (null: no row)."""
    return node._asdict() | {"row_value": None if math.isnan(row_value) else row_value}


def lost(graph: Graph) -> list[str]:
    """What a reader that ignores the key `unweave` does not see in the JSON of this graph."""
    count = Counter(node.kind for node in graph.nodes)
    unknown = [f"{count[kind]} {kind}" for kind in KINDS if count[kind] and TYPES.get(kind, "") in ("", kind, ERROR)]
    unknown = [words for words in unknown if words.split()[1] not in ("error", "latent")]
    elsewhere = sum(node.kind == "latent" and not _of_mlp(node) for node in graph.nodes)
    rows = int((~graph.row_values.isnan()).sum())
    said = {
        f"the values that {rows} rows sum to, and so the ledger": rows,
        f"what these nodes are, which viewers draw as errors or plain nodes: {', '.join(unknown)}": unknown,
        f"the site of {elsewhere} latents that read no MLP's input": elsewhere,
        "every node's signed total attribution": any(node.attribution for node in graph.nodes),
        "how edges split over attention heads": graph.metadata.get("heads"),
        "strict scores and the ledger's residual": True,
    }
    return [what for what, there in said.items() if there]


def node_records(graph: Graph) -> list[dict[str, Any]]:
    """The JSON nodes of a graph, in its order."""
    rank, rows = _cumulative(graph), graph.row_values.tolist()
    target = next((i for i, node in enumerate(graph.nodes) if node.kind == "logit"), -1)
    taken: set[str] = set()
    records = []
    for i, node in enumerate(graph.nodes):
        record = node_record(node, rows[i], taken)
        record["is_target_logit"] = i == target
        record["influence"] = None if node.kind == "logit" else rank[i]
        records.append(record)
    return records


def node_record(node: Node, row_value: float, taken: set[str]) -> dict[str, Any]:
    """One JSON node without its influence; its id is one that is not in `taken`, and is added there."""
    place, index = max(node.position, 0), CODES.get(node.kind, node.index)
    layer = "E" if node.layer < 0 else str(node.layer + (node.kind == "logit"))
    node_id = _free(f"{layer}_{index}_{place}", taken)
    return {
        "node_id": node_id,
        "feature": _feature(node),
        "layer": layer,
        "ctx_idx": place,
        "feature_type": _type(node),
        "token_prob": node.weight,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": _js_id(node, layer, index, place),
        "clerp": clerp(node),
        "influence": None,
        "activation": node.value if node.kind in (*FEATURES, "gate", "up") else None,
        "unweave": our_node(node, row_value),
    }


def clerp(node: Node) -> str:
    """The text that a viewer shows for a node; "" where it makes one itself."""
    if node.kind == "logit":
        return f'Output "{node.label}" (p={node.weight:.3f})'
    if node.kind in SAID:
        return SAID[node.kind] if node.layer >= 0 or node.kind == "position" else node.label
    return "" if node.kind in ("token", "error") else node.label


def _metadata(graph: Graph) -> dict[str, Any]:
    about = graph.metadata
    model, settings = (about[key] if isinstance(about.get(key), dict) else {} for key in ("model", "settings"))
    prompt, strings = str(about.get("prompt", "")), about.get("token_strings")
    strings = [str(string) for string in strings] if isinstance(strings, list) else []
    longest = max((node.position for node in graph.nodes), default=-1) + 1
    metadata: dict[str, Any] = {
        "slug": re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:48].strip("-") or "graph",
        "scan": str(model.get("name") or "unknown"),
        "transcoder_list": [],
        "prompt_tokens": strings + [""] * min(longest - len(strings), len(graph)),
        "prompt": prompt,
        "node_threshold": 0.8,
        "schema_version": 1,
        "info": {"generator": {"name": "unweave"}},
        "generation_settings": {
            **({"max_feature_nodes": settings["max_features"]} if "max_features" in settings else {}),
            "max_n_logits": len(graph.of_kind("logit")),
        },
    }
    pruned = graph.metadata.get("pruned", {"nodes": 1.0, "edges": 1.0})
    metadata["pruning_settings"] = {"node_threshold": pruned["nodes"], "edge_threshold": pruned["edges"]}
    return metadata


def _cumulative(graph: Graph) -> list[float]:
    """The share of all influence that a node and those of larger influence carry: a viewer's slider keeps the low ones."""
    edges = graph.edges._replace(weight=graph.edges.weight.double())
    size = influence(edges, normalised(edges, len(graph)), target_weights(graph))
    order = size.argsort(descending=True, stable=True)
    carried = size[order].cumsum(0) / (float(size.sum()) or 1.0)
    return torch.empty_like(carried).scatter_(0, order, carried.clamp(max=1)).tolist()


def _of_mlp(node: Node) -> bool:
    return not node.site or node.site.endswith(MLP_SITES)


def _type(node: Node) -> str:
    if node.kind == "latent":
        return "cross layer transcoder" if _of_mlp(node) else f"latent of {node.site.split('.', 2)[-1]}"
    return TYPES.get(node.kind, node.kind)


def _feature(node: Node) -> int:
    if node.kind in ("token", "position"):
        return max(node.position, 0)
    if node.kind == "logit":
        return node.index
    return cantor(node.layer, node.index) if min(node.layer, node.index) >= 0 and node.kind not in CODES else -1


def _js_id(node: Node, layer: str, index: int, place: int) -> str:
    if node.kind == "logit":
        return f"L_{index}-{place}"
    return f"{layer}_{index}-{place if node.kind == 'token' or node.kind in CODES else 0}"


def _free(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
