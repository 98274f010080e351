"""A FeatureStore, a Graph and a demo folder made from nothing but numbers, with a vocabulary that attacks the page.

`HOSTILE` are the strings that a browser must show and never obey. `store`, `graph` and `demo` write or build the real
classes, so that the views are tested on what they are given in earnest.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from unweave.circuits import Edges, Graph, Node
from unweave.saes import Codes, FeatureStats
from unweave.saes.io import write_json, write_tensors
from unweave.saes.latents.codes.codes_file import CodesWriter
from unweave.saes.latents.gather.counters import example_entropies
from unweave.saes.latents.gather.stats import histogram_edges
from unweave.saes.latents.shelf.store import FORMAT, VERSION, FeatureStore

HOSTILE = [
    "<img src=x onerror=window.__pwned=1>", "</script><script>window.__pwned=2</script>", "<!--<script>",
    "<a href='javascript:window.__pwned=3'>x</a>", "{{7*7}}", "${window.__pwned=4}", "\x00", "\ud800", "\u202egnp.exe",
    "\u2028", "&lt;b&gt;&amp;", "\"'><svg onload=window.__pwned=5>", "A" * 10_000, "", "\n\t ", "<b>bold</b>",
]  # fmt: skip
WORDS = " the quick brown fox jumps over a lazy dog and then goes home to Paris in France where it rains all day".split(
    " "
)[1:]
PROMPT = ["<|endoftext|>", "The", " capital", " of", " France", " is"]
BEFORE, AFTER, EXAMPLES, SAMPLES = 20, 11, 16, 40
KEPT = 1_990_000  # rows of the text that a store without codes is said to be of


def vocabulary(hostile: bool) -> list[str]:
    return [f" {word}" for word in WORDS] + (HOSTILE if hostile else [" naïve", "。", "\n", " 東京", "def", " return"])


def store(
    folder: Path,
    latents: int = 64,
    *,
    hostile: bool = False,
    seed: int = 0,
    fingerprint: str = "f" * 16,
    codes: bool = False,
) -> FeatureStore:
    """Write a FeatureStore of random statistics: latent 0 is dead, latent 1 dense, latent 2 fires on one token only.

    With `codes` the statistics are those of codes that are kept beside; without, of a text larger than the one shown.
    """
    generator = torch.Generator().manual_seed(seed)
    vocab = vocabulary(hostile)
    rows, block = 4096, 64
    tokens = torch.randint(0, len(vocab), (rows,), generator=generator)
    at = torch.arange(rows).int()
    text = {"tokens": tokens.int(), "positions": at % block, "documents": at // block}
    arrays = _random_arrays(latents, rows, len(vocab), generator)
    manifest = {"rows": 2_000_000, "kept_rows": KEPT, "codes": {"kept": False, "slots": 0, "bytes": 0}}
    if codes:
        own, manifest = _counted(folder, text, latents, len(vocab), generator)
        arrays |= own
    encoded = [token.encode("utf-8", "surrogatepass") for token in vocab]
    text |= {"vocab_bytes": torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8),
             "vocab_ends": torch.tensor([len(token) for token in encoded]).cumsum(0),
             "vocab_rows": torch.bincount(tokens, minlength=len(vocab))}  # fmt: skip
    write_tensors(folder / "features.safetensors", arrays)
    write_tensors(folder / "tokens.safetensors", text)
    write_json(folder / "manifest.json", {
        "format": FORMAT, "version": VERSION, "model": {"name": HOSTILE[0] if hostile else "smollm2-135m", "n_layers": 6},
        "dictionary": {"fingerprint": fingerprint, "site": "blocks.3.mlp.hook_in", "site_out": "blocks.3.mlp.hook_out", "folder": None},
        "shards": "0123456789abcdef", "text": None, "context": block, "bos": 0, "seed": 0, "position_width": 1, "token_error": 0,
        "before": BEFORE, "after": AFTER, **manifest})  # fmt: skip
    opened = FeatureStore.open(folder)
    opened.set_label(5, HOSTILE[1] if hostile else "animals that jump")
    return opened


def _random_arrays(latents: int, rows: int, vocab: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    density = 10 ** (torch.rand(latents, generator=generator) * 3 - 4.5)
    density[0], density[1] = 0, 0.4
    count = (density * KEPT).long()
    peak = torch.rand(latents, generator=generator) * 20 + 2
    edges = histogram_edges()
    values = (peak[:, None] * (1 - 0.03 * torch.arange(EXAMPLES)[None])) * (count > 0)[:, None]
    sampled = peak[:, None] * 0.8 ** torch.arange(1, SAMPLES + 1)[None] * (count > 0)[:, None]
    first = torch.randint(0, rows, (latents, EXAMPLES + SAMPLES), generator=generator)[:, :1]
    # 73 is odd and `rows` a power of two, so that no row comes twice.
    places = (first + 73 * torch.arange(EXAMPLES + SAMPLES)) % rows
    places[0] = -1
    windows = torch.zeros(latents, EXAMPLES + SAMPLES, BEFORE + 1 + AFTER)
    both = torch.cat([values, sampled], 1)
    histogram = _random_histogram(count, peak, both)
    windows[:, :, BEFORE - 1] = both * 0.4 * (torch.rand(both.shape, generator=generator) > 0.4)
    windows[:, :, BEFORE + 2] = both * 0.2 * (torch.rand(both.shape, generator=generator) > 0.6)
    entropy = torch.rand(latents, generator=generator) * 3.5 + 0.5
    entropy[2] = 0.0
    logits = torch.randn(latents, 2, 10, generator=generator).abs().sort(dim=-1, descending=True).values
    effects = torch.randn(latents, 400, generator=generator)
    return {
        "count": count, "density": density, "mean_value": peak / 3, "std_value": peak / 5, "max_value": peak * (count > 0),
        "token_entropy": entropy, "context_entropy": torch.full((latents,), 3.8), "histogram": histogram,
        "example_values": values, "example_rows": places[:, :EXAMPLES].int(), "sample_values": sampled,
        "sample_rows": places[:, EXAMPLES:].int(), **_sparse(windows),
        "sample_bins": torch.where(sampled > 0, torch.searchsorted(edges[1:-1], sampled, right=True), 255).byte(),
        "top_logit_values": logits[:, 0].contiguous(), "bottom_logit_values": -logits[:, 1],
        "top_logit_tokens": torch.randint(0, vocab, (latents, 10), generator=generator).int(),
        "bottom_logit_tokens": torch.randint(0, vocab, (latents, 10), generator=generator).int(),
        "logit_histogram": torch.stack([torch.histc(row, 40) for row in effects]).int(),
        "logit_range": torch.stack([effects.amin(1), effects.amax(1)], 1), "logit_std": effects.std(1),
        "logit_kurtosis": torch.full((latents,), 3.0) + torch.rand(latents, generator=generator) * 9,
        "neighbours": torch.randint(0, latents, (latents, 8), generator=generator).int(),
        "neighbour_cosines": torch.rand(latents, 8, generator=generator).sort(dim=1, descending=True).values,
        "encoder_cosine": torch.rand(latents, generator=generator), "decoder_norm": torch.ones(latents),
        **_random_tokens(count, entropy == 0, vocab, generator),
        "position_top": torch.where(count > 0, torch.randint(0, 64, (latents,), generator=generator), -1).int(),
        "position_share": 0.02 + 0.5 * torch.rand(latents, generator=generator) ** 8,
        "mean_position": torch.rand(latents, generator=generator) * 63,
    }  # fmt: skip


def _random_histogram(count: torch.Tensor, peak: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """A bump below the `peak` of each latent that has all of its `count`, its `known` values among them."""
    edges = histogram_edges()
    bins = torch.searchsorted(edges[1:-1], known, right=True)
    histogram = torch.zeros(len(count), len(edges) - 1, dtype=torch.int64)
    histogram.scatter_add_(1, bins, (known > 0).long())
    shape = torch.exp(-((edges[:-1].log2()[None] - peak.log2()[:, None] + 2) ** 2) / 4) * (edges[:-1] <= peak[:, None])
    rest = count - histogram.sum(1)
    histogram += (shape / shape.sum(1, keepdim=True) * rest[:, None]).long()
    histogram.scatter_add_(1, shape.argmax(1, keepdim=True), (count - histogram.sum(1))[:, None])
    return histogram.int()


def _random_tokens(
    count: torch.Tensor, is_single: torch.Tensor, vocab: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Eight tokens a latent, each half as frequent as the one before; a single one where the latent fires on one token."""
    share = 0.5 ** torch.arange(1, 9).repeat(len(count), 1)
    share[is_single] = torch.tensor([1.0] + [0.0] * 7)
    counts = (count[:, None] * share).int()
    ids = torch.rand(len(count), vocab, generator=generator).argsort(1)[:, :8]
    return {
        "token_ids": torch.where(counts > 0, ids, -1).int(), "token_counts": counts, "token_lift": (share * vocab).float(),
        "token_share": share[:, 0].clone(), "distinct_tokens": (counts > 0).sum(1).int(),
        "firing_entropy": torch.where(is_single, 0.0, 1.97),
    }  # fmt: skip


