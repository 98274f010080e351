"""Which code runs an op, and why.

    reference   the definitions in plain torch (reference.py): any device, any float type
    cpu         torch operations that leave the `[token latent]` matrix out of memory (cpu.py): on the CPU
    triton      fused kernels (gpu/): on CUDA, and on the CPU in Triton's interpreter (TRITON_INTERPRET=1, for tests)

`UNWEAVE_KERNELS` forces one of the three for every op. Without it the CPU takes `cpu`, CUDA takes `triton` where it is
installed and the shape suits it, and everything else takes `reference`. Nothing is imported or decided at import time.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

PATHS = ("reference", "cpu", "triton")
OPS = (
    "topk",
    "encode_topk",
    "encode_batch_topk",
    "encode_threshold",
    "decode",
    "contract",
    "weight_gradient",
    "sae_gradient",
    "segment",
)
MOST_REPAIRS = 0.5  # groups of latents per token that the fused top-k would have to compute a second time


class Choice(NamedTuple):
    """The path that runs an op, and the reason."""

    op: str
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op}: {self.path} ({self.reason})"


def which(
    op: str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    latents: int | None = None,
    k: int | None = None,
) -> Choice | list[Choice]:
    """The path an op would take for tensors of this device and type, and why; without `op`, a list of all.

    `device` None means CUDA where there is one. The public `encode_jumprelu` and `encode_relu` are the op
    `encode_threshold`. `latents` and `k` matter on CUDA only: with many of many the fused encoder does not pay.
    For example `print(which("encode_topk", latents=16384, k=32))`. Raises ValueError for an unknown op, and RuntimeError
    if `UNWEAVE_KERNELS` asks for a path that cannot run here.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if op is None:
        return [choose(name, device.type, dtype, latents or 0, k or 0) for name in OPS]
    name = {"encode_jumprelu": "encode_threshold", "encode_relu": "encode_threshold"}.get(op, op)
    if name not in OPS:
        raise ValueError(f"expected one of {', '.join(OPS)}; got {op!r}")
    return choose(name, device.type, dtype, latents or 0, k or 0)._replace(op=op)


def path_of(op: str, like: Tensor, latents: int = 0, k: int = 0) -> ModuleType:
    """The module whose function named `op` is to run."""
    choice = choose(op, like.device.type, like.dtype, latents, k)
    return import_module({"triton": ".gpu"}.get(choice.path, f".{choice.path}"), __package__)


def choose(op: str, device: str, dtype: torch.dtype, latents: int, k: int) -> Choice:
    """The decision itself."""
    asked = os.environ.get("UNWEAVE_KERNELS", "")
    if asked:
        return Choice(op, _forced(asked, device), f"UNWEAVE_KERNELS={asked}")
    if device == "cpu":
        return Choice(op, "cpu", "a CPU tensor")
    if device != "cuda":
        return Choice(op, "reference", f"a {device} tensor")
    if not has_triton():
        return Choice(op, "reference", "a CUDA tensor, but triton is not installed")
    if dtype == torch.float64:
        return Choice(op, "reference", "float64, which the Triton kernels do not compute in")
    if op.startswith("encode") and latents and k and (expected := expected_repairs(latents, k)) > MOST_REPAIRS:
        return Choice(op, "reference", f"{k} of {latents}: {expected:.1f} groups a token would be computed twice")
    return Choice(op, "triton", "a CUDA tensor")


def _forced(asked: str, device: str) -> str:
    if asked not in PATHS:
        raise RuntimeError(
            f"expected UNWEAVE_KERNELS to be one of {', '.join(PATHS)}; got {asked!r}; correct or unset it"
        )
    if asked == "triton" and not has_triton():
        raise RuntimeError(
            "expected triton for UNWEAVE_KERNELS=triton; it is not installed; pip install 'unweave[triton]'"
        )
    if asked == "triton" and device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"expected CUDA tensors for UNWEAVE_KERNELS=triton; got {device}; set TRITON_INTERPRET=1 to interpret "
            "the kernels (slow), or unset UNWEAVE_KERNELS"
        )
    return asked


@cache
def has_triton() -> bool:
    """Whether Triton can be imported; it is not imported to find out."""
    return importlib.util.find_spec("triton") is not None


@cache
def expected_repairs(latents: int, k: int) -> float:
    """Groups of 32 latents with three or more of a random top k: (m / 32) P(Poisson(32 k / m) >= 3)."""
    rate = torch.tensor(32 * k / latents, dtype=torch.float64)
    few = (1 + rate + rate**2 / 2) * torch.exp(-rate)
    return float(latents / 32 * (1 - few))
