"""`unweave demo`: the whole data flow on a real 135M language model, in minutes on two CPU cores.

    text → Shards → an SAE and three transcoders → metrics → FeatureStores → a Graph → validation → report.html

Each stage leaves its result in the demo's folder, its numbers in `demo.json`, and is skipped when it is there: an
interrupted demo goes on where it stopped, and what it kept from the earlier run is marked so. Only `Stage.done` writes
`demo.json`, so every number in it was measured by the run that wrote it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..saes.cli import shown
from ..saes.io import read_json, write_json

MODEL = "smollm2-135m"
PROMPT = "The capital of France is"
ANOTHER = "The capital of Italy is"  # traced too, so that circuits can be compared
ENGLISH = (
    "The ship left the harbour early in the morning. By noon the wind had turned to the north, and the captain told the "
    "crew to take in the sails. Nobody on board had expected the storm to come so soon, but they had all seen worse."
)
SAE_SITE = "blocks.10.hook_resid_post"
MLP_LAYERS = (6, 8, 10)
SAE = {"latents": 4096, "k": 32, "batch": 1024}
TRANSCODER = {"latents": 2048, "k": 32, "batch": 1024, "skip": True}
MAX_FEATURES = 512


def dictionary_settings(tokens: int) -> dict[str, dict[str, Any]]:
    """Name → TrainConfig fields of each dictionary; visits are a multiple of the cached tokens."""
    settings: dict[str, dict[str, Any]] = {"sae-10": {**SAE, "site": SAE_SITE, "tokens": 4 * tokens}}
    for layer in MLP_LAYERS:
        sites = {"site": f"blocks.{layer}.mlp.hook_in", "site_out": f"blocks.{layer}.mlp.hook_out"}
        settings[f"transcoder-{layer}"] = {**TRANSCODER, **sites, "tokens": 3 * tokens}
    return settings


class Story:
    """The demo's folder: numbers of each stage, and the lines it prints."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "demo.json"
        self.numbers: dict[str, Any] = read_json(self.path, "the numbers of a demo") if self.path.exists() else {}
        self.begun = time.perf_counter()

    def stage(
        self, name: str, title: str, work: Callable[[], dict[str, Any]], result: Path | None = None
    ) -> dict[str, Any]:
        """Do one stage, or keep what an earlier run left; prints its numbers."""
        kept = name in self.numbers and (result is None or result.exists())
        say(f"\n── {title}" + (" (kept from an earlier run)" if kept else ""))
        if not kept:
            start = time.perf_counter()
            found = json.loads(json.dumps(work(), default=str))
            self.numbers[name] = {**found, "seconds": round(time.perf_counter() - start, 1)}
            write_json(self.path, self.numbers)
        for key, value in self.numbers[name].items():
            say(f"   {key:<22} {shown(value)}")
        return self.numbers[name]


def say(line: str) -> None:
    """A line for the reader; progress and stories go to standard error, so that --json stays alone on standard output."""
    print(line, file=sys.stderr, flush=True)


