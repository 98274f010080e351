"""Compare two groups of texts: which latents tell them apart, beyond what shuffled groups do.

Each text gives one number a latent, its mean activation over the text's tokens, so that long texts do not count for more. Then

    p    share of random regroupings whose |difference of means| is at least the observed one, counting the observed grouping itself
    q    smallest false-discovery rate at which the latent is a discovery (Benjamini and Hochberg 1995), over all latents that fire
    d    (mean a - mean b) / pooled standard deviation over texts

Few texts allow few regroupings: `least_p` says how small p can get at all. A latent that many regroupings have reached drops out of
the further ones, which is as valid (Besag and Clifford 1991).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...diffing.statistics import benjamini_hochberg
from ..answers import Answer
from ..fields import Name, Rows, Text, Which, check_length, check_unlike
from ..measures.describe import kept, rows_of
from ..measures.prompts import text_means
from ..measures.readings import usual
from ..registry import tool
from ..session import Session

ENOUGH, LEAST_DRAWS, MOST_DRAWS, BATCH = 20, 2_000, 100_000, 500
FIRES_IN = 3  # texts in which a latent must fire to be tested; the groups play no part in it
FDR = 0.05
Group = Annotated[list[Text], Field(min_length=4, max_length=64)]


def _price(session: Session, arguments: Mapping[str, Any]) -> int:
    return len(arguments["a"]) + len(arguments["b"])


@tool("compare", cost=8, price=_price, reads=usual)
def compare_texts(
    session: Session,
    a: Group,
    b: Group,
    dictionary: Name | None = None,
    model: Which = "target",
    k: Rows = 10,
    exclude_dense: bool = True,
) -> Answer:
    """The latents whose activation differs between two groups of texts, with permutation p, false-discovery q and effect size d.

    `found` counts latents with q at most 0.05; the rest of the list is what random groupings give too. Positive d: more in a.

    Args:
        a: At least 4 texts, each once, of each the first 128 tokens.
        b: At least 4 others, alike in all but what is asked about.
        dictionary: Name from list_models; left out, the first.
        model: Which model reads the texts.
        k: How many latents.
        exclude_dense: Leave out latents that fire almost everywhere.
    """
    name = session.workspace.dictionary(dictionary)
    session.workspace.model(model)
    check_length([*a, *b], "a and b")
    for texts, field in ((a, "a"), (b, "b")):
        check_unlike(texts, field)
    x, cut = text_means(session, name, [*a, *b], model)
    is_a = torch.arange(len(x)) < len(a)
    tested = ((x > 0).sum(0) >= FIRES_IN).nonzero()[:, 0]
    p = torch.full((x.shape[1],), torch.nan, dtype=torch.float64)
    p[tested], draws = regrouped(x[:, tested], is_a, session.seed)
    q = benjamini_hochberg(p)
    d = separation(x, is_a)
    numbers = {
        latent: {"d": float(d[latent]), "p": float(p[latent]), "q": float(q[latent]), "found": bool(q[latent] <= FDR),
                 "mean_a": float(x[is_a, latent].mean()), "mean_b": float(x[~is_a, latent].mean()),
                 "texts_a": int((x[is_a, latent] > 0).sum()), "texts_b": int((x[~is_a, latent] > 0).sum())}
        for latent in tested.tolist()
    }  # fmt: skip
    order = sorted(
        numbers, key=lambda latent: (numbers[latent]["q"], numbers[latent]["p"], -abs(numbers[latent]["d"]), latent)
    )
    listed = kept(session, name, order, k, exclude_dense)
    result = {
        "found": int((q <= FDR).sum()), "fdr": FDR, "tested": len(tested), "least_p": least_p(len(a), len(b), draws), "regroupings": draws,
        "texts_cut": cut, "dense_left_out": listed.dense, "model": model, "features": rows_of(session, name, listed, numbers),
    }  # fmt: skip
    return Answer(result, "features", session.about(name))


def regrouped(x: Float[Tensor, "text latent"], is_a: Tensor, seed: int) -> tuple[Float[Tensor, "latent"], int]:
    """Two-sided p of each column by random regroupings, and how many were drawn at most."""
    texts, latents = x.shape
    draws = min(MOST_DRAWS, max(LEAST_DRAWS, math.ceil(2 * latents / FDR)))
    p = torch.ones(latents, dtype=torch.float64)
    weight = torch.where(is_a, 1 / is_a.sum(), -1 / (~is_a).sum()).double()
    observed = (weight @ x).abs() * (1 - 1e-9)
    live, done = torch.arange(latents), 0
    reached = torch.zeros(latents, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    while done < draws and len(live):
        count = min(BATCH, draws - done)
        orders = torch.rand(count, texts, generator=generator).argsort(1)
        hits = (weight[orders] @ x[:, live]).abs() >= observed[live]
        running = reached[live] + hits.cumsum(0)
        is_over = running[-1] >= ENOUGH
        when = (running >= ENOUGH).int().argmax(0)[is_over]
        p[live[is_over]] = ENOUGH / (done + when + 1).double()
        reached[live], done = running[-1], done + count
        live = live[~is_over]
    p[live] = (1 + reached[live]).double() / (1 + done)
    return p, draws


def separation(x: Float[Tensor, "text latent"], is_a: Tensor) -> Float[Tensor, "latent"]:
    """Cohen's d over texts; where neither group varies, 0 if the means are equal and else a large number of its sign."""
    one, other = x[is_a], x[~is_a]
    change = one.mean(0) - other.mean(0)
    spread = ((one.var(0) + other.var(0)) / 2).sqrt()
    return torch.where(change == 0, 0.0, change / torch.maximum(spread, 1e-3 * change.abs()).clamp_min(1e-30))


def least_p(a: int, b: int, draws: int) -> float:
    """The smallest p that the groups' sizes and the number of regroupings allow."""
    groupings = math.comb(a + b, a) / (2 if a == b else 1)
    return max(1 / groupings, 1 / (1 + draws))
