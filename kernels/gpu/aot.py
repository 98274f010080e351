"""Compile every kernel ahead of time, for GPUs that need not be here, and hold each binary to its limits.

    python -m unweave.kernels.gpu.aot                       every configuration for sm_80, sm_90, sm_100 and gfx942
    python -m unweave.kernels.gpu.aot --target sm_90 merge  some: those whose name begins so

Prints a row for each binary and ends with status 1 if one breaks a limit: no local memory (so no spilled registers), the
shared memory of the target, the registers of the configuration, tensor cores in every matmul of 16-bit numbers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import triton

from . import batch, finish, gradient, groups, latents, merge, rows
from .launch import TARGETS, Configuration, compile_for


def binaries(row: Configuration) -> Iterator[Configuration]:
    """What Triton makes of a row: for inputs of 16 bits and of 32, and where `groups` is a multiple of 16 and where not."""
    yield row
    # The matmul's rows are each for one type.
    if "*bf16" in row.signature.values() and row.kernel is not groups.group_matmul:
        wide = {name: "*fp32" if kind == "*bf16" else kind for name, kind in row.signature.items()}
        yield from binaries(row._replace(name=f"{row.name}.fp32", signature=wide))
    if "groups" in row.signature and "groups" not in row.aligned:
        yield row._replace(name=f"{row.name}.x16", aligned=(*row.aligned, "groups"))


MODULES = (groups, merge, finish, batch, rows, gradient, latents)
CONFIGURATIONS = [binary for module in MODULES for row in module.CONFIGURATIONS for binary in binaries(row)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the kernels ahead of time and check their resources.")
    parser.add_argument("names", nargs="*", help="beginnings of names of configurations; none means all")
    parser.add_argument("--target", action="append", choices=TARGETS, help="may be repeated; none means all")
    args = parser.parse_args()
    chosen = [row for row in CONFIGURATIONS if row.name.startswith(tuple(args.names or ("",)))]
    if not chosen:
        parser.error(f"no configuration is called {' or '.join(args.names)}")
    # A list, so that the first failure does not end it.
    held = [check(row, target) for row in chosen for target in args.target or TARGETS]
    sys.exit(not all(held))


def check(configuration: Configuration, target: str) -> bool:
    """Compile, print a row, and say whether every limit holds."""
    start = time.perf_counter()
    report = compile_for(configuration, target)
    broken = report.broken(configuration.registers, is_matmul(configuration))
    print(
        f"triton {triton.__version__}  {target:7}{report.name:28}{report.registers:4} registers{report.local:6} B local"
        f"{report.shared:8} B shared{time.perf_counter() - start:6.1f} s  {'; '.join(broken) or 'ok'}",
        flush=True,
    )
    return not broken


def is_matmul(configuration: Configuration) -> bool:
    """Whether tensor cores have something to do: float32 is multiplied exactly, which they cannot."""
    return configuration.kernel is groups.group_matmul and configuration.signature["x_ptr"] != "*fp32"


if __name__ == "__main__":
    main()
