"""How the kernels are compiled and run: one row for each way, at most four a kernel.

`run` takes constants, warps and stages from the same rows that are compiled ahead of time and held to their limits, so
what is proven to compile without spills is what runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton

from .launch import Configuration

# Without this Triton makes another binary where one of these is 1 or a multiple of 16, or stops being so.
COUNTS = ("bags", "bins", "capacity", "examples", "few", "k", "latents", "length", "many", "place", "target", "tokens")
kernel = triton.jit(do_not_specialize=COUNTS)

POINTERS = {
    "*i64": (
        "begin_ptr", "bounds_ptr", "counts_ptr", "digits_ptr", "end_ptr", "entries_ptr", "first_ptr", "indices_ptr", "key_list_ptr",
        "latent_ptr", "list_ptr", "many_rows_ptr", "offset_ptr", "order_ptr", "places_ptr", "slots_ptr", "tokens_ptr",
    ),
    "*fp32": (
        "b_ptr", "bias_ptr", "d_ptr", "dec_ptr", "edges_ptr", "enc_ptr", "more_bias_ptr", "more_dec_ptr", "more_enc_ptr",
        "out_ptr", "partial_ptr", "t_ptr", "values_ptr", "weights_ptr",
    ),
}  # fmt: skip
TYPE_OF = {name: kind for kind, names in POINTERS.items() for name in names}
INPUTS = ("x_ptr", "w_ptr", "pre_ptr", "g_ptr")
# A matrix whose rows are aligned is the case to be fast in; Triton makes another binary for the others at run time.
ALIGNED = ("d", "d_in", "x_row", "w_row", "w_stack", "pre_row", "g_row", "width")


def row(
    shape: str,
    kernel: Any,
    *,
    x: str = "fp32",
    num_warps: int = 4,
    num_stages: int = 1,
    registers: int = 128,
    **constants,
) -> Configuration:
    """One way to compile a kernel; its signature follows from the names of its arguments."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants or name == "UPCAST":
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = f"*{x}" if name in INPUTS else TYPE_OF.get(name, "*i32")
        else:
            signature[name] = "i64" if name in ("w_stack", "target") else "i32"
    aligned = tuple(name for name in signature if name.endswith("_ptr") or name in ALIGNED)
    if "UPCAST" in signature:
        constants["UPCAST"] = False
    return Configuration(
        name=f"{kernel.__name__}.{shape}", kernel=kernel, signature=signature, constants=constants, num_warps=num_warps,
        num_stages=num_stages, aligned=aligned, shape=shape, registers=registers,
    )  # fmt: skip


def run(table: Sequence[Configuration], shape: str, grid: tuple[int, ...], *args) -> None:
    """Launch the row named `shape` on the device of the tensors; nothing if the grid is empty."""
    if 0 in grid:
        return
    (chosen,) = (row for row in table if row.shape == shape)
    constants = dict(chosen.constants)
    if "UPCAST" in constants:
        # The interpreter multiplies the bits of bfloat16.
        constants["UPCAST"] = os.environ.get("TRITON_INTERPRET") == "1"
    device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        chosen.kernel[grid](*args, **constants, **chosen.options(is_amd=torch.version.hip is not None))
