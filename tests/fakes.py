"""A FeatureStore, a Graph and a demo folder made from nothing but numbers, with a vocabulary that attacks the page.

`HOSTILE` are the strings that a browser must show and never obey. `store`, `graph` and `demo` write or build the real
classes, so that the views are tested on what they are given in earnest.
"""

import json
import math
from pathlib import Path

import torch
from unweave.circuits import Edges, Graph, Node
from unweave.saes.io import write_json, write_tensors
from unweave.saes.latents.stats import histogram_edges
from unweave.saes.latents.store import FORMAT, VERSION, FeatureStore

HOSTILE = [
    "<img src=x onerror=window.__pwned=1>", "</script><script>window.__pwned=2</script>", "<!--<script>",
    "<a href='javascript:window.__pwned=3'>x</a>", "{{7*7}}", "${window.__pwned=4}", "\x00", "\ud800", "\u202egnp.exe",
    "\u2028", "&lt;b&gt;&amp;", "\"'><svg onload=window.__pwned=5>", "A" * 10_000, "", "\n\t ", "<b>bold</b>",
]  # fmt: skip
WORDS = " the quick brown fox jumps over a lazy dog and then goes home to Paris in France where it rains all day".split(
    " "
)[1:]
PROMPT = ["<|endoftext|>", "The", " capital", " of", " France", " is"]
BEFORE, AFTER, EXAMPLES, BINS = 20, 11, 16, 56


def vocabulary(hostile: bool) -> list[str]:
    return [f" {word}" for word in WORDS] + (HOSTILE if hostile else [" naïve", "。", "\n", " 東京", "def", " return"])


def store(
    folder: Path, latents: int = 64, *, hostile: bool = False, seed: int = 0, fingerprint: str = "f" * 16
) -> FeatureStore:
    """Write a FeatureStore of random statistics: latent 0 is dead, latent 1 dense, latent 2 fires on one token only."""
    generator = torch.Generator().manual_seed(seed)
    vocab = vocabulary(hostile)
    rows, block = 4096, 64
    tokens = torch.randint(0, len(vocab), (rows,), generator=generator)
    density = 10 ** (torch.rand(latents, generator=generator) * 3 - 4.5)
    density[0], density[1] = 0, 0.4
    count = (density * 2_000_000).long()
    peak = torch.rand(latents, generator=generator) * 20 + 2
    edges = histogram_edges()
    shape = torch.exp(-((edges[:-1].log2()[None] - peak.log2()[:, None] + 2) ** 2) / 4) * (
        edges[:-1][None] <= peak[:, None]
    )
    histogram = (shape / shape.sum(1, keepdim=True) * count[:, None]).int()
    values = (peak[:, None] * (1 - 0.03 * torch.arange(EXAMPLES)[None])) * (count > 0)[:, None]
    example_rows = torch.randint(0, rows, (latents, EXAMPLES), generator=generator)
    example_rows[0] = -1
    windows = torch.zeros(latents, EXAMPLES, BEFORE + 1 + AFTER)
    windows[:, :, BEFORE] = values
    windows[:, :, BEFORE - 1] = values * 0.4 * (torch.rand(latents, EXAMPLES, generator=generator) > 0.4)
    windows[:, :, BEFORE + 2] = values * 0.2 * (torch.rand(latents, EXAMPLES, generator=generator) > 0.6)
    entropy = torch.rand(latents, generator=generator) * 3.5 + 0.5
    entropy[2] = 0.0
    logits = torch.randn(latents, 2, 10, generator=generator).abs().sort(dim=-1, descending=True).values
    arrays = {
        "count": count, "density": density, "mean_value": peak / 3, "std_value": peak / 5, "max_value": peak * (count > 0),
        "token_entropy": entropy, "context_entropy": torch.full((latents,), 3.8), "histogram": histogram,
        "example_values": values, "example_rows": example_rows, "example_windows": windows.half(),
        "top_logit_values": logits[:, 0].contiguous(), "bottom_logit_values": -logits[:, 1],
        "top_logit_tokens": torch.randint(0, len(vocab), (latents, 10), generator=generator).int(),
        "bottom_logit_tokens": torch.randint(0, len(vocab), (latents, 10), generator=generator).int(),
        "neighbours": torch.randint(0, latents, (latents, 8), generator=generator).int(),
        "neighbour_cosines": torch.rand(latents, 8, generator=generator).sort(dim=1, descending=True).values,
    }  # fmt: skip
    encoded = [token.encode("utf-8", "surrogatepass") for token in vocab]
    text = {"tokens": tokens.int(), "positions": (torch.arange(rows) % block).int(), "documents": (torch.arange(rows) // block).int(),
            "vocab_bytes": torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8),
            "vocab_ends": torch.tensor([len(token) for token in encoded]).cumsum(0)}  # fmt: skip
    write_tensors(folder / "features.safetensors", arrays)
    write_tensors(folder / "tokens.safetensors", text)
    write_json(folder / "manifest.json", {
        "format": FORMAT, "version": VERSION, "model": {"name": HOSTILE[0] if hostile else "smollm2-135m", "n_layers": 6},
        "dictionary": {"fingerprint": fingerprint, "site": "blocks.3.mlp.hook_in", "site_out": "blocks.3.mlp.hook_out"},
        "shards": "0123456789abcdef", "rows": 2_000_000, "kept_rows": 1_990_000, "before": BEFORE, "after": AFTER})  # fmt: skip
    opened = FeatureStore.open(folder)
    opened.set_label(5, HOSTILE[1] if hostile else "animals that jump")
    return opened


