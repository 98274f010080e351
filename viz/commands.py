"""The commands of `unweave`, each a function whose annotated arguments are its flags.

They call the packages below and return what `--json` prints; heavy imports happen inside.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..saes.cli import Folder, Result, sae_train
from ..saes.errors import UserError

Text = Annotated[str, tyro.conf.Positional]


def cache(
    model: Text,
    text: tuple[str, ...],
    sites: tuple[str, ...],
    out: Path,
    tokens: int = 1_000_000,
    context: int = 128,
    batch: int = 8,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    stored: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    device: str | None = None,
    resume: bool = False,
) -> Result:
    """Cache activations of text (text → Shards).

    Args:
        model: A name that TransformerLens or the hub knows, a local folder, or smollm2-135m.
        text: Files or folders (.txt .md .py .jsonl, also .gz), or the word bundled for the text that comes along.
        sites: Where to read, e.g. blocks.12.hook_resid_post blocks.8.mlp.hook_in blocks.8.mlp.hook_out.
        out: Folder for the Shards.
        tokens: Tokens to cache at most.
        context: Tokens the model reads together, BOS included.
        batch: Blocks of `context` tokens in one forward pass.
        dtype: What the model computes in; auto takes bfloat16 where that is faster here.
        stored: What the activations are stored in.
        device: Device of the model, e.g. cuda or cpu; left out: CUDA where there is one.
        resume: Go on with an unfinished folder.
    """
    import torch

    from .. import saes

    loaded = load(model, dtype, device)
    documents = saes.read_documents(text)
    shards = saes.cache(
        loaded, documents, sites, out, tokens, getattr(torch, stored), context=context, batch=batch, resume=resume
    )
    return {"out": str(out), "rows": len(shards), "sites": shards.sites, "fingerprint": shards.fingerprint}


def evaluate(
    dictionary: Folder,
    activations: Path,
    model: str | None = None,
    ce_tokens: int = 4096,
    seed: int = 0,
    device: str | None = None,
) -> Result:
    """Measure a dictionary on held-out documents; with a model, also what it does to the predictions.

    Args:
        dictionary: Folder of the dictionary.
        activations: Folder of Shards.
        model: Model to splice the dictionary into, for cross-entropy and KL.
        ce_tokens: Tokens to measure cross-entropy on.
        seed: Seed of the choice of blocks and of the bootstrap.
        device: Device of the model.
    """
    from .. import saes

    shards = saes.Shards.open(activations)
    loaded = load(model, "float32", device) if model else None
    return saes.evaluate(saes.Dictionary.load(dictionary), shards, loaded, ce_tokens=ce_tokens, seed=seed).to_dict()


def collect(dictionary: Folder, activations: Path, out: Path, model: str | None = None) -> Result:
    """Gather what every latent does (Dictionary + tokens → FeatureStore).

    Args:
        dictionary: Folder of the dictionary.
        activations: Folder of Shards.
        out: Folder for the FeatureStore.
        model: Model for vocabulary and logits; left out: the one that the Shards name.
    """
    from .. import saes

    loaded = load(model, "float32", None) if model else None
    store = saes.collect(saes.Dictionary.load(dictionary), saes.Shards.open(activations), out, loaded)
    return {
        "out": str(out),
        "latents": len(store),
        "rows": store.manifest["rows"],
        "interesting": store.interesting(10),
    }


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
        to: The form; this version writes neuronpedia (graphs) and circuit_tracer (transcoders).
    """
    from .convert import convert as write

    return write(src, dst, to)


def show(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional],
    html: Path | None = None,
    port: int = 0,
    open: bool = True,
    model: str | None = None,
    device: str | None = None,
) -> Result:
    """Look at feature stores, graphs, training runs or a demo's folder in the browser.

    Args:
        paths: Folders or .graph files. A dictionary's folder beside its store lets the prompt page work.
        html: Write one self-contained page instead of serving.
        port: Port of the local server; 0 takes a free one.
        open: Open a browser window.
        model: Model for prompts and experiments; left out: the one that a store names, loaded when it is first needed.
        device: Device of that model.
    """
    from .display import show as show_things

    loaded = load(model, "float32", device) if model and not html else None
    written = show_things(*paths, to=html, port=port, open=open, model=loaded)
    return {"html": str(written)} if html else {}


def demo(out: Path = Path("demo"), tokens: int = 80_000, seed: int = 0, device: str | None = None) -> Result:
    """The whole story on smollm2-135m: cache, train, evaluate, collect, trace, validate, report.

    Args:
        out: Folder for everything; what an interrupted demo finished there is kept.
        tokens: Tokens of the bundled text to cache; training passes over them several times.
        seed: Seed of weights and orders.
        device: Device; left out: CUDA where there is one.
    """
    from .demo import run_demo

    return run_demo(out, tokens, seed, device)


def bench(what: Text, suites: tuple[str, ...] = (), seed: int = 0) -> Result:
    """Trace models whose circuits are known, and tell how near the truth each number came.

    Args:
        what: circuits, the only bench of this version.
        suites: Suites to run; left out: all.
        seed: Seed of models, prompts and noise.
    """
    from .bench import bench as run_bench

    return run_bench(what, suites, seed)


def doctor() -> Result:
    """Tell versions, devices, which kernels run on each and why; exit code 1 if something will not work."""
    from .doctor import examine

    return examine()


def load(name: str, dtype: str, device: str | None) -> Any:
    """Load a model for a command; dtype auto measures which is faster on the device."""
    import torch

    from ..saes.models import faster_dtype, load_model

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"expected a device that is here; got {device} ({str(error).splitlines()[0]}); try cpu"
        ) from error
    return load_model(name, device, faster_dtype(device) if dtype == "auto" else getattr(torch, dtype))


COMMANDS = {
    "cache": cache,
    "train": sae_train,
    "eval": evaluate,
    "collect": collect,
    "trace": trace,
    "validate": validate,
    "convert": convert,
    "show": show,
    "bench": bench,
    "demo": demo,
    "doctor": doctor,
}
