"""`make bench ARGS="quality"`: the correctness gate first, then the benchmark, then its rows on the screen and in results/.

Rows carry the hardware, the versions and the commit; results/NAME.csv is appended to, so losing runs stay in it.
"""

from __future__ import annotations

import csv
import datetime
import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BENCHMARKS = {"quality": ["tests/test_kernels_topk.py", "tests/test_kernels_decode.py"]}
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
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print("  ".join(f"{value:>20.4f}" if isinstance(value, float) else f"{value!s:>20}" for value in row.values()))


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a CSV file, with where and when they were measured."""
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    about = {
        "date": datetime.date.today().isoformat(), "commit": commit, "cpu": cpu, "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "", "torch": torch.__version__,
    }  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, [*about, *rows[0]])
        if is_new:
            writer.writeheader()
        writer.writerows({**about, **row} for row in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
