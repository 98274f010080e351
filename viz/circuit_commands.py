"""The commands of `unweave` that make graphs, test them and hand them on (the others are in commands.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..saes.cli import Result
from ..saes.errors import UserError
from .loading import Text, load


def trace(
    model: Text,
    prompt: Text,
    out: Path,
    dictionaries: tuple[Path, ...] = (),
    targets: tuple[str, ...] = (),
    max_features: int = 8192,
    neurons: Literal["half", "gate", "rows", "none"] = "half",
    select: Literal["attribution", "influence"] = "attribution",
    centred: bool = True,
    memory_mib: int = 64,
    device: str | None = None,
) -> Result:
    """Trace why a prompt gives its next token (prompt → Graph). An interrupted trace goes on when the command is repeated.

    Args:
        model: A name that TransformerLens or the hub knows, a local folder, or smollm2-135m.
        prompt: The text.
        out: File for the graph, e.g. france.graph.
        dictionaries: Folders of dictionaries, ours or circuit-tracer's; MLPs without one use the model's own neurons.
        targets: What to explain, e.g. " Paris", " Paris|| London" (a difference), "why-not: London",
            "feature:blocks.8.mlp.hook_in:17"; left out: the likeliest next tokens.
        max_features: Features that become nodes; what is not selected is summed in leaves.
        neurons: How a gated neuron is a target: half of it through each factor, its gate frozen, both factors with rows of
            their own, or none (such MLPs stay whole, as errors).
        select: Which features become nodes: largest signed total attribution, or influence (as circuit-tracer).
        centred: Logits minus their mean over the vocabulary; --no-centred takes them raw.
        memory_mib: Working memory of the recording pass.
        device: Device of the model.
    """
    from .. import circuits

    if out.is_dir():
        raise UserError(f"expected a file for the graph; {out} is a folder; give for example {out / 'france.graph'}")
    loaded = load(model, "float32", device)
    opened = [circuits.open_dictionaries(folder) for folder in dictionaries]
    graph = circuits.trace(
        loaded,
        prompt,
        opened,
        list(targets) or None,
        max_features,
        neurons=neurons,
        select=select,
        centred=centred,
        memory_mib=memory_mib,
        partial=out.with_name(out.name + ".partial"),
        out=out,
    )
    return {"out": str(out), **graph_numbers(graph)}


def graph_numbers(graph: Any) -> Result:
    """What is printed of a graph: its size, how well its ledger closes, scores and strongest paths."""
    return {
        "nodes": len(graph.nodes),
        "edges": len(graph.edges.weight),
        "residual": graph.residual,
        **graph.scores()._asdict(),
        "targets": {node.label: node.value for node in (graph.nodes[target] for target in graph.targets)},
        "paths": [str(path) for path in graph.paths(5)],
    }


def validate(
    graph: Annotated[Path, tyro.conf.Positional],
    dictionaries: tuple[Path, ...] = (),
    edges: int = 64,
    seed: int = 0,
    top: int = 20,
    constrained: int | None = None,
    curve: bool = True,
    keep: bool = False,
    device: str | None = None,
) -> Result:
    """Change a graph's features in the real model and compare with what the graph predicts.

    Args:
        graph: File of the graph.
        dictionaries: Folders of its dictionaries; left out: where they were when the graph was traced.
        edges: Effects to measure one at a time.
        seed: Seed of the random features and controls.
        top: Features to ablate together.
        constrained: Clamp this many layers above each ablated feature to their direct response (constrained patching).
        curve: Measure faithfulness over circuit sizes (CMD, CPR), with random circuits and complements.
        keep: Write the report into the graph's file too, where the browser's dashboard shows it.
        device: Device of the model.
    """
    from .. import circuits, saes

    opened = circuits.open_graph(graph)
    known = [each["folder"] for each in opened.metadata.get("dictionaries", []) if each.get("folder")]
    folders = dictionaries or list(dict.fromkeys(known))
    name = (opened.metadata.get("model") or {}).get("name")
    if name is None:
        raise saes.UserError(
            f"expected a graph that names its model, as trace makes them; {graph} does not; trace it here"
        )
    loaded = load(name, "float32", device)
    given = [circuits.open_dictionaries(folder) for folder in folders]
    report = circuits.validate(opened, loaded, given, edges, seed, top=top, constrained=constrained, curve=curve)
    print(report, file=sys.stderr)
    if keep:
        opened.metadata["validation"] = report.to_dict()
        opened.save(graph)
    return report.to_dict()


def convert(
    src: Annotated[Path, tyro.conf.Positional],
    dst: Annotated[Path, tyro.conf.Positional],
    to: Literal["saelens", "sparsify", "dictionary_learning", "circuit_tracer", "neuronpedia"],
) -> Result:
    """Write a graph or dictionaries in another tool's form.

    Args:
        src: A graph's file, a dictionary's folder, or a folder of them.
        dst: Where to write.
        to: The form: neuronpedia for graphs, circuit_tracer for transcoders, the others for dictionaries of any form that is read.
    """
    from .convert import convert as write

    return write(src, dst, to)
