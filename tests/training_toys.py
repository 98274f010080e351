"""Tiny trainings in float64 for every rule and layout, alone or as one rank of several."""

import dataclasses

import torch
from unweave.saes import TrainConfig
from unweave.saes.fold import Scaling
from unweave.saes.layout import Layout
from unweave.saes.parallel.ranks import ALONE, Ranks
from unweave.saes.parallel.shares import is_shared_out, share_of
from unweave.saes.rows import Pair
from unweave.saes.state import TrainState
from unweave.saes.train import initial_weights, scaled

D, LATENTS, K, BATCH = 6, 24, 3, 40
RULES = ["topk", "batch_topk", "relu", "gated", "jumprelu"]
DENSE = RULES[2:]
LAYOUTS = {
    "sae": dict(site="a"),
    "transcoder": dict(site="a", site_out="b"),
    "skip": dict(site="a", site_out="b", skip=True),
    "crosscoder": dict(site=("a", "b", "c")),
    "acausal": dict(site=("a", "b"), site_out=("c",)),
    "cross-layer": dict(site=("a", "b", "c"), site_out=("d", "e", "f"), across="cross_layer"),
    "cross-layer SAE": dict(site=("a", "b"), across="cross_layer"),
    "shared": dict(site=("a", "b"), across="shared"),
    "shared transcoder": dict(site=("a", "b"), site_out=("c", "d"), across="shared"),
}


def config(rule="topk", layout="sae", **changes) -> TrainConfig:
    given = dict(
        latents=LATENTS, k=K, activation=rule, batch=BATCH, tokens=50 * BATCH, lr=0.01, warmup=0.0, drop_norm=0.0
    )
    return TrainConfig(**{**given, **LAYOUTS[layout], **changes})


def layout_of(own: TrainConfig) -> Layout:
    shape = own.dictionary
    return Layout(shape, dict.fromkeys(shape.site, D), dict.fromkeys(shape.sites_out, D))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def state_of(own: TrainConfig, dead=(), ranks: Ranks = ALONE, dtype: torch.dtype = torch.float64) -> TrainState:
    whole = layout_of(own)
    w = {name: tensor.double() for name, tensor in initial_weights(own, whole, torch.device("cpu")).items()}
    for seed, (name, tensor) in enumerate(w.items()):
        if not name.startswith("W_dec"):
            tensor += 0.1 * randn(*tensor.shape, seed=seed)
    silent = torch.zeros(own.dictionary.latents, dtype=torch.int64)
    silent[list(dead)] = 10**9
    layout = dataclasses.replace(whole, rank=ranks.latent_rank, ranks=ranks.latent)
    w = {
        name: share_of(tensor, len(whole.blocks), ranks) if is_shared_out(name) else tensor
        for name, tensor in w.items()
    }
    state = TrainState(own, {name: tensor.to(dtype) for name, tensor in w.items()}, layout, ranks)
    state.weight, state.lr = state.weight.to(dtype), state.lr.to(dtype)
    state.excess, state.smallest = state.excess.to(dtype), state.smallest.to(dtype)
    state.silent_tokens.copy_(share_of(silent, len(whole.blocks), ranks))
    return state


def pair_of(own: TrainConfig, seed=50, rows: slice = slice(None), dtype: torch.dtype = torch.float64) -> Pair:
    layout = layout_of(own)
    x = randn(BATCH, layout.d_in, seed=seed)[rows].to(dtype)
    is_one = layout.reads == layout.writes
    pair = Pair(x, x if is_one else randn(BATCH, layout.d_out, seed=seed + 1)[rows].to(dtype))
    return scaled(pair, Scaling(torch.zeros(layout.d_in), 1.0, torch.zeros(layout.d_out), 1.0), layout)


TIED = ("ties", "all level", "one rank's latents", "one rank's tokens", "few", "negative", "float64")


def tied(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whole-numbered x [16 5], W_enc [24 5] and b_enc [24], whose pre-activations are exact and often equal."""
    generator = torch.Generator().manual_seed(3)
    x, W_enc = (torch.randint(-2, 3, (rows, 5), generator=generator).float() for rows in (16, 24))
    b_enc = torch.zeros(24)
    if kind == "all level":
        x, b_enc = torch.zeros(16, 5), torch.ones(24)
    if kind == "one rank's latents":
        b_enc[18:] = 40
    if kind == "one rank's tokens":
        x[:4] *= 10
    if kind == "few":
        b_enc -= 6
    if kind == "negative":
        x, b_enc = torch.zeros(16, 5), -torch.ones(24)
    return tuple(tensor.double() for tensor in (x, W_enc, b_enc)) if kind == "float64" else (x, W_enc, b_enc)