def _sparse(windows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Windows `[latent slot window]` as a store keeps them."""
    offset = windows.nonzero()[:, 2]
    counts = (windows != 0).sum(2)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.sum(1).cumsum(0)])
    return {"window_starts": starts, "window_counts": counts.byte(), "window_offsets": offset.byte(),
            "window_values": windows[windows != 0].half()}  # fmt: skip


def _counted(
    folder: Path, text: dict[str, torch.Tensor], latents: int, vocab: int, generator: torch.Generator
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Keep codes in `folder` by which every latent has its own density and favourite token; their statistics."""
    tokens, positions = text["tokens"].long(), text["positions"].long()
    rows = len(tokens)
    p = 10 ** (torch.rand(latents, generator=generator) * 2 - 3)
    p[0], p[1], p[2] = 0.0, 0.4, 0.0
    favourite = torch.randint(0, vocab, (latents,), generator=generator)
    p = p[None].repeat(rows, 1)
    p[(tokens[:, None] == favourite) & (torch.arange(latents) > 1)] = 0.5
    fires = torch.rand(rows, latents, generator=generator) < p
    values = fires * (torch.randn(rows, latents, generator=generator) * 0.7 + 1).exp()
    width = int(fires.sum(1).max())
    codes = Codes(*values.topk(width))
    stats = FeatureStats(latents, EXAMPLES, BEFORE, AFTER, samples=SAMPLES, context=64, vocab=vocab)
    stats.update(codes, positions, 0, torch.ones(rows, dtype=torch.bool), tokens)
    arrays = stats.freeze()
    arrays["token_entropy"], arrays["context_entropy"] = example_entropies(arrays["example_rows"].long(), tokens, positions)  # fmt: skip
    writer = CodesWriter(folder, latents, 64.0)
    writer.append(0, codes)
    return arrays, {"rows": rows, "kept_rows": rows, "codes": writer.finish()}


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
