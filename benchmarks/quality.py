"""Quality after the same tokens, from TrainConfig's defaults, beside a dense reference tuned in the same run.

Known dictionary: d = 128, 512 true features, 10 active a token; 2,048 latents, k = 16, 400 steps of 2,048 = 819k tokens. Only
latents, k, batch and tokens are set. The reference gets the best of three learning rates, chosen on the evaluated tokens
themselves (which flatters it). Measured on 16,384 fresh tokens.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from dense import reconstruct_dense, train_dense
from unweave.saes import TrainConfig, train
from worlds import World, make_world, recovery

LATENTS, K, BATCH, TOKENS = 2048, 16, 2048, 819_200
RATES = (4e-3, 8e-3, 1.2e-2)


def run(seeds: tuple[int, ...] = (0, 1, 2)) -> list[dict[str, Any]]:
    """One row for each seed and method, then the means; progress is printed."""
    rows = []
    for seed in seeds:
        world = make_world(seed)
        rows.append({"method": "unweave defaults", "seed": seed, **ours(world, seed)})
        tries = [{"method": f"dense reference lr {lr:g}", "seed": seed, **dense(world, seed, lr)} for lr in RATES]
        rows += tries
        rows.append({**max(tries, key=lambda row: row["variance_explained"]), "method": "dense reference, tuned"})
    for method in ("unweave defaults", "dense reference, tuned"):
        chosen = [row for row in rows if row["method"] == method]
        keys = [key for key in chosen[0] if key not in ("method", "seed")]
        means = {key: sum(row[key] for row in chosen) / len(chosen) for key in keys}
        rows.append({"method": f"{method}, mean", "seed": "", **means})
    return rows


def ours(world: World, seed: int) -> dict[str, float]:
    """Train with the defaults."""
    start = time.process_time()
    config = TrainConfig(latents=LATENTS, k=K, batch=BATCH, tokens=TOKENS, seed=seed)
    dictionary = train(config, world.stream(TOKENS, BATCH, seed), progress=False, device="cpu")
    seconds = time.process_time() - start
    x = world.sample(16_384, 999 + seed)
    codes = dictionary.encode(x)
    fired = torch.zeros(LATENTS, dtype=torch.bool)
    fired[codes.indices[codes.values > 0]] = True
    return score(world, x, dictionary.decode(codes), fired, dictionary.W_dec, seconds)


def dense(world: World, seed: int, lr: float) -> dict[str, float]:
    """Train the reference with one learning rate."""
    start = time.process_time()
    weights = train_dense(world.stream(TOKENS, BATCH, seed), TOKENS // BATCH, LATENTS, K, lr, seed)
    seconds = time.process_time() - start
    x = world.sample(16_384, 999 + seed)
    x_hat, fired = reconstruct_dense(weights, x, K)
    return score(world, x, x_hat, fired, weights["W_dec"], seconds)


def score(
    world: World, x: torch.Tensor, x_hat: torch.Tensor, fired: torch.Tensor, W_dec: torch.Tensor, seconds: float
) -> dict[str, float]:
    """The columns of the table."""
    mean_cosine, recovered = recovery(world, W_dec)
    explained = 1 - float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    dead = 1 - float(fired.float().mean())
    return {
        "variance_explained": explained,
        "dead_share": dead,
        "mean_max_cosine": mean_cosine,
        "recovered": recovered,
        "cpu_s": seconds,
    }


def passed(rows: list[dict[str, Any]]) -> str | None:
    """None if the promise holds, else what does not."""
    own = next(row for row in rows if row["method"] == "unweave defaults, mean")
    tuned = next(row for row in rows if row["method"] == "dense reference, tuned, mean")
    if own["variance_explained"] < tuned["variance_explained"] - 0.003:
        return "variance explained is more than .003 below the tuned reference"
    return None if own["recovered"] >= 0.95 else "fewer than 95 % of the true features are recovered"
