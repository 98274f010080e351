"""What every latent does, ours beside SAEDashboard: the same model, SAE and tokens, the same numbers, and the time a latent.

SAEDashboard makes 256 of 4,096 latents, we all of them. What is promised: from cached activations at least 50 times less time a
latent than it needs less its forward passes, and the whole, forward passes included, for all 4,096 in less time than its for 256.
Each side is a process of its own on 2 threads. `UNWEAVE_RIVAL_DASHBOARD` names the Python interpreter of an environment with
sae-dashboard 0.8.0 (which needs pyarrow < 22 beside its NumPy, and no torchvision of another torch); without it only ours is run.

Compared are, of the 256: density, the largest value, the ten tokens that the decoder row promotes most.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dashboards_case import write_case
from safetensors.torch import load_file
from timing import load
from torch import Tensor

HERE = Path(__file__).parent
OURS, RIVAL = "ours", "SAEDashboard"
FASTER = 50.0


def run(latents: int = 4096, threads: int = 2) -> list[dict[str, Any]]:
    """One row for each side."""
    rival = os.environ.get("UNWEAVE_RIVAL_DASHBOARD")
    if rival is None:
        print("UNWEAVE_RIVAL_DASHBOARD names no interpreter with sae-dashboard: only ours is measured")
    sides = {OURS: (sys.executable, "dashboards_ours.py")} | ({RIVAL: (rival, "dashboards_rival.py")} if rival else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_case(folder / "case.safetensors", latents)
        numbers = {side: one_run(*how, folder, threads) for side, how in sides.items()}
    rows = [row(side, told, threads) for side, (told, _) in numbers.items()]
    if rival:
        rows[0] |= compared(*rows) | agreement(numbers[OURS][1], numbers[RIVAL][1])
    return rows


def one_run(python: str, script: str, folder: Path, threads: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The times and the numbers of one side."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore"}
    out = folder / Path(script).stem
    command = [python, str(HERE / script), str(folder / "case.safetensors"), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} failed with {python}:\n{done.stderr[-2000:]}")
    return json.loads(out.with_suffix(".json").read_text()), load_file(out.with_suffix(".safetensors"))


def row(side: str, told: dict[str, Any], threads: int) -> dict[str, Any]:
    """Seconds of the forward passes and of the rest, and of the rest for each latent."""
    forward = told.get("cache") or told["forward"]
    rest = {key: told["total"][key] - (0.0 if "cache" in told else forward[key]) for key in ("wall_s", "cpu_s")}
    return {
        "side": side,
        "latents": told["latents"],
        "threads": threads,
        "forward_s": forward["wall_s"],
        "forward_cpu_s": forward["cpu_s"],
        "collect_s": rest["wall_s"],
        "collect_cpu_s": rest["cpu_s"],
        "ms_a_latent": 1000 * rest["cpu_s"] / told["latents"],
        "bytes_a_latent": told["features_bytes"] / told["latents"] if "features_bytes" in told else "",
        **dict.fromkeys(("faster", "whole", "density_off", "largest_off", "top_agree"), ""),
        "load": load(),
    }


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """`faster`: CPU time a latent, theirs over ours; `whole`: CPU time of all of it, ours over theirs."""
    whole = [side["forward_cpu_s"] + side["collect_cpu_s"] for side in (ours, theirs)]
    return {"faster": theirs["ms_a_latent"] / ours["ms_a_latent"], "whole": whole[0] / whole[1]}


def agreement(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """The largest differences: of the densities (theirs has position 0 in the denominator and five decimals), of the largest
    value as a share of it (theirs is read off a histogram of five decimals); and the share of promoted tokens that are the same."""
    same = (ours["top"] == theirs["top"]).float().mean()
    off = (ours["largest"] - theirs["largest"]).abs() / theirs["largest"]
    density = (ours["density"] * 127 / 128 - theirs["density"]).abs()
    return {"density_off": float(density.max()), "largest_off": float(off.max()), "top_agree": float(same)}


def passed(rows: list[dict[str, Any]]) -> str | None:
    """None if every promise holds, or there is nothing to compare with."""
    ours = rows[0]
    if ours["faster"] == "":
        return None
    broken = [
        f"only {ours['faster']:.1f} times faster a latent" if ours["faster"] < FASTER else "",
        f"the whole takes {ours['whole']:.2f} of its time" if ours["whole"] >= 1 else "",
        "densities differ" if ours["density_off"] > 2e-5 else "",
        "largest values differ" if ours["largest_off"] > 1e-4 else "",
        "promoted tokens differ" if ours["top_agree"] < 0.999 else "",
    ]
    return "; ".join(filter(None, broken)) or None
