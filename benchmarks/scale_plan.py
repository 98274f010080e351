"""The tables of docs/scale.md: what a training on one GPU, on 8 and on 64 needs. `python benchmarks/scale_plan.py` prints them.

Bytes are counted (unweave.saes.parallel.plan, which tests hold against what is sent); times and costs are a model, of the numbers
below, which were not measured here: no GPU was.
"""

from __future__ import annotations

from typing import NamedTuple

from unweave.saes import TrainConfig
from unweave.saes.layout import Layout
from unweave.saes.parallel.plan import held, traffic

# An H100 with 80 GB: bfloat16 products and memory as measured by others on one (docs/kernels.md); links as its makers state them.
FLOPS, MEMORY = 800e12 * 0.6, 3.0e12 * 0.8  # reached of the peak, a second
NVLINK, NETWORK = 450e9 * 0.7, 50e9 * 0.7  # bytes a second and GPU, each way: within 8 GPUs, and beyond
GPU_HOUR, TERABYTE_MONTH = 2.5, 23.0  # dollars
ADAM_BYTES = 28  # read and written for each weight: weight, gradient and two moments (kernels.md)


class Case(NamedTuple):
    """A training: what it is called, its shape, and the grid of ranks."""

    name: str
    d: int
    latents: int
    k: int
    batch: int
    tokens: float
    data: int
    latent: int
    parameters: float  # of the language model, up to the layer

    @property
    def ranks(self) -> int:
        return self.data * self.latent


CASES = [
    Case("1 GPU, 64 k", 2304, 65_536, 64, 8_192, 1e9, 1, 1, 1.3e9),
    Case("8 GPUs, 1 M", 4096, 2**20, 64, 16_384, 1e10, 1, 8, 4e9),
    Case("8 GPUs, 128 k", 4096, 2**17, 64, 32_768, 1e10, 8, 1, 4e9),
    Case("64 GPUs, 16 M", 4096, 2**24, 128, 65_536, 1e12, 1, 64, 4e9),
    Case("64 GPUs, 8 M", 4096, 2**23, 128, 65_536, 1e12, 2, 32, 4e9),
]


def config_of(case: Case) -> tuple[TrainConfig, Layout]:
    """What would be trained."""
    config = TrainConfig(latents=case.latents, k=case.k, batch=case.batch, tokens=int(case.tokens), site="site")
    return config, Layout(config.dictionary, {"site": case.d}, {"site": case.d})


def held_table() -> list[str]:
    """Gigabytes that each rank holds, and of a checkpoint in all."""
    lines = [
        "| | weights | moments | gradients | batch | AuxK | in all, a GPU | checkpoint |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in CASES:
        config, layout = config_of(case)
        parts = held(config, layout, case.data, case.latent)
        of_all = 3 * 4 * case.latents * 2 * case.d
        cells = [*(f"{value / 1e9:.2f}" for value in parts.values()), f"**{sum(parts.values()) / 1e9:.1f}**"]
        lines.append(f"| {case.name} | {' | '.join(cells)} | {of_all / 1e9:,.0f} |")
    return lines


def traffic_table() -> list[str]:
    """Megabytes that each rank sends in a step."""
    lines = ["| | candidates | outputs | gradients | while latents are dead |", "|---|---:|---:|---:|---:|"]
    for case in CASES:
        sent = traffic(*config_of(case), case.data, case.latent)
        dead = sent["dead_candidates"] + sent["dead_outputs"]
        cells = [sent["candidates"], sent["outputs"], sent["gradients"], dead]
        lines.append(
            f"| {case.name} ({case.data} x {case.latent}) | {' | '.join(f'{one / 1e6:,.0f}' for one in cells)} |"
        )
    return lines


def seconds(case: Case) -> dict[str, float]:
    """Of a step: the encoder's product (with AuxK's), weights and moments going by, what is sent; one after another."""
    sent = traffic(*config_of(case), case.data, case.latent)
    tokens, latents = case.batch / case.data, case.latents / case.latent
    some = 1 / max(1, round(max(case.k, case.d / 2) / case.k))
    link = NVLINK if case.ranks <= 8 else NETWORK
    return {
        "encoder": 2 * tokens * latents * case.d * (1 + some) / FLOPS,
        "optimiser": ADAM_BYTES * 2 * latents * case.d / MEMORY,
        "sent": sum(sent[name] for name in ("candidates", "outputs", "gradients")) / link,
    }


def time_table() -> list[str]:
    """Modelled times and costs of the whole training."""
    lines = [
        "| | encoder, ms | optimiser, ms | sent, ms | tokens a second | days | GPU cost | the model's forward passes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in CASES:
        parts = seconds(case)
        step = sum(parts.values())
        days = case.tokens / case.batch * step / 86_400
        forward = 2 * case.parameters * case.tokens / FLOPS / 3600
        cells = [*(f"{1000 * value:,.1f}" for value in parts.values()), f"{case.batch / step:,.0f}", f"{days:,.1f}"]
        cells += [f"${days * 24 * case.ranks * GPU_HOUR:,.0f}", f"{forward:,.0f} GPU hours"]
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
    return lines


def storage_table() -> list[str]:
    """What activations of one site take on disk."""
    lines = ["| tokens, d = 4096 | bfloat16 | int8 | a month, int8 |", "|---|---:|---:|---:|"]
    for tokens in (1e9, 1e10, 1e12):
        half, quarter = tokens * (4096 * 2 + 16) / 1e12, tokens * (4096 + 20) / 1e12
        lines.append(f"| {tokens:.0e} | {half:,.1f} TB | {quarter:,.1f} TB | ${quarter * TERABYTE_MONTH:,.0f} |")
    return lines


TABLES = {"held": held_table, "traffic": traffic_table, "time": time_table, "storage": storage_table}

if __name__ == "__main__":
    for name, table in TABLES.items():
        print(f"\n{name}\n")
        print("\n".join(table()))
