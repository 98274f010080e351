"""A causal model in plain torch, made in a moment: for tests that start many processes. No transformers, no tokenizer."""

from pathlib import Path

import torch
from torch import nn
from unweave.saes import Shards, cache

VOCAB, WIDTH, CONTEXT = 50, 16, 12
SITES = ("layers.0", "layers.1.linear.input")


class Layer(nn.Module):
    """Adds to each token a function of the mean of those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        return x + torch.tanh(self.linear(x.cumsum(1) / count))


class Toy(nn.Module):
    """Embedding, two layers, logits; `calls` counts what ran of the last part."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.unembed = nn.Linear(WIDTH, VOCAB)
        self.calls = 0
        self.eval().requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        self.calls += 1
        return self.unembed(x)


def blocks(count: int = 60, seed: int = 0) -> list[torch.Tensor]:
    """Token blocks of 1 to CONTEXT tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, CONTEXT + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, VOCAB, (length,), generator=generator) for length in lengths]


def cache_toy(folder: Path | str, count: int = 60, **options) -> Shards:
    """Blocks of the toy cached in float32, every batch a shard."""
    options = {"dtype": torch.float32, "context": CONTEXT, "batch": 4, "shard_mib": 0, "progress": False, **options}
    return cache(Toy(), blocks(count), SITES, folder, **options)


def everything(folder: Path) -> dict[str, bytes]:
    """Bytes of every file."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
