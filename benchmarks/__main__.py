"""`make bench ARGS="quality"`: the correctness gate first, then the benchmark, then its rows on the screen and in results/.

Rows carry the hardware, the versions and the commit; results/NAME.csv is appended to, so losing runs stay in it.
"""

from __future__ import annotations

import csv
import datetime
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OPS = [f"tests/test_kernels_{name}.py" for name in ("topk", "decode", "segment", "ops", "cpu", "preselect")]
STEP = ["tests/test_saes_losses.py", "tests/test_saes_step.py", "tests/test_benchmarks.py"]
TRACE = [f"tests/{name}.py" for name in ("test_circuits_adjoint", "test_circuits_ledger", "test_benchmarks_trace")]
# Of each benchmark the tests that have to pass before it is run.
BENCHMARKS = {
    "browse": ["tests/test_viz_server.py"],
    "caching": ["tests/test_saes_cache.py", "tests/test_saes_cache_crash.py", "tests/test_saes_capture.py"],
    "dashboards": ["tests/test_saes_stats.py", "tests/test_saes_collect.py"],
    "model": ["tests/test_benchmarks.py"],
    "ops": [*OPS, "tests/test_kernels_gpu_encode.py", "tests/test_kernels_gpu_decode.py"],
    "quality": [*OPS, *STEP],
    "reading": [f"tests/test_saes_{name}.py" for name in ("shards", "shards_stored", "reading", "storage")],
    "scaling": [*OPS, *STEP],
    "step": [*OPS, *STEP],
    "trace": TRACE,
    "trace_growth": TRACE,
}
# A thread that waits sleeps instead of spinning, before torch reads this: on shared cores spinning is most of the CPU time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(HERE))  # PYTHONSAFEPATH keeps this folder off the path


def main(names: list[str]) -> int:
    """Run the named benchmarks (default: all); 1 when a gate or a promise fails."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"error: expected benchmarks of {', '.join(BENCHMARKS)}; got {', '.join(unknown)}", file=sys.stderr)
        return 2
    failed = False
    for name in names or BENCHMARKS:
        if subprocess.run(
            [str(Path(sys.executable).parent / "pytest"), "-q", *BENCHMARKS[name]], cwd=HERE.parent
        ).returncode:
            print(f"{name}: its tests fail, so it is not measured", file=sys.stderr)
            return 1
        module = importlib.import_module(name)
        rows = module.run()
        show(rows)
        append(HERE / "results" / f"{name}.csv", rows)
        complaint = module.passed(rows)
        print(f"{name}: {complaint or 'holds'}")
        failed |= complaint is not None
    return int(failed)


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    lines = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def cell(value: Any) -> str:
    """A value as it is printed."""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a CSV file, with where and when they were measured."""
    import torch
    from unweave.viz.doctor import cpu_model

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    about = {
        "date": datetime.date.today().isoformat(), "commit": commit, "cpu": cpu_model(), "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "", "torch": torch.__version__,
    }  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    is_new = not path.exists()
    columns = [*about, *rows[0]]
    if not is_new and (there := path.read_text().partition("\n")[0].strip().split(",")) != columns:
        raise ValueError(f"expected the columns of {path.name}, {there}; got {columns}; give the old file another name")
    with path.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        if is_new:
            writer.writeheader()
        writer.writerows({**about, **row} for row in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
