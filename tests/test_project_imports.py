"""Importing a package is cheap: the heavy libraries come in where they are used."""

import os
import resource
import subprocess
import sys

import pytest

HEAVY = [
    "transformer_lens",
    "transformers",
    "datasets",
    "accelerate",
    "pandas",
    "plotly",
    "starlette",
    "uvicorn",
    "gguf",
    "mcp",
]
PACKAGES = ["unweave.kernels", "unweave.saes", "unweave.circuits", "unweave.viz"]


def run(code: str, folder) -> float:
    """CPU seconds of a fresh interpreter that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    safe = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=safe, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("package", PACKAGES)
def test_import_leaves_heavy_libraries_alone(package, tmp_path):
    run(
        f"import sys, {package}\nfound = [name for name in {HEAVY} if name in sys.modules]\nassert not found, found",
        tmp_path,
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_import_costs_little_more_than_torch(package, tmp_path):
    """Least of three runs each, interleaved, with room for a busy machine; transformer_lens alone costs 2 to 4 seconds."""
    pairs = [(run("import torch", tmp_path), run(f"import {package}", tmp_path)) for _ in range(3)]
    torch_alone, ours = map(min, zip(*pairs, strict=True))
    assert ours <= 1.5 * torch_alone + 0.3, f"{package}: {ours:.2f} CPU seconds, torch alone {torch_alone:.2f}"