def graph(
    *, hostile: bool = False, layers: int = 6, per_layer: int = 14, seed: int = 0, fingerprint: str = "f" * 16
) -> Graph:
    """A random Graph over a six-token prompt: token leaves, neurons and (layer 3) latents, errors, rests, two targets."""
    generator = torch.Generator().manual_seed(seed)
    strings = [HOSTILE[place] for place in (0, 1, 3, 8, 9)] + [" is"] if hostile else PROMPT
    nodes = [Node("token", -1, place, place, 1.5, strings[place]) for place in range(len(strings))]
    nodes += [Node("bias", layer, -1, -1, 0.0, f"bias of layer {layer}") for layer in range(layers)]
    nodes += [Node("error", 3, place, -1, 0.7, f"error 3@{place}") for place in range(1, len(strings))]
    nodes += [
        Node("rest", layer, place, -1, 0.3, f"rest {layer}@{place}")
        for layer in range(layers)
        for place in range(1, len(strings))
    ]
    leaves = len(nodes)
    for layer in range(layers):
        kind = "latent" if layer == 3 else "neuron"
        places = torch.randint(1, len(strings), (per_layer,), generator=generator).sort().values.tolist()
        nodes += [Node(kind, layer, place, 3 + number, 1.0 + number / 7, HOSTILE[number] if hostile and number < len(HOSTILE) else
                       f"L{layer} {kind} {3 + number}", 0.1) for number, place in enumerate(places)]  # fmt: skip
    nodes += [Node("logit", layers, len(strings) - 1, 7, 17.2, HOSTILE[0] if hostile else " Paris", 0.0, 0.77),
              Node("logit", layers, len(strings) - 1, 8, 14.1, " a", 0.0, 0.05)]  # fmt: skip
    target, source = [], []
    for row in range(leaves, len(nodes)):
        before = [
            item
            for item in range(row)
            if nodes[item].layer < nodes[row].layer and nodes[item].position <= nodes[row].position
        ]
        chosen = torch.randperm(len(before), generator=generator)[:40].sort().values.tolist()
        target += [row] * len(chosen)
        source += [before[item] for item in chosen]
    weight = torch.randn(len(target), generator=generator, dtype=torch.float64) ** 3
    values = torch.full((len(nodes),), math.nan, dtype=torch.float64)
    values[leaves:] = torch.zeros(len(nodes), dtype=torch.float64).index_add_(0, torch.tensor(target), weight)[leaves:]
    metadata = {"prompt": "".join(strings[1:]), "tokens": list(range(len(strings))), "token_strings": strings,
                "model": {"name": "smollm2-135m", "n_layers": layers}, "settings": {"max_features": 8192},
                "dictionaries": [{"site": "blocks.3.mlp.hook_in", "fingerprint": fingerprint}]}  # fmt: skip
    return Graph(nodes, Edges(torch.tensor(target), torch.tensor(source), weight), values, metadata)


def rows(steps: int = 60) -> list[dict[str, float]]:
    """The log of a training run that goes well."""
    return [{"step": step, "tokens": step * 4096, "loss": 2 * math.exp(-step / 20) + 0.5, "fvu": 0.8 * math.exp(-step / 15) + 0.12,
             "l0": 32.0, "dead_share": 0.3 * math.exp(-step / 10), "tokens_per_s": 9000.0 + 40 * step}
            for step in range(1, steps + 1)]  # fmt: skip


def demo(folder: Path, *, hostile: bool = False, latents: int = 64) -> Path:
    """The folder that `unweave demo` leaves, less its shards."""
    names = ["embed-0", "mlp-3"]
    for place, name in enumerate(names):
        run = folder / "dictionaries" / name
        run.mkdir(parents=True)
        site = [f"blocks.{3 + place}.mlp.hook_in"]
        write_json(run / "cfg.json", {"architecture": "topk", "d_sae": latents})
        write_json(
            run / "config.json",
            {"latents": latents, "k": 32, "site": site, "text": HOSTILE[0] if hostile else "bundled"},
        )
        write_json(
            run / "metrics.json",
            {"fvu": 0.21 + place / 10, "l0": 32.0, "dead_share": 0.02, "ce": {"clean": 3.1, "reconstructed": 3.3}},
        )
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
        store(
            folder / "features" / name, latents, hostile=hostile, seed=place, fingerprint=("f" if place else "e") * 16
        )
    graph(hostile=hostile).save(folder / "circuit.graph")
    write_json(folder / "demo.json", {"completion": HOSTILE[0] if hostile else "The capital of France is Paris", "loss": 3.1,
                                      "wall_s": 412.0, "residual": 3e-7})  # fmt: skip
    return folder
