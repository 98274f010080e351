"""Which code runs an op, and why.

    reference   the definitions in plain torch (reference.py): any device, any float type
    cpu         torch operations that leave the `[token latent]` matrix out of memory (cpu/): on the CPU
    triton      fused kernels (gpu/): on CUDA, and on the CPU in Triton's interpreter (TRITON_INTERPRET=1, for tests)

`UNWEAVE_KERNELS` forces one of the three for every op. Without it the CPU takes `cpu`, CUDA takes `triton` where 3.6 or
newer is installed and the shape suits it, and everything else takes `reference`. Nothing is imported or decided at import time.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

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
PUBLIC = {"encode_jumprelu": "encode_threshold", "encode_relu": "encode_threshold", "select_topk": "encode_topk"}
OLDEST_TRITON = (3, 6)
MOST_REPAIRS = 0.5  # groups of latents per token that the fused top-k would have to compute a second time


class PathError(RuntimeError):
    """`UNWEAVE_KERNELS` asks for a path that does not exist or cannot run here."""


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
    `encode_threshold`, and `select_topk` is `encode_topk`. `latents` and `k` matter to encoders: with many of many neither
    the fused encoder on CUDA nor the CPU's pre-selection pays.
    For example `print(which("encode_topk", latents=16384, k=32))`. Raises ValueError for an unknown op, and PathError
    (a RuntimeError) if `UNWEAVE_KERNELS` asks for a path that cannot run here.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if op is not None and PUBLIC.get(op, op) not in OPS:
        raise ValueError(f"expected one of {', '.join((*OPS, *PUBLIC))}; got {op!r}")
    names = OPS if op is None else [op]
    choices = [choose(PUBLIC.get(name, name), device.type, dtype, latents or 0, k or 0) for name in names]
    explained = [
        choice._replace(op=name, reason=choice.reason + _selection(choice, dtype, latents, k))
        for name, choice in zip(names, choices, strict=True)
    ]
    return explained if op is None else explained[0]


def path_of(op: str, like: Tensor, latents: int = 0, k: int = 0) -> Callable[..., Any]:
    """The function that runs an op for tensors of this kind; autocast, which would round what it computes, is off in it."""
    device = like.device.type
    choice = choose(op, device, like.dtype, latents, k)
    run = getattr(import_module({"triton": ".gpu"}.get(choice.path, f".{choice.path}"), __package__), op)
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)(run)
    return run


def choose(op: str, device: str, dtype: torch.dtype, latents: int, k: int) -> Choice:
    """The decision itself."""
    asked = os.environ.get("UNWEAVE_KERNELS", "")
    if asked:
        return Choice(op, _forced(asked, device), f"UNWEAVE_KERNELS={asked}")
    if device == "cpu":
        return Choice(op, "cpu", "a CPU tensor")
    if device != "cuda":
        return Choice(op, "reference", f"a tensor on {device}, for which there are no kernels")
    if lack := lacks_triton():
        return Choice(op, "reference", f"a CUDA tensor, but {lack}")
    if dtype == torch.float64:
        return Choice(op, "reference", "float64, which the Triton kernels do not compute in")
    if op.startswith("encode") and latents and k and (expected := expected_repairs(latents, k)) > MOST_REPAIRS:
        return Choice(op, "reference", f"{k} of {latents}: {expected:.1f} groups a token would be computed twice")
    return Choice(op, "triton", "a CUDA tensor")


def _forced(asked: str, device: str) -> str:
    if asked not in PATHS:
        raise PathError(f"expected UNWEAVE_KERNELS to be one of {', '.join(PATHS)}; got {asked!r}; correct or unset it")
    if asked == "triton" and (lack := lacks_triton()):
        raise PathError(
            f"expected triton for UNWEAVE_KERNELS=triton; {lack}; pip install 'unweave[triton]', or unset it"
        )
    if asked == "triton" and device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise PathError(
            f"expected CUDA tensors for UNWEAVE_KERNELS=triton; got {device}; set TRITON_INTERPRET=1 to interpret "
            "the kernels (slow), or unset UNWEAVE_KERNELS"
        )
    if asked == "cpu" and device != "cpu":
        raise PathError(f"expected CPU tensors for UNWEAVE_KERNELS=cpu; got {device}; unset UNWEAVE_KERNELS")
    return asked


def _selection(choice: Choice, dtype: torch.dtype, latents: int | None, k: int | None) -> str:
    """How the CPU path finds the top k, in words; nothing for other ops and paths."""
    from .cpu import preselect

    if choice.path != "cpu" or choice.op not in ("encode_topk", "encode_batch_topk") or dtype == torch.float64:
        return ""
    if not preselect.has_fast_bfloat16():
        return "; in float32 throughout: no tile instructions (AMX)"
    kept = (k or 0) * (4 if choice.op == "encode_batch_topk" else 1)
    if latents and kept and not preselect.suits(latents, kept):
        return f"; in float32 throughout, as {k} of {latents} are too many to pre-select"
    return f"; latents pre-selected in bfloat16 (AMX) from {preselect.FEWEST_TOKENS} tokens on"


def has_triton() -> bool:
    """Whether there is a Triton that the kernels can be compiled with."""
    return not lacks_triton()


@cache
def lacks_triton() -> str:
    """What is wrong with Triton, or nothing; it is not imported to find out."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        found = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # a build under another name, such as ROCm's
        return ""
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    oldest = ".".join(map(str, OLDEST_TRITON))
    return "" if numbers >= OLDEST_TRITON else f"triton {found} is older than {oldest}"


@cache
def expected_repairs(latents: int, k: int) -> float:
    """Groups of 32 latents with three or more of a random top k: (m / 32) P(Poisson(32 k / m) >= 3)."""
    rate = torch.tensor(32 * k / latents, dtype=torch.float64)
    few = (1 + rate + rate**2 / 2) * torch.exp(-rate)
    return float(latents / 32 * (1 - few))
