"""JSON of Neuronpedia's form → Graph; the form itself is told in neuronpedia.py.

1. `check_json`: everything must be JSON with finite numbers; then `_document`, the parts that the schema requires.
2. `read_nodes`: a node of ours has its exact fields under `unweave`; of another's, the kind follows from `feature_type` (what is
   no token, error, bias or logit is a latent), the latent from the Cantor number in `feature`, or from the id.
3. `read_links` turns ids into numbers, also where two nodes share one (neuronpedia_links.py).
4. `causal_order`: others may list nodes in any order. One that is causal already is kept.

Repeated links are one edge of summed weight. A stranger's rows have no value (`row_values` is NaN): the format has no ledger.
Labels are data: nothing in a document is executed or looked up. Every mistake is a UserError that names its place.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from ..graph import KINDS, Graph, Node
from .json_check import check_json, real, want, whole
from .neuronpedia import clerp, to_neuronpedia, uncantor
from .neuronpedia_keep import remember
from .neuronpedia_links import causal_order, edges_of, read_links

FLOATS, WHOLE = ("float32", "float64"), ("int32", "int64")
NODE_KEYS = {"node_id": str, "layer": (str, int), "feature_type": str, "jsNodeId": str, "clerp": str}
LEAF_TYPES = {"embedding": "token", "logit": "logit", "bias": "bias"}


def from_neuronpedia(data: dict[str, Any]) -> Graph:
    """The graph in a JSON object; `to_neuronpedia` of it, unchanged, is equal to `data` again (`unweave` brought up to date).

    What a Graph has no place for (order, unknown keys, pins, another tool's ids) waits in `metadata["neuronpedia"]`.
    UserError for anything malformed, links to absent nodes, and cycles.
    """
    document = _document(data)
    check_json({**document, "links": []}, "the graph")
    records, about = document["nodes"], document["metadata"]
    nodes = read_nodes(records, about["prompt_tokens"])
    links = read_links(document["links"], records, nodes)
    order = causal_order(nodes, links, records)
    ours = _ours(document)
    dtypes = ours["dtypes"] if ours else {"weight": "float64", "index": "int64", "row": "float64"}
    edges = edges_of(links, order, dtypes)
    rows = [_row_value(records[number], f"nodes[{number}]") for number in order]
    metadata = dict(ours["metadata"]) if ours else _metadata(about, nodes)
    position = {number: i for i, number in enumerate(order)}
    place = {records[n]["node_id"]: position[n] for n in reversed(range(len(records)))}
    groups = groups_of(document["qParams"], place)
    if groups or "supernodes" in metadata:
        metadata["supernodes"] = groups
    graph = Graph([nodes[i] for i in order], edges, torch.tensor(rows, dtype=getattr(torch, dtypes["row"])), metadata)
    if ours and to_neuronpedia(graph) == data:
        return graph
    graph.metadata["neuronpedia"] = remember(document, order, links, graph)
    return graph


def _document(data: Any) -> dict[str, Any]:
    want(isinstance(data, dict), "the top", "an object")
    for key, kind in {"metadata": dict, "qParams": dict, "nodes": list, "links": list}.items():
        want(isinstance(data.get(key), kind), key, "an object" if kind is dict else "a list")
    want(isinstance(data.get("qk_only_nodes", {}), dict), "qk_only_nodes", "an object")
    pins = data["qParams"].get("pinnedIds", [])
    want(isinstance(pins, list) and all(isinstance(pin, str) for pin in pins), "qParams.pinnedIds", "a list of text")
    about = data["metadata"]
    for key in ("slug", "scan", "prompt"):
        want(isinstance(about.get(key), str), f"metadata.{key}", "text")
    tokens = about.get("prompt_tokens")
    want(
        isinstance(tokens, list) and all(isinstance(t, str) for t in tokens), "metadata.prompt_tokens", "a list of text"
    )
    return data


def read_nodes(records: list[Any], tokens: list[str]) -> list[Node]:
    """A Node of every JSON node, in their order."""
    nodes = [_node(record, f"nodes[{number}]", tokens) for number, record in enumerate(records)]
    logits = [i for i, node in enumerate(nodes) if node.kind == "logit"]
    if logits and not any(nodes[i].weight for i in logits):
        for i in logits:
            nodes[i] = nodes[i]._replace(weight=1 / len(logits))
    return nodes


def _node(record: Any, path: str, tokens: list[str]) -> Node:
    want(isinstance(record, dict), path, "an object")
    for key, kind in NODE_KEYS.items():
        value = record.get(key)
        want(isinstance(value, kind) and not isinstance(value, bool), f"{path}.{key}", "text")
    position = whole(record.get("ctx_idx"), f"{path}.ctx_idx")
    want("feature" in record, f"{path}.feature", "a whole number or null")
    feature = -1 if record["feature"] is None else whole(record["feature"], f"{path}.feature")
    if _is_ours(record):
        return _our_node(record, f"{path}.unweave")
    written = record["feature_type"]
    kind = "error" if "error" in written else LEAF_TYPES.get(written, "latent")
    layer = int(record["layer"]) if re.fullmatch(r"\d{1,9}", str(record["layer"])) else -1
    value = 0.0 if record.get("activation") is None else real(record["activation"], f"{path}.activation")
    index = -1 if kind in ("error", "bias") else _index(record["node_id"], feature, kind, layer)
    site = (
        f"blocks.{layer}.{'attn' if 'lorsa' in written else 'mlp'}.hook_out" if kind == "error" and layer >= 0 else ""
    )
    label, weight = record["clerp"], 0.0
    if kind == "token" and not label and 0 <= position < len(tokens):
        label = tokens[position]
    if kind == "logit":
        label, weight = _target(record, path)
        layer -= layer > 0
    return Node(kind, layer, position, index, value, label, weight=weight, site=site)


def _is_ours(record: dict[str, Any]) -> bool:
    return isinstance(record.get("unweave"), dict) and "kind" in record["unweave"]


def _our_node(record: dict[str, Any], path: str) -> Node:
    fields = record["unweave"]
    want(fields["kind"] in KINDS, f"{path}.kind", "a kind of node")
    layer, position, index = (whole(fields.get(name), f"{path}.{name}") for name in ("layer", "position", "index"))
    value, attribution, weight = (
        real(fields.get(name), f"{path}.{name}") for name in ("value", "attribution", "weight")
    )
    for name in ("label", "site"):
        want(isinstance(fields.get(name), str), f"{path}.{name}", "text")
    node = Node(fields["kind"], layer, position, index, value, fields["label"], attribution, weight, fields["site"])
    relabelled = node.is_feature and record["clerp"] != clerp(node)
    return node._replace(label=record["clerp"]) if relabelled else node


def _row_value(record: dict[str, Any], path: str) -> float:
    value = record["unweave"].get("row_value") if _is_ours(record) else None
    return math.nan if value is None else real(value, f"{path}.unweave.row_value")


def _index(node_id: str, feature: int, kind: str, layer: int) -> int:
    """The latent or the token of a node: the Cantor number's where it names this layer, else the middle of the id."""
    if kind == "latent" and feature >= 0 and uncantor(feature)[0] == layer:
        return uncantor(feature)[1]
    parts = re.fullmatch(r"(\w+)_(\d{1,18})_\d+", node_id)
    return int(parts[2]) if parts and (kind != "latent" or parts[1] == str(layer)) else feature


def _target(record: dict[str, Any], path: str) -> tuple[str, float]:
    """A logit's token and probability, from its own keys or from `Output "token" (p=0.5)`."""
    said = re.fullmatch(r'(?s:Output )"(?s:(.*))" \(p=([0-9.]{1,20})\)', record["clerp"])
    label = said[1] if said else record["clerp"]
    if record.get("token_prob") is not None:
        return label, real(record["token_prob"], f"{path}.token_prob")
    return label, float(said[2]) if said and re.fullmatch(r"\d+\.?\d*", said[2]) else 0.0


def _ours(document: dict[str, Any]) -> dict[str, Any] | None:
    ours = document.get("unweave")
    if not isinstance(ours, dict) or ours.get("schema") != 1:
        return None
    want(isinstance(ours.get("metadata"), dict), "unweave.metadata", "an object")
    dtypes = ours.get("dtypes") or {}
    want(isinstance(dtypes, dict), "unweave.dtypes", "an object")
    for name, allowed in {"weight": FLOATS, "index": WHOLE, "row": FLOATS}.items():
        want(dtypes.get(name) in allowed, f"unweave.dtypes.{name}", " or ".join(allowed))
    return ours


def _metadata(about: dict[str, Any], nodes: list[Node]) -> dict[str, Any]:
    metadata = {
        "prompt": about["prompt"],
        "token_strings": about["prompt_tokens"],
        "model": {"name": about["scan"]},
        "dictionaries": [],
    }
    ids = {node.position: node.index for node in nodes if node.kind == "token"}
    if ids.keys() == set(range(len(about["prompt_tokens"]))) and min(ids.values(), default=0) >= 0:
        metadata["tokens"] = [ids[i] for i in range(len(ids))]
    return metadata


def groups_of(state: dict[str, Any], place: dict[str, int]) -> list[list[Any]]:
    """A viewer's supernodes as `[label, node index, ...]`; members that have no place in the graph are left out."""
    groups = state.get("supernodes", [])
    want(isinstance(groups, list), "qParams.supernodes", "a list")
    well = [group for group in groups if isinstance(group, list) and group and all(isinstance(s, str) for s in group)]
    return [[label, *(place[member] for member in members if member in place)] for label, *members in well]
