"""Mean and variance of every dimension of cached rows, and how many rows are massive.

`statistics.safetensors` holds `SITE.mean` and `SITE.variance` [d] (float64; the variance divides by the number of rows), of
the rows as they are stored. They are accumulated in float64, chunk by chunk: with n, m, S the number, mean and sum of squares
about the mean, two parts join as

    n = a.n + b.n    m = a.m + (b.m - a.m) b.n / n    S = a.S + b.S + (b.m - a.m)^2 a.n b.n / n     (Chan et al. 1979, eq. 2.1)

A row is massive where its norm exceeds MASSIVE x the median norm of the rows past position 0; those at position 0, the
attention sink, are counted apart. It costs one reading of the folder, when the last shard is written.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .folder import Shards
from .storage import Folder

FILE = "statistics.safetensors"
MASSIVE = 10.0
CHUNK = 16_384  # rows
RULE = f"a row is massive where its norm exceeds {MASSIVE:g} x the median norm of the rows past position 0"


def write_statistics(folder: Folder, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the file; what the manifest says of it. Raises OSError when it cannot be written."""
    shards = Shards(folder, manifest)
    tensors: dict[str, Tensor] = {}
    for site in shards.sites:
        mean, variance = mean_and_variance(shards, site)
        tensors |= {f"{site}.mean": mean, f"{site}.variance": variance}
    folder.write_tensors(FILE, tensors)
    massive = {site: count_massive(shards, site) for site in shards.sites}
    return {"file": FILE, "rows": len(shards), "rule": RULE, "massive": massive}


def mean_and_variance(shards: Shards, site: str) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Of all rows of a site, in float64."""
    count, mean, around = 0, torch.zeros(shards.width(site), dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for start in range(0, len(shards), CHUNK):
        rows = shards.read([site], slice(start, start + CHUNK))[site].double()
        total = count + len(rows)
        shift = rows.mean(0) - mean
        around = around + (rows - rows.mean(0)).square().sum(0) + shift.square() * (count * len(rows) / total)
        mean = mean + shift * (len(rows) / total)
        count = total
    return mean, around / count


def count_massive(shards: Shards, site: str) -> dict[str, Any]:
    """`median_norm` past position 0, and `rows` past it and `first_rows` at it that are massive."""
    norms, later = shards.norms(site), shards.positions > 0
    median = float(norms[later].median() if later.any() else norms.median())
    is_massive = norms > MASSIVE * median
    return {
        "median_norm": median,
        "rows": int((is_massive & later).sum()),
        "first_rows": int((is_massive & ~later).sum()),
    }
