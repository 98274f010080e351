"""Do trainings from different seeds find the same directions? The noise that every difference between dictionaries stands in.

    similarity = mean over latents i of A of max_j cos(A_i, B_j)        decoder rows, over every ordered pair of dictionaries
    control    = the same with B turned by a random rotation, which keeps the angles within B
    matched    = mean cosine of the best one-to-one matching of A and B              (assignment.py; at most MATCHED latents)

Several written sites stand side by side. Paulo and Belrose 2025 (arXiv 2501.16615) find that much of a large dictionary differs from seed
to seed; a similarity near its control says that the seeds share nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..dictionary import Dictionary
from ..errors import UserError
from ..synthetic.assignment import assign

MATCHED = 4096
PRODUCTS = 2**26  # cosines in memory at once


@torch.no_grad()
def seed_similarity(dictionaries: Sequence[Dictionary], seed: int = 0) -> dict[str, Any]:
    """The numbers of the module header, means over pairs with `similarity_deviation` over them; UserError unless widths agree."""
    if len(dictionaries) < 2 or len({own.d_out for own in dictionaries}) > 1:
        widths = ", ".join(str(own.d_out) for own in dictionaries)
        raise UserError(f"expected two or more dictionaries that write one width; got widths {widths or 'of none'}")
    rows = [torch.nn.functional.normalize(own.W_dec.detach().cpu().float(), dim=1) for own in dictionaries]
    generator = torch.Generator().manual_seed(seed)
    turned = [one @ rotation(one.shape[1], generator) for one in rows]
    pairs = list(itertools.permutations(range(len(rows)), 2))
    similarity = torch.tensor([best_cosine(rows[a], rows[b]) for a, b in pairs], dtype=torch.float64)
    control = torch.tensor([best_cosine(rows[a], turned[b]) for a, b in pairs], dtype=torch.float64)
    found: dict[str, Any] = {
        "similarity": float(similarity.mean()),
        "similarity_deviation": float(similarity.std()) if len(similarity) > 2 else None,
        "control": float(control.mean()),
    }
    if max(map(len, rows)) <= MATCHED:
        found["matched"] = sum(matched_cosine(rows[a], rows[b]) for a, b in pairs if a < b) / (len(pairs) // 2)
    return found


def best_cosine(a: Float[Tensor, "latent_a d"], b: Float[Tensor, "latent_b d"]) -> float:
    """Mean over the rows of `a` of the largest cosine with a row of `b`."""
    parts = a.split(max(PRODUCTS // len(b), 1))
    return float(torch.cat([(part @ b.T).amax(1) for part in parts]).mean())


def matched_cosine(a: Float[Tensor, "latent_a d"], b: Float[Tensor, "latent_b d"]) -> float:
    """Mean cosine over the best one-to-one matching."""
    cosine = a @ b.T
    partner = assign(cosine)
    return float(cosine[partner >= 0].gather(1, partner[partner >= 0, None]).mean())


def rotation(d: int, generator: torch.Generator) -> Float[Tensor, "d d"]:
    """A random orthogonal matrix, uniform but for signs."""
    return torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
