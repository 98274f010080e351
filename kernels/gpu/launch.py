"""One way to compile a kernel, and what the compiler says of it, for a GPU that need not be here.

    Configuration   kernel, types of its arguments, constants, warps, stages
    compile_for     Configuration x target -> Report: registers, bytes of local memory (spills are there), shared memory

The report is read from the binary: for NVIDIA by cuobjdump, which comes with Triton as ptxas does, for AMD from the metadata
in the assembly. The interpreter accepts kernels that the compiler does not, and says nothing of registers: hence this.
Works with Triton 3.6 to 3.9, which must not be interpreting (TRITON_INTERPRET unset).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

KIB = 1024
# Shared memory that one program may have, and the instruction by which tensor cores multiply.
TARGETS = {
    "sm_80": (163 * KIB, r"\bmma\.sync"),
    "sm_90": (227 * KIB, r"\bwgmma\.mma_async"),
    "sm_100": (227 * KIB, r"\btcgen05\.mma"),
    "gfx942": (64 * KIB, r"\bv_mfma"),
}


class Configuration(NamedTuple):
    """One way to compile and run a kernel.

    `signature` has Triton's type of each argument; `aligned` names those that are multiples of 16 (a pointer, the length of
    a row); `shape` is the name by which `table.run` finds the row; `registers` is the most that a thread may
    take: it is told to the compiler, and checked.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, int | bool]
    num_warps: int
    num_stages: int
    aligned: tuple[str, ...]
    shape: str
    registers: int

    def options(self, is_amd: bool) -> dict[str, Any]:
        """What the compiler is told beside the arguments."""
        # The default of fusing differs between versions of Triton.
        options = dict(num_warps=self.num_warps, num_stages=self.num_stages, enable_fp_fusion=True)
        # Unless it is told how many registers there are, ptxas spills a few to save some.
        return options if is_amd else options | dict(maxnreg=self.registers)


class Report(NamedTuple):
    """What the compiler says of one binary: registers of a thread, bytes of a thread's local and a program's shared memory."""

    name: str
    target: str
    registers: int
    local: int
    shared: int
    tensor_cores: bool

    def broken(self, limit: int, needs_tensor_cores: bool) -> list[str]:
        """The limits that do not hold, in words."""
        out = []
        if self.registers > limit:
            out.append(f"{self.registers} registers, more than {limit}")
        if self.local:
            out.append(f"{self.local} bytes of local memory (spilled registers)")
        if self.shared > TARGETS[self.target][0]:
            out.append(f"{self.shared} bytes of shared memory, more than {TARGETS[self.target][0]}")
        if needs_tensor_cores and not self.tensor_cores:
            out.append("a matmul without tensor cores")
        return out


def compile_for(configuration: Configuration, target: str) -> Report:
    """Compile ahead of time. Raises whatever the compiler does, and RuntimeError if Triton is set to interpret."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if knobs.runtime.interpret:
        raise RuntimeError("expected Triton's compiler; got its interpreter; unset TRITON_INTERPRET")
    names = list(configuration.signature)
    source = ASTSource(
        configuration.kernel,
        configuration.signature,
        configuration.constants,
        {(names.index(name),): [["tt.divisibility", 16]] for name in configuration.aligned},
    )
    is_amd = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if is_amd else GPUTarget("cuda", int(target[3:]), 32)
    binary = triton.compile(source, target=gpu, options=configuration.options(is_amd))
    text = binary.asm["amdgcn" if is_amd else "ptx"]
    registers, local = _amd_resources(text) if is_amd else _nvidia_resources(binary.asm["cubin"])
    uses_tensor_cores = re.search(TARGETS[target][1], text) is not None
    return Report(configuration.name, target, registers, local, binary.metadata.shared, uses_tensor_cores)


def _nvidia_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory: the stack, where spilled registers go, and what is declared local."""
    from triton import knobs

    # Opened a second time by name, which the systems that have Triton allow.
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.findall(rf"\b{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def _amd_resources(text: str) -> tuple[int, int]:
    """Vector registers and bytes of scratch of a thread."""
    registers, scratch = (
        int(re.findall(rf"\.{name}:\s+(\d+)", text)[-1]) for name in ("vgpr_count", "private_segment_fixed_size")
    )
    return registers, scratch
