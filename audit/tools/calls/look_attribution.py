"""Look at causes: the attribution graph of one prediction, and the experiment that tests it.

`attribution` traces a prompt (circuits/trace.py) and keeps the graph under an id; `path_patch` ablates some of its nodes in the real model
and compares with what the graph predicts, beside matched random features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from ....circuits import Graph, trace
from ....circuits.graph import Node
from ....circuits.prompts.selection import validate_nodes
from ....saes import UserError
from ..answers import Answer
from ..fields import Messages, Name, Rows, Short, Text
from ..measures.describe import described
from ..measures.prompts import given, ids_of
from ..measures.readings import usual
from ..measures.tested import GRAPH_RUNS, beside, nodes_together
from ..registry import Refused, tool
from ..session import Session
from ..untrusted import shown, token, untrusted

FEATURES, TRACED, GRAPHS, NODES = (
    256,
    64,
    8,
    12,
)  # features of a graph, tokens of its prompt, graphs kept, nodes patched
COST = 20 + GRAPH_RUNS


@tool("look", cost=COST, reads=usual, reads_only=False)  # it keeps a graph
def attribution(
    session: Session,
    text: Text | None = None,
    messages: Messages | None = None,
    target: Short | None = None,
    contrast: Short | None = None,
    dictionary: Name | None = None,
    kind: Literal["all", "latents"] = "all",
    k: Rows = 10,
) -> Answer:
    """Why the target model says a token next: the latents and neurons with the largest share in its logit, and how complete the account is.

    `attribution` is signed and sums over all paths; `ledger_residual` near 0 means that all contributions add up; `completeness` and
    `replacement` (0 to 1) say how much of the influence goes through the listed kinds rather than errors. It holds attention patterns
    fixed, so it predicts: `together` ablates the listed features that speak for the target in the real model, beside random ones of the
    same layers, positions and activations; path_patch tests each.

    Args:
        text: The prompt, at most 64 tokens.
        messages: A chat instead.
        target: The token asked about, with its leading space; left out, the likeliest.
        contrast: Another token: then why target rather than this one.
        dictionary: Name from list_models; left out, the first. MLPs without a dictionary use their own neurons.
        kind: all features, or latents alone.
        k: How many features.
    """
    name = session.workspace.dictionary(dictionary)
    if contrast is not None and target is None:
        raise Refused("expected a target with the contrast; got none; give both tokens", field="contrast")
    ids = ids_of(session, given(text, messages), most=TRACED)
    wanted: Any = None if target is None else [target if contrast is None else (target, contrast)]
    graph = trace(session.workspace.model(), ids, session.workspace.part(name), wanted, max_features=FEATURES)
    graphs = session.kept["graphs"]
    id = f"g{session.kept['numbers'].setdefault('graphs', 0) + 1}"
    session.kept["numbers"]["graphs"] += 1
    graphs[id] = (graph, name)
    for old in list(graphs)[:-GRAPHS]:
        del graphs[old]
    strings, scores = graph.metadata["token_strings"], graph.scores()
    grouped = [each for each in _grouped(graph) if kind == "all" or graph.nodes[each[0]].kind == "latent"]
    rows = [_row(session, name, graph, places, strings) for places in grouped[:k]]
    result = {
        "graph": id, "targets": [_target(graph.nodes[place]) for place in graph.targets[:5]], "tokens": len(strings),
        "ledger_residual": graph.residual, "completeness": scores.completeness, "replacement": scores.replacement,
        **({"together": nodes_together(session, name, graph, [place for places in grouped[:k] for place in places])} if grouped else {}),
        "influence_of_leaves": dict(scores.leaf_shares), "by_token": _by_token(graph, strings), "traced": len(grouped), "features": rows,
    }  # fmt: skip
    return Answer(result, "features", session.about(name))


def _target(node: Node) -> dict[str, Any]:
    return {"token": untrusted(node.label, 60), "logit": node.value, "weight": node.weight}


def _grouped(graph: Graph) -> list[list[int]]:
    """Nodes of one feature (at whatever positions) together, the largest summed |attribution| first."""
    found: dict[tuple[str, str, int, int], list[int]] = {}
    for place, node in enumerate(graph.nodes):
        if node.is_feature:
            found.setdefault((node.kind, node.site, node.layer, node.index), []).append(place)
    return sorted(found.values(), key=lambda places: (-abs(sum(graph.nodes[i].attribution for i in places)), places[0]))


def _row(session: Session, name: str, graph: Graph, places: list[int], strings: list[str]) -> dict[str, Any]:
    nodes = sorted((graph.nodes[place] for place in places), key=lambda node: -abs(node.attribution))
    row: dict[str, Any] = {
        "nodes": sorted(places, key=lambda place: -abs(graph.nodes[place].attribution))[:4],
        "kind": nodes[0].kind,
        "layer": nodes[0].layer,
    }
    row |= described(session, name, nodes[0].index) if nodes[0].kind == "latent" else {"neuron": nodes[0].index}
    at = [{"at": node.position, "token": untrusted(token(strings[node.position]))} for node in nodes[:1]]
    return row | {
        "attribution": sum(node.attribution for node in nodes),
        "value": nodes[0].value,
        "positions": len(nodes),
        **at[0],
    }


def _by_token(graph: Graph, strings: list[str]) -> list[dict[str, Any]]:
    """The positions whose features have most attribution in sum of sizes."""
    sizes: dict[int, float] = {}
    for node in graph.nodes:
        if node.is_feature:
            sizes[node.position] = sizes.get(node.position, 0.0) + abs(node.attribution)
    best = sorted(sizes, key=lambda place: (-sizes[place], place))[:5]
    return [{"at": place, "token": untrusted(token(strings[place])), "size": sizes[place]} for place in best]


def _price(session: Session, arguments: Mapping[str, Any]) -> int:
    return 7 + 6 * len(arguments["nodes"])


@tool("act", cost=13, price=_price)
def path_patch(
    session: Session,
    graph: Short,
    nodes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=NODES)],
) -> Answer:
    """Ablate nodes of a traced graph in the real model, each alone and all together: does the target move as the graph predicts?

    Beside each stand matched random features of the same layer and position and about the same activation; `beyond_controls` is true where
    the measured change exceeds all of theirs. Negative changes: the target falls.

    Args:
        graph: The id from attribution, such as g1.
        nodes: Numbers of nodes from its features.
    """
    if graph not in session.kept["graphs"]:
        known = ", ".join(session.kept["graphs"]) or "none"
        raise Refused(
            f"expected the id of a graph ({known}); got {shown(graph, 40)!r}; trace with attribution first",
            field="graph",
        )
    own, name = session.kept["graphs"][graph]
    if wrong := [each for each in nodes if each >= len(own.nodes) or not own.nodes[each].is_feature]:
        raise UserError(f"expected nodes that attribution listed for {graph}; got {wrong[0]}; choose from its features")
    found = validate_nodes(own, session.workspace.model(), nodes, session.workspace.part(name), seed=session.seed)
    rows = []
    columns = (found.nodes, found.predicted, found.measured, found.node_controls)
    for place, predicted, measured, controls in zip(*columns, strict=True):
        node = own.nodes[place]
        row: dict[str, Any] = {
            "node": place,
            "kind": node.kind,
            "layer": node.layer,
            "index": node.index,
            "at": node.position,
        }
        rows.append(row | {"predicted": predicted, "measured": measured} | beside(measured, controls))
    rows.sort(key=lambda row: (-abs(row["measured"]), row["node"]))
    together = {"predicted": found.top_predicted, "measured": found.top_measured}
    result = {
        "graph": graph,
        "together": together | beside(found.top_measured, found.control_measured),
        "rank_correlation": found.spearman,
        "interval": list(found.interval),
        "warnings": [untrusted(each) for each in found.warnings[:5]],
        "rows": rows,
    }
    return Answer(result, "rows", session.about(name), session.seed)