def run_demo(out: Path, tokens: int, seed: int, device: str | None) -> dict[str, Any]:
    """Run every stage that is not done yet; returns the numbers of all."""
    from .. import saes
    from .loading import load

    story = Story(out)
    settings = dictionary_settings(tokens)
    say(f"Unweave demo in {out}: {MODEL}, {tokens:,} tokens. Interrupt it when you like; the same command goes on.")
    model = load(MODEL, "float32", device)
    story.stage("model", "1. A language model", partial(prove_model, model))
    shards_folder = out / "shards"
    story.stage(
        "cache", "2. Activations of real text", partial(cache_text, model, shards_folder, tokens, settings, device)
    )
    shards = saes.Shards.open(shards_folder)
    for name, fields in settings.items():
        run = out / "dictionaries" / name
        work = partial(train_one, fields, shards, run, seed, device)
        story.stage(f"train {name}", f"3. Train {name}", work, run / "cfg.json")
    trained = {name: saes.Dictionary.load(out / "dictionaries" / name) for name in settings}
    for name, dictionary in trained.items():
        work = partial(evaluate_one, dictionary, shards, model)
        kept_in = out / "dictionaries" / name / "metrics.json"
        story.stage(f"evaluate {name}", f"4. Evaluate {name} on held-out documents", work, kept_in)
    for name, dictionary in trained.items():
        folder = out / "features" / name
        work = partial(collect_one, dictionary, shards, folder, model)
        story.stage(f"collect {name}", f"5. What the latents of {name} do", work, folder / "manifest.json")
    transcoders = [dictionary for dictionary in trained.values() if not dictionary.is_sae]
    graph_path = out / "circuit.graph"
    story.stage("trace", f"6. Why “{PROMPT}” → ?", partial(trace_one, model, transcoders, graph_path), graph_path)
    experiment = partial(validate_one, model, transcoders, graph_path)
    story.stage("validate", "   Do the experiment: ablate in the real model", experiment)
    another = out / "other-circuit.graph"
    story.stage(
        "trace another", f"   Why “{ANOTHER}” → ?", partial(trace_one, model, transcoders, another, ANOTHER), another
    )
    say("\n── 7. Report")
    from .page import write_page

    report = write_page(out / "report.html", [out], title="Unweave demo")
    say(f"   {report} ({report.stat().st_size / 1e6:.1f} MB, opens without a network)")
    say(f"   live browser: unweave show {out}")
    say(f"   {time.perf_counter() - story.begun:.0f} s")
    return {"report": str(report), **story.numbers}


def prove_model(model: Any) -> dict[str, Any]:
    """A greedy completion, the likeliest next token of the prompt, and the loss on ordinary English."""
    import torch

    from ..saes import model_info, to_tokens
    from ..saes.downstream import text_loss

    tokens = to_tokens(model, PROMPT)
    with torch.no_grad():
        p, best = model(tokens[None])[0, -1].softmax(-1).max(0)
        for _ in range(8):
            tokens = torch.cat([tokens, model(tokens[None])[0, -1].argmax()[None]])
    completion = model.tokenizer.decode(tokens[1:])
    return {
        "model": f"{model_info(model).name}, {model_info(model).n_layers} layers of width {model_info(model).d_model}",
        "fingerprint": model_info(model).fingerprint,
        "completion": completion,
        "next token": f"{model.tokenizer.decode([int(best)])!r} with probability {float(p):.3f}",
        "loss on English": text_loss(model, to_tokens(model, ENGLISH)),
    }


def cache_text(
    model: Any, folder: Path, tokens: int, settings: dict[str, dict[str, Any]], device: str | None
) -> dict[str, Any]:
    """Cache every site that a dictionary reads or writes, in the dtype that is faster here."""
    from .. import saes
    from ..saes.models import faster_dtype
    from .loading import load

    sites = {site for fields in settings.values() for site in (fields["site"], fields.get("site_out", fields["site"]))}
    here = next(model.parameters())
    if faster_dtype(here.device) != here.dtype:
        model = load(MODEL, "auto", device)
    start = time.perf_counter()
    shards = saes.cache(model, saes.bundled(), sorted(sites), folder, tokens, batch=16, resume=True)
    seconds = time.perf_counter() - start
    return {
        "rows": len(shards),
        "documents": int(shards.documents.max()) + 1,
        "sites": shards.sites,
        "computed in": str(next(model.parameters()).dtype).removeprefix("torch."),
        "tokens per second": len(shards) / seconds,
        "bytes on disk": sum(entry["bytes"] for entry in shards.manifest["shards"]),
    }


def train_one(fields: dict[str, Any], shards: Any, run: Path, seed: int, device: str | None) -> dict[str, Any]:
    """Train one dictionary with `sae-train`'s own code path."""
    from .. import saes
    from ..saes.cli import sae_train

    config = saes.TrainConfig(**fields, seed=seed)
    last = sae_train(shards.folder, run, config, resume=True, device=device)
    rows = saes.Dictionary.load(run).metadata["rows"]
    keys = ("dictionary", "step", "tokens", "loss", "fvu", "l0", "dead_share", "tokens_per_s")
    return {
        **{key: last[key] for key in keys},
        "learning rate": config.peak_lr,
        "tokens left out by the rule": rows["dropped"],
    }


