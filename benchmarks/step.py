"""One training step against the floor of one dense encoder matmul, in CPU time, beside the dense reference.

Known dictionary of 4,096 features, 20 active a token; d = 576, 16,384 latents, k = 32, batches of 2,048, float32. A step is
what a trainer does: forward, gradients, Adam, unit decoder rows, dead latents. Three methods, with no latent dead and with
AuxK at work (what did not fire in the last batch is dead), on one thread and on two:

    ours             as it runs here: with bfloat16 matmuls where the CPU has AMX
    ours, float32    the same without them
    dense reference  autograd, dense everything (dense.py)

All of them take turns in one process, the floor before each step. Peak memory is that of fresh processes, data included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from unittest import mock

import torch
from dense import Dense
from timing import in_fresh_process, load, make_floor, spread, timed
from torch import Tensor
from unweave.kernels.cpu import preselect
from unweave.saes import TrainConfig
from unweave.saes.rows import Pair
from unweave.saes.state import METRICS, TrainState, take_step
from unweave.saes.step import update
from worlds import make_world

OURS, OURS_FLOAT32, DENSE = METHODS = ("ours", "ours, float32", "dense reference")
# Most floors a step, without and with AuxK at work, and the peak of the leanest library (sparsify).
FLOORS, FLOORS_AMX, PEAK_MB = (1.8, 2.4), (1.15, 1.6), 1107
NEVER = 10**12  # tokens or steps of silence
LR = 2e-3  # of the dense reference


class Work(NamedTuple):
    """Sizes of the work."""

    d: int = 576
    n_true: int = 4096
    active: float = 20.0
    latents: int = 16_384
    k: int = 32
    batch: int = 2048


WORK = Work()


def run(work: Work = WORK, warm: int = 5, steps: int = 15) -> list[dict[str, Any]]:
    """One row for each number of threads, AuxK or not, and method."""
    peaks = {(name, auxk): in_fresh_process(few_steps, name, work, auxk) for name in METHODS for auxk in (False, True)}
    batches = make_batches(work)
    usual = torch.get_num_threads()
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for auxk in (False, True):
            methods = {name: make_step(name, batches[0], work, auxk) for name in METHODS}
            for row in measure(methods, batches, make_floor(work.batch, work.d, work.latents), warm, steps):
                peak = peaks[row["method"], auxk]
                rows.append(
                    {
                        "auxk": auxk,
                        "threads": threads,
                        **row,
                        "peak_mb": peak,
                        "amx": preselect.has_fast_bfloat16(),
                        "load": load(),
                    }
                )
    torch.set_num_threads(usual)
    return rows


def measure(
    methods: dict[str, Callable[[Tensor], float]], batches: list[Tensor], floor: Callable, warm: int, steps: int
) -> Iterable[dict[str, Any]]:
    """Let the methods take turns; their cost in floors, each in that right before it."""
    floors, ratios, dead = ({name: [] for name in methods} for _ in range(3))
    for number in range(warm + steps):
        for name, step in methods.items():
            unit, _ = timed(floor)
            seconds, share = timed(step, batches[number % len(batches)])
            floors[name].append(unit)
            ratios[name].append(seconds / unit)
            dead[name].append(share)
    for name in methods:
        cost = spread(ratios[name][warm:])
        yield {
            "method": name, "floors": cost.median, "p20": cost.p20, "p80": cost.p80,
            "floor_ms": 1e3 * spread(floors[name][warm:]).median, "dead_share": spread(dead[name][warm:]).median,
        }  # fmt: skip


def make_step(name: str, x: Tensor, work: Work, auxk: bool) -> Callable[[Tensor], float]:
    """One training step on a batch, as a function that returns the share of latents that are dead."""
    if name == DENSE:
        dense = Dense(x, work.latents, work.k, LR, seed=0, dead_after=0 if auxk else NEVER)
        return lambda batch: (dense.step(batch), float(dense.dead.float().mean()))[1]
    config = TrainConfig(
        latents=work.latents, k=work.k, batch=work.batch, tokens=400 * work.batch, dead_after=1 if auxk else NEVER
    )
    state = TrainState(config, make_weights(work))

    def step(batch: Tensor) -> float:
        return float(take_step(state, update, Pair(batch, batch))[METRICS.index("dead_share")])

    return without_bfloat16(step) if name == OURS_FLOAT32 else step


def without_bfloat16(function: Callable[[Tensor], float]) -> Callable[[Tensor], float]:
    """The function with the preselection in bfloat16 turned off."""
    return mock.patch.object(preselect, "pays", lambda *_: False)(function)


def make_weights(work: Work) -> dict[str, Tensor]:
    """Weights as an SAE begins with."""
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(work.latents, work.d, generator=generator), dim=1)
    return {"W_enc": W_dec.clone(), "b_enc": torch.zeros(work.latents), "W_dec": W_dec, "b_dec": torch.zeros(work.d)}


def make_batches(work: Work, number: int = 8) -> list[Tensor]:
    """Batches, centred and scaled to unit variance by the first."""
    world = make_world(0, work.d, work.n_true, work.active)
    batches = [world.sample(work.batch, seed) for seed in range(number)]
    mean = batches[0].mean(0)
    scale = (batches[0] - mean).square().mean().sqrt()
    return [(x - mean) / scale for x in batches]


def few_steps(name: str, work: Work, auxk: bool) -> None:
    """Four steps: AuxK has work from the second on."""
    batches = make_batches(work, 2)
    step = make_step(name, batches[0], work, auxk)
    for number in range(4):
        step(batches[number % 2])


def passed(rows: list[dict[str, Any]]) -> str | None:
    """None if every promise holds, else those that do not."""
    broken = []
    for row in rows:
        if row["method"] == DENSE:
            continue
        limit = (FLOORS_AMX if row["amx"] and row["method"] == OURS else FLOORS)[row["auxk"]]
        case = f"{row['method']}{' with AuxK' if row['auxk'] else ''}"
        if row["floors"] > limit:
            broken.append(f"{case}, {row['threads']} thread(s): {row['floors']:.2f} floors, more than {limit}")
        if row["peak_mb"] >= PEAK_MB:
            broken.append(f"{case}: {row['peak_mb']:.0f} MB, not below {PEAK_MB}")
    return "; ".join(dict.fromkeys(broken)) or None
