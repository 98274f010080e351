"""The commands of `unweave`, each a function whose annotated arguments are its flags.

They call the packages below and return what `--json` prints; heavy imports happen inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..audit.diffing.command import diff
from ..audit.investigate.command import audit
from ..audit.labels.command import label
from ..audit.serving.command import mcp
from ..saes.cli import Folder, Place, Result, sae_train
from .circuit_commands import convert, trace, validate
from .loading import Text, load


def cache(
    model: Text,
    text: tuple[str, ...],
    sites: tuple[str, ...],
    out: Place,
    tokens: int = 1_000_000,
    context: int = 128,
    batch: int = 8,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    stored: Literal["bfloat16", "float16", "float32", "int8"] = "bfloat16",
    device: str | None = None,
    resume: bool = False,
    pack: bool = False,
    statistics: bool = False,
    shard_mib: int = 128,
) -> Result:
    """Cache activations of text (text → Shards).

    Args:
        model: A name that TransformerLens or the hub knows, a local folder, or smollm2-135m.
        text: Files or folders (.txt .md .py .jsonl, also .gz), or the word bundled for the text that comes along.
        sites: Where to read, e.g. blocks.12.hook_resid_post blocks.8.mlp.hook_in blocks.8.mlp.hook_out.
        out: Folder for the Shards, or a URL, e.g. s3://bucket/name.
        tokens: Tokens to cache at most.
        context: Tokens the model reads together, BOS included.
        batch: Blocks of `context` tokens in one forward pass.
        dtype: What the model computes in; auto takes bfloat16 where that is faster here.
        stored: What the activations are stored in; int8 has a scale for each row.
        device: Device of the model, e.g. cuda or cpu; left out: CUDA where there is one.
        resume: Go on with an unfinished folder.
        pack: Let short documents share a line of `context` tokens, none seeing another, instead of padding them.
        statistics: Keep mean and variance of every dimension, and the number of massive rows, beside the activations.
        shard_mib: MiB at which a file is closed: what a killed run loses at most.
    """
    import torch

    from .. import saes

    loaded = load(model, dtype, device)
    documents = saes.read_documents(text)
    shards = saes.cache(
        loaded,
        documents,
        sites,
        out,
        tokens,
        getattr(torch, stored),
        context=context,
        batch=batch,
        resume=resume,
        source=text,
        pack=pack,
        statistics=statistics,
        shard_mib=shard_mib,
    )
    return {"out": str(out), "rows": len(shards), "sites": shards.sites, "fingerprint": shards.fingerprint}


def evaluate(
    dictionary: Folder,
    activations: Place,
    model: str | None = None,
    ce_tokens: int = 4096,
    probe: bool = False,
    twins: tuple[Path, ...] = (),
    seed: int = 0,
    device: str | None = None,
) -> Result:
    """Measure a dictionary on held-out documents; with a model, also what it does to the predictions.

    Args:
        dictionary: Folder of the dictionary.
        activations: Folder of Shards, or its URL.
        model: Model to splice the dictionary into, for cross-entropy and KL.
        ce_tokens: Tokens to measure cross-entropy on.
        probe: Also train sparse probes: how well a few latents tell language, code, quotation, number and parts of speech.
        twins: Folders of dictionaries trained alike from other seeds: how similar their decoders are, beside chance.
        seed: Seed of the choice of blocks and of the bootstrap.
        device: Device of the model.
    """
    from .. import saes

    shards = saes.Shards.open(activations)
    loaded = load(model, "float32", device) if model else None
    opened = saes.Dictionary.load(dictionary)
    found = saes.evaluate(opened, shards, loaded, ce_tokens=ce_tokens, seed=seed, probe=probe).to_dict()
    if twins:
        from ..saes.judge.seeds import seed_similarity

        found["seed_similarity"] = seed_similarity([opened, *map(saes.Dictionary.load, twins)], seed)
    return found


def collect(
    dictionary: Folder,
    activations: Place,
    out: Path,
    model: str | None = None,
    codes_mib: int = 2048,
    seed: int = 0,
    resume: bool = True,
    map: Literal["none", "umap", "pca"] = "none",
    site: str | None = None,
) -> Result:
    """Gather what every latent does (Dictionary + tokens → FeatureStore). An interrupted one goes on when it is repeated.

    Args:
        dictionary: Folder of the dictionary.
        activations: Folder of Shards, or its URL.
        out: Folder for the FeatureStore.
        model: Model for vocabulary and logits; left out: the one that the Shards name.
        codes_mib: Keep every activation too if that takes at most so many MiB (16 bytes each; exact intervals and
            co-occurrence need them); 0 keeps none.
        seed: Seed of the samples within the bins of the histograms, and of the map.
        resume: Go on with what an interrupted collect left in the folder; --no-resume begins anew.
        map: Lay the decoder's directions out in two dimensions too, by umap (pip install 'unweave[map]') or by principal
            components; seconds to minutes.
        site: Site to gather at, of a dictionary that several sites share.
    """
    from .. import saes

    loaded = load(model, "float32", None) if model else None
    opened = saes.Dictionary.load(dictionary)
    opened = opened if site is None else opened.at(site)
    shards = saes.Shards.open(activations)
    store = saes.collect(opened, shards, out, loaded, codes_mib=codes_mib, seed=seed, resume=resume)
    if map != "none":
        saes.write_map(store, saes.map_layout(opened, map, seed=seed), opened.fingerprint)
    return {
        "out": str(out),
        "latents": len(store),
        "rows": store.manifest["rows"],
        "codes_kept": store.codebook is not None,
        "interesting": store.interesting(10),
    }


def show(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional],
    html: Path | None = None,
    port: int = 0,
    open: bool = True,
    model: str | None = None,
    base: str | None = None,
    text: tuple[str, ...] = (),
    transcript: Path | None = None,
    device: str | None = None,
) -> Result:
    """Look at feature stores, graphs, diffs, audits, training runs or a demo's folder in the browser.

    Args:
        paths: Folders or .graph files. A dictionary's folder beside its store lets the prompt page work.
        html: Write one self-contained page instead of serving.
        port: Port of the local server; 0 takes a free one.
        open: Open a browser window.
        model: Model for prompts and experiments; left out: the one that a store names, loaded when it is first needed.
        base: For the audit's tools over REST: the model that this one was made from, to compare with.
        text: For the same: files or folders to search, or the word bundled for the text that comes along.
        transcript: For the same: a new file, in which every call is kept with its answer.
        device: Device of these models.
    """
    from .display import show as show_things

    loaded, other = (load(name, "float32", device) if name and not html else None for name in (model, base))
    written = show_things(
        *paths,
        to=html,
        port=port,
        open=open,
        model=loaded,
        base=other or (base if html else None),
        text=text,
        transcript=transcript,
    )
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


def bench(
    what: Text,
    suites: tuple[str, ...] = (),
    seed: int = 0,
    methods: tuple[str, ...] = (),
    seeds: int = 3,
    quick: bool = False,
    out: Path | None = None,
) -> Result:
    """Try the tools where the truth is known: tracing on known circuits, training on known features, auditing planted quirks, scratchpads.

    Args:
        what: circuits (tracing), synthetic (training; about ten minutes), audit (the auditing game; about an hour) or scratchpad (is the
            reasoning shown the reasoning used; about ten minutes).
        suites: Suites of circuits to run; left out: all.
        seed: Seed of the models, prompts and noise of circuits, of the organisms of audit, and of scratchpad.
        methods: Methods of synthetic to train, e.g. topk "batch_topk matryoshka"; left out: all.
        seeds: Trainings of each method or model of scratchpad, whose deviation is the noise of the table.
        quick: Train on a quarter of the tokens; of audit, play with a tiny model (a minute).
        out: Folder where audit keeps the organisms and what was played; an interrupted bench goes on there.
    """
    from .bench import bench as run_bench

    return run_bench(what, suites, seed, methods=methods, seeds=seeds, quick=quick, out=out)


def doctor() -> Result:
    """Tell versions, devices, which kernels run on each and why; exit code 1 if something will not work."""
    from .doctor import examine

    return examine()


COMMANDS = {
    "cache": cache,
    "train": sae_train,
    "eval": evaluate,
    "collect": collect,
    "trace": trace,
    "validate": validate,
    "convert": convert,
    "diff": diff,
    "label": label,
    "audit": audit,  # with --monitor or --scratchpad another (cli.py)
    "mcp": mcp,
    "show": show,
    "bench": bench,
    "demo": demo,
    "doctor": doctor,
}
