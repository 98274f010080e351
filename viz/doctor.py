"""`unweave doctor`: what is installed, what it runs on, which kernels run and why, and what will not work.

versions   of Unweave and what it stands on; compared with the ranges in its own metadata
devices    the CPU and the GPUs that torch sees
kernels    for each device and op the path that `which` chooses, with its reason
problems   what will not work, each with a remedy; the exit code is then 1
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..kernels import which
from ..kernels.dispatch import has_triton
from ..saes.cli import Result, parse_and_run, split_json_flag

SHOWN = ("unweave", "torch", "triton", "transformer-lens", "transformers", "safetensors", "plotly")


def run(arguments: list[str]) -> int:
    """The command: prints a table or, with --json, one object; 1 if something will not work."""
    from .commands import doctor

    rest, as_json = split_json_flag(arguments)
    if rest:
        return parse_and_run(doctor, arguments, "unweave doctor")
    report = examine()
    print(json.dumps(report, ensure_ascii=False) if as_json else table(report))
    return 1 if report["problems"] else 0


def examine() -> Result:
    """Everything that the command tells, as `--json` prints it."""
    devices = {"cpu": cpu(), **gpus()}
    kernels, problems = paths(dict.fromkeys(name.split(":")[0] for name in devices))
    return {
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in SHOWN}},
        "devices": devices,
        "UNWEAVE_KERNELS": os.environ.get("UNWEAVE_KERNELS") or None,
        "kernels": kernels,
        "problems": [*misfits(has_cuda="cuda:0" in devices), *problems],
    }


def version_of(distribution: str) -> str | None:
    """Installed version, without importing it; None if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu() -> Result:
    """Model, cores, threads, memory, and whether bfloat16 is multiplied in tiles."""
    import torch

    from ..kernels.cpu.preselect import has_fast_bfloat16

    return {
        "name": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        "has_fast_bfloat16": has_fast_bfloat16(),
    }


def cpu_model(info: Path = Path("/proc/cpuinfo")) -> str:
    """As the system names it."""
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Of the machine; None where the system does not tell (Windows)."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def gpus() -> dict[str, Result]:
    """What torch can use beside the CPU."""
    import torch

    found: dict[str, Result] = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        has = torch.cuda.get_device_properties(index)
        memory = round(has.total_memory / 2**30, 1)
        found[f"cuda:{index}"] = {"name": has.name, "memory_gib": memory, "capability": f"{has.major}.{has.minor}"}
    if torch.backends.mps.is_available():
        found["mps"] = {"name": "Apple GPU"}
    return found


def paths(devices: Iterable[str]) -> tuple[list[Result], list[str]]:
    """The choice for every op on every kind of device, and what forbids one."""
    chosen, problems = [], []
    for device in devices:
        try:
            choices = which(device=device)
        except RuntimeError as error:
            problems.append(str(error))
            continue
        assert isinstance(choices, list)
        chosen += [{"device": device, **choice._asdict()} for choice in choices]
    return chosen, list(dict.fromkeys(problems))


def misfits(has_cuda: bool) -> Iterator[str]:
    """Requirements of this distribution that what is installed does not meet; Triton's count only where it would run."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires("unweave") or ():
        needed = Requirement(line)
        is_triton = needed.name == "triton" and 'extra == "triton"' in line and has_cuda
        if needed.marker and not needed.marker.evaluate({"extra": "triton" if is_triton else ""}):
            continue
        found = version_of(needed.name)
        if needed.specifier.contains(found, prereleases=True) if found else is_triton and has_triton():
            continue
        remedy = (
            "take a build of torch for CUDA that brings one of these"
            if is_triton
            else f"pip install '{needed.name}{needed.specifier}'"
        )
        yield f"expected {needed.name} {needed.specifier}; found {found or 'none'}; {remedy}"


def table(report: Result) -> str:
    """The report as a person reads it."""
    forced = report["UNWEAVE_KERNELS"]
    sections = {
        "versions": [f"{name:<18}{version or absence(name)}" for name, version in report["versions"].items()],
        "devices": [f"{name:<18}{in_words(facts)}" for name, facts in report["devices"].items()],
        f"kernels (UNWEAVE_KERNELS is {forced or 'not set'})": [
            f"{row['device']:<6}{row['op']:<20}{row['path']:<12}{row['reason']}" for row in report["kernels"]
        ],
        "problems": report["problems"] or ["none"],
    }
    if not any(name.startswith("cuda") for name in report["devices"]):
        sections["devices"].append(f"{'cuda':<18}{no_cuda()}")
    return "\n".join(line for title, rows in sections.items() for line in (title, *(f"  {row}" for row in rows)))


def absence(distribution: str) -> str:
    """Why something may be missing."""
    if distribution != "triton":
        return "not installed"
    if not sys.platform.startswith("linux"):
        return f"not installed: there is none for {sys.platform}"
    return "not installed: builds of torch for CUDA bring it, and the CPU needs none"


def no_cuda() -> str:
    """Why no CUDA device is listed."""
    import torch

    if not torch.backends.cuda.is_built():
        return f"none: torch {torch.__version__} is built without it"
    return "none: torch finds no device or no driver for it"


def in_words(facts: Result) -> str:
    """One device on one line."""
    parts = [facts["name"]]
    if "cores" in facts:
        parts += [f"{facts['cores']} cores", f"{facts['threads']} threads"]
    if facts.get("memory_gib"):
        parts.append(f"{facts['memory_gib']} GiB")
    if "capability" in facts:
        parts.append(f"capability {facts['capability']}")
    if "has_fast_bfloat16" in facts:
        parts.append(f"{'fast' if facts['has_fast_bfloat16'] else 'no fast'} bfloat16 (AMX)")
    return ", ".join(parts)
