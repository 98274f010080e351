"""Small pieces for the tests of saes: texts of a toy, Shards with and without a model, random dictionaries, the synthetic task."""

import contextlib
import functools
from pathlib import Path

import pytest
import torch
import toys
from unweave.saes import Dictionary, DictionaryConfig, Shards, cache
from unweave.saes.models import ModelInfo
from unweave.saes.runs.run import Run
from unweave.saes.shards.writer import ShardWriter
from unweave.saes.text import Block, pad_blocks

RESID, MLP_IN, MLP_OUT = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out"
INFO = ModelInfo("none", "f" * 32, "t" * 32, "None", 2, 8, 64, 100, 0)
LAYOUTS = {
    "sae": dict(site="a"),
    "transcoder": dict(site="a", site_out="b"),
    "skip": dict(site="a", site_out="b", skip=True),
    "crosscoder": dict(site=("a", "b")),
    "cross-layer": dict(site=("a", "b"), site_out=("c", "d"), across="cross_layer"),
    "shared": dict(site=("a", "b"), across="shared"),
}


@contextlib.contextmanager
def ends_within(step, monkeypatch):
    """Within the block a run ends in the middle of the step after this one."""
    log = Run.log

    def stop(self, state, metrics):
        if state.step > step:
            raise InterruptedError
        log(self, state, metrics)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Run, "log", stop)
        yield


@functools.cache
def model(name: str = "gpt2", dtype: torch.dtype = torch.float64):
    """One toy for all tests: leave it as it was."""
    return toys.boot(name, dtype=dtype)


def texts(count: int = 12, *, longest: int = 40, seed: int = 0) -> list[str]:
    """Random texts of 1 to `longest` words that the toys' tokenizer knows."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [
        " ".join(f"w{i}" for i in torch.randint(3, toys.VOCAB, (n,), generator=generator).tolist()) for n in lengths
    ]


def cached(
    folder: Path, sites=(RESID,), *, count: int = 12, longest: int = 40, name: str = "gpt2", **options
) -> Shards:
    """Shards of a toy in float64, whole texts unless `tokens` says otherwise."""
    options = {"dtype": torch.float64, "context": 16, "batch": 3, "progress": False, **options}
    return cache(model(name), texts(count, longest=longest), sites, folder, **options)


def shards_of(
    folder: Path,
    activations: dict[str, torch.Tensor],
    *,
    block: int = 8,
    document: int = 16,
    seed: int = 0,
    shard_mib: int = 1,
) -> Shards:
    """Shards of given rows `[row d]` without a model: blocks of `block` rows with random tokens, documents of `document` rows."""
    rows = len(next(iter(activations.values())))
    dtype = next(iter(activations.values())).dtype
    writer = ShardWriter(folder, INFO, list(activations), dtype, rows, block, shard_mib, False)
    tokens = torch.randint(3, toys.VOCAB, (rows,), generator=torch.Generator().manual_seed(seed))
    for start in range(0, rows, block):
        piece = slice(start, min(start + block, rows))
        writer.add(
            {site: x[piece] for site, x in activations.items()}, pad_blocks([Block(tokens[piece], start // document)])
        )
    writer.finish()
    return Shards.open(folder)


def dictionary(
    d: int = toys.WIDTH, latents: int = 24, k: int = 4, *, site: str = RESID, site_out: str = "", d_out: int | None = None,
    skip: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64, **metadata,
) -> Dictionary:  # fmt: skip
    """A random dictionary with every weight and bias filled."""
    generator = torch.Generator().manual_seed(seed)
    d_out = d_out or d
    shapes = {"W_enc": (latents, d), "b_enc": (latents,), "W_dec": (latents, d_out), "b_dec": (d_out,)}
    shapes |= {"W_skip": (d_out, d)} if skip else {}
    tensors = {name: torch.randn(shape, generator=generator, dtype=dtype) * 0.3 for name, shape in shapes.items()}
    config = DictionaryConfig(site=(site,), site_out=(site_out,) if site_out else (), latents=latents, k=k, skip=skip)
    return Dictionary(config, tensors, metadata)


def dense_codes(own: Dictionary, x: torch.Tensor) -> torch.Tensor:
    """Codes `[token latent]` by the definition: all pre-activations, a stable sort, the first k, ReLU."""
    pre = (x - own.b_dec if own.is_sae else x) @ own.W_enc.T + own.b_enc
    order = pre.sort(dim=1, descending=True, stable=True).indices[:, : own.config.k]
    return torch.zeros_like(pre).scatter(1, order, pre.gather(1, order).relu())


class Synthetic:
    """The known dictionary of the quality benchmark: sparse features, Zipf-like firing, a bias, a little noise."""

    def __init__(self, d: int, true: int, active: float, seed: int = 0):
        generator = torch.Generator().manual_seed(1000 + seed)
        self.features = torch.nn.functional.normalize(torch.randn(true, d, generator=generator), dim=1)
        self.bias = 2 * torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
        weights = torch.arange(1, true + 1) ** -0.7
        low, high = 0.0, float(active * true)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if (middle * weights).clamp_max(0.4).sum() < active else (low, middle)
        self.p = (low * weights).clamp_max(0.4)

    def batch(self, rows: int, seed: int) -> torch.Tensor:
        """Activations `[row d]`."""
        generator = torch.Generator().manual_seed(seed)
        fires = torch.rand(rows, len(self.p), generator=generator) < self.p
        size = (1 + 0.25 * torch.randn(rows, len(self.p), generator=generator)).clamp_min(0.1)
        noise = torch.randn(rows, len(self.bias), generator=generator)
        return (fires * size) @ self.features + self.bias + 0.02 * noise