def evaluate_one(dictionary: Any, shards: Any, model: Any) -> dict[str, Any]:
    """Metrics on held-out documents, kept beside the dictionary too."""
    from .. import saes

    metrics = saes.evaluate(dictionary, shards, model, ce_tokens=1024).to_dict()
    write_json(dictionary.folder / "metrics.json", metrics)
    beside = "PCA of rank k" if dictionary.is_sae else "linear map (least squares)"
    verdict = metrics["fvu"] < (metrics["linear_fvu"] if dictionary.is_sae else 1.0)
    return {
        "variance unexplained": f"{metrics['fvu']:.3f} [{metrics['fvu_interval'][0]:.3f}, {metrics['fvu_interval'][1]:.3f}]",
        beside: metrics["linear_fvu"],
        "beats " + ("PCA" if dictionary.is_sae else "the mean output"): "yes" if verdict else "NO",
        **{
            key: value for key, value in metrics.items() if key not in ("fvu_interval", "linear_fvu", "density_decades")
        },
    }


def collect_one(dictionary: Any, shards: Any, folder: Path, model: Any) -> dict[str, Any]:
    """Collect the FeatureStore; returns a table of latents with top examples."""
    from .. import saes

    if (folder / "manifest.json").exists():  # finished, but not by a run that came to note it
        shutil.rmtree(folder)
    store = saes.collect(dictionary, shards, folder, model)
    if dictionary.is_sae:
        saes.write_map(store, saes.map_layout(dictionary), dictionary.fingerprint)
    return {
        "latents": len(store),
        "never fire": int((store.count == 0).sum()),
        "chosen by": "density 1e-4 to 1e-2 (nearest 1e-3), context entropy ≥ 3/4 of its maximum; token entropy ≤ .5, then 1 to 3 bits",
        "latents (bits)": [feature_line(store[latent]) for latent in store.interesting(10)],
    }


def feature_line(feature: Any) -> str:
    """One latent as a line: density, entropies of its top examples, and where it fires."""
    where = []
    for example in feature.examples[:3]:
        start = max(0, example.focus - 4)
        text = "".join(example.tokens[start : example.focus]) + f"⟦{example.tokens[example.focus]}⟧"
        where.append(" ".join(text.split()))
    return (
        f"{feature.latent:>5}  density {feature.density:.1e}  token {feature.token_entropy:.1f}  "
        f"context {feature.context_entropy:.1f}   {'   '.join(where)}"
    )


def trace_one(model: Any, transcoders: list[Any], path: Path, prompt: str = PROMPT) -> dict[str, Any]:
    """Trace the prompt through transcoders where there are some, the model's own neurons elsewhere."""
    from .. import circuits
    from .circuit_commands import graph_numbers

    graph = circuits.trace(model, prompt, transcoders, max_features=MAX_FEATURES)
    graph = circuits.attach_heads(graph, circuits.split_heads(graph, model, transcoders))
    graph.save(path)
    closes = f"{'yes' if graph.residual <= 1e-5 else 'NO'}: worst row differs by {graph.residual:.1e} of its sum"
    return {
        "features": f"transcoders in layers {', '.join(map(str, MLP_LAYERS))}, neurons elsewhere",
        "ledger closes": closes,
        **graph_numbers(graph),
    }


def validate_one(model: Any, transcoders: list[Any], path: Path) -> dict[str, Any]:
    """Ablate the graph's features in the model, against matched controls."""
    from .. import circuits

    graph = circuits.Graph.load(path)
    report = circuits.validate(graph, model, transcoders, edges=32)
    graph.metadata["validation"] = report.to_dict()  # shown by the browser's dashboard
    graph.save(path)
    return {
        "spearman": report.spearman,
        "interval": list(report.interval),
        f"top {report.top} together": f"predicted {report.top_predicted:+.2f}, measured {report.top_measured:+.2f}",
        "matched controls": list(report.control_measured),
        **({"feature → feature": report.pairs.agreement.spearman} if report.pairs else {}),
        **({"CMD": report.curve.cmd, "CMD of random circuits": list(report.curve.cmd_random)} if report.curve else {}),
        "warnings": list(report.warnings) or "none",
    }
