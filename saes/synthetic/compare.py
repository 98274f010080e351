"""Train every method on activations whose features are known, and say how much each finds: the table of `unweave bench synthetic`.

    for each seed:     draw activations of the World once; every method passes over the same rows in the same order
      for each method: train (all else at its defaults), then judge on fresh tokens                       recovery.py, families.py
      and again, small, on the hidden activations of a toy model of superposition                         superposition.py

The world stays the same, so that the deviation over seeds is that of training: first weights and data. All methods have the same number
of latents and aim at the same L0, the true one. `cpu_s` is the processor time of training, which other programs on the machine
disturb less than the clock. Latents are half as many as features (SynthSAEBench: a quarter).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..train import train
from .methods import METHODS, method_config
from .recovery import recovery
from .superposition import Superposition
from .world import Known, World, WorldConfig

DRAWN = 8192  # rows at a time


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is trained: tokens in all, how many of them are drawn (passed over again), latents, aim of L0, tokens a step."""

    tokens: int = 524_288
    drawn: int = 262_144
    latents: int = 256
    k: int = 8
    batch: int = 1024
    judged: int = 32_768
    toy_tokens: int = 131_072
    toy_batch: int = 256
    toy_steps: int = 3000


QUICK = Size(tokens=131_072, drawn=131_072, judged=16_384, toy_tokens=65_536, toy_steps=1500)
TOY_LATENTS, TOY_K = 64, 2
COLUMNS = (
    "mcc",
    "f1",
    "precision",
    "recall",
    "absorption",
    "missed",
    "hedging",
    "split",
    "shrinkage",
    "fvu",
    "l0",
    "dead_share",
)


class Row(NamedTuple):
    """One method: means and standard deviations over the seeds, by name; seconds of processor time for one training."""

    method: str
    mean: dict[str, float]
    deviation: dict[str, float]


def compare(
    methods: Sequence[str] = (),
    seeds: int = 3,
    size: Size | None = None,
    world: WorldConfig | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """A row for each method (default all), with `tell` told of each training. UserError for names that are none and no seeds."""
    size, methods = size or Size(), tuple(methods) or METHODS
    if seeds < 1:
        raise UserError(f"expected at least one seed; got {seeds}")
    for method in methods:
        method_config(method, latents=size.latents, k=size.k, tokens=1, batch=1, seed=0)
    known, found = World(world or WorldConfig()), {method: [] for method in methods}
    toy = Superposition(steps=size.toy_steps)
    for seed in range(seeds):
        rows, toy_rows = drawn(known, size.drawn, seed), drawn(toy, min(size.toy_tokens, size.drawn), seed)
        for method in methods:
            numbers = trained(method, known, rows, size, seed)
            small = trained(method, toy, toy_rows, toy_size(size), seed)
            found[method].append({**numbers, "toy_mcc": small["mcc"], "toy_f1": small["f1"]})
            tell(f"{method}, seed {seed}: mcc {numbers['mcc']:.3f}, {numbers['cpu_s']:.0f} s")
    return [summary(method, numbers) for method, numbers in found.items()]


def toy_size(size: Size) -> Size:
    """The sizes for the toy model: as many latents as it has features."""
    return Size(tokens=size.toy_tokens, latents=TOY_LATENTS, k=TOY_K, batch=size.toy_batch, judged=size.judged)


def drawn(known: Known, rows: int, seed: int) -> Float[Tensor, "row d"]:
    """Activations to train on."""
    parts = [known.sample(min(DRAWN, rows - start), seed * 2**20 + start // DRAWN).x for start in range(0, rows, DRAWN)]
    return torch.cat(parts)


def trained(method: str, known: Known, rows: Float[Tensor, "row d"], size: Size, seed: int) -> dict[str, float]:
    """Train one method on the rows, over and over until it has had its tokens, and judge it."""
    config = method_config(method, latents=size.latents, k=size.k, tokens=size.tokens, batch=size.batch, seed=seed)
    clock = time.process_time()
    dictionary = train(config, passes(rows, size.batch), device="cpu", progress=False)
    spent = time.process_time() - clock
    return {**recovery(dictionary, known, size.judged), "cpu_s": spent}


def passes(rows: Float[Tensor, "row d"], batch: int) -> Iterator[Float[Tensor, "batch d"]]:
    """The rows again and again, a batch at a time."""
    return itertools.chain.from_iterable(itertools.repeat(rows.split(batch)))


def summary(method: str, numbers: list[dict[str, float]]) -> Row:
    """Mean and standard deviation (0 for one seed) of each number."""
    table = torch.tensor([list(one.values()) for one in numbers], dtype=torch.float64)
    spread = table.std(0) if len(table) > 1 else torch.zeros(table.shape[1])
    names = list(numbers[0])
    return Row(
        method,
        dict(zip(names, table.mean(0).tolist(), strict=True)),
        dict(zip(names, spread.tolist(), strict=True)),
    )


class Check(NamedTuple):
    """A ranking that the literature leads one to expect, and whether it was found; slack is twice the seed noise."""

    name: str
    source: str
    left: float
    right: float
    passed: bool


def checks(rows: list[Row]) -> list[Check]:
    """Those that the methods at hand allow."""
    by = {row.method: row for row in rows}
    wanted = [
        ("batch_topk finds at least as much as topk (mcc)", "2412.06410", "mcc", "batch_topk", "topk"),
        ("batch_topk explains at least as much as topk (1 - fvu)", "2412.06410", "fvu", "topk", "batch_topk"),
        *(
            (f"{rule} matryoshka absorbs less than {rule}", "2503.17547", "absorption", rule, f"{rule} matryoshka")
            for rule in ("topk", "batch_topk", "jumprelu")
        ),
        ("batch_topk finds more than relu l1 (mcc)", "2602.14687", "mcc", "batch_topk", "relu l1"),
    ]
    return [check(by, *one) for one in wanted if one[3] in by and one[4] in by]


def check(by: dict[str, Row], name: str, source: str, number: str, larger: str, smaller: str) -> Check:
    """Whether `number` of the one method is at least that of the other, up to twice the deviation over seeds."""
    left, right = by[larger], by[smaller]
    slack = 2 * (left.deviation[number] ** 2 + right.deviation[number] ** 2) ** 0.5
    return Check(name, source, left.mean[number], right.mean[number], left.mean[number] >= right.mean[number] - slack)


def to_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows as plain data."""
    return [row._asdict() for row in rows]


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, deviations over seeds behind ±."""
    names = [*COLUMNS, "toy_mcc", "toy_f1", "cpu_s"]
    lines = ["| method | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    return "\n".join(
        [*lines, *(f"| {row.method} | " + " | ".join(cell(row, name) for name in names) + " |" for row in rows)]
    )


def cell(row: Row, name: str) -> str:
    """A number with its deviation: three decimals of shares, two of L0, whole seconds."""
    digits = {"cpu_s": 0, "l0": 2, "split": 2}.get(name, 3)
    number, spread = row.mean[name], row.deviation[name]
    if number != number:
        return "–"
    shown = [f"{value:.{digits}f}" for value in (number, spread)]
    shown = [text.removeprefix("0") if text.startswith("0.") else text for text in shown]
    return shown[0] if digits == 0 else f"{shown[0]} ± {shown[1]}"
