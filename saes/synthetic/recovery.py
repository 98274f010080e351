"""How much of a known dictionary a trained one found.

Latents are matched one to one with true features so that the summed cosine of decoder rows and directions is largest
(assignment.py), with its sign: values are never negative, so a latent that points the other way is no match. Of the matched pairs

    mcc          mean cosine, below zero counted as zero (elsewhere |cosine|)          O'Neill et al. 2024, arXiv 2411.13117
    precision    of the tokens on which the latent fires, the share on which its feature is active; a dead latent has 0
    recall       of the tokens on which the feature is active, the share on which its latent fires
    f1           their harmonic mean; all three are means over the pairs that can occur in the sample
    shrinkage    where both are active: mean of what the latent writes along its feature over the mean of the true value (1: none)

    uniqueness   how many different true features are the nearest of some live latent, over the number of live latents
    fvu, l0, dead_share      as evaluate has them, on the same fresh sample

With fewer latents than features, pairs are as many as latents, and the best features are found; compare methods at one width only.
Families of parents and children are judged in families.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..dictionary import Dictionary
from .assignment import assign
from .families import FamilyCounts, family_numbers, split
from .world import Known, Sample

ROWS = 4096  # drawn and encoded at a time


class Matched(NamedTuple):
    """Pairs of a true feature and a latent, and the cosine of their directions."""

    feature: Int[Tensor, "pair"]
    latent: Int[Tensor, "pair"]
    cosine: Float[Tensor, "pair"]


def match(features: Float[Tensor, "feature d"], W_dec: Float[Tensor, "latent d"]) -> Matched:
    """The one-to-one matching with the largest summed cosine."""
    cosine = cosines(features, W_dec).clamp_min(0)
    latent = assign(cosine)
    feature = (latent >= 0).nonzero().squeeze(1)
    return Matched(feature, latent[feature], cosine[feature, latent[feature]])


def cosines(a: Float[Tensor, "row d"], b: Float[Tensor, "col d"]) -> Float[Tensor, "row col"]:
    """Cosine of every pair of rows, in float32; 0 for a row of zeros."""
    a, b = (torch.nn.functional.normalize(rows.detach().cpu().float(), dim=1) for rows in (a, b))
    return a @ b.T


class Counts:
    """Sums over the sample that everything is made of."""

    def __init__(self, pairs: int, latents: int):
        self.both, self.fired, self.active = (torch.zeros(pairs, dtype=torch.float64) for _ in range(3))
        self.written, self.true = torch.zeros(pairs, dtype=torch.float64), torch.zeros(pairs, dtype=torch.float64)
        self.firings = torch.zeros(latents, dtype=torch.float64)
        self.error, self.rows = 0.0, 0

    def add(self, found: Float[Tensor, "row pair"], true: Float[Tensor, "row pair"]) -> None:
        """What matched latents write along their features, and the true values."""
        fires, active = found != 0, true > 0
        both = fires & active
        for total, new in (
            (self.both, both),
            (self.fired, fires),
            (self.active, active),
            (self.written, found * both),
            (self.true, true * both),
        ):
            total += new.double().sum(0)


@torch.no_grad()
def recovery(dictionary: Dictionary, known: Known, rows: int = 32_768, seed: int = 1) -> dict[str, float]:
    """The numbers of the module header and of families.py by name, on `rows` fresh tokens drawn with `seed`."""
    W_dec, latents = dictionary.W_dec.detach().cpu(), dictionary.config.latents
    matched = match(known.features, W_dec)
    counts, families = Counts(len(matched.feature), latents), FamilyCounts(known.parents, matched.feature)
    along = (W_dec[matched.latent] * unit(known.features)[matched.feature]).sum(1)
    spread, mean = torch.zeros(W_dec.shape[1], dtype=torch.float64), torch.zeros(W_dec.shape[1], dtype=torch.float64)
    for sample in draws(known, rows, seed):
        codes = dictionary.encode(sample.x).cpu()
        y_hat = dictionary.decode(codes, sample.x).cpu()
        dense = codes.dense(latents)
        counts.firings += (dense > 0).double().sum(0)
        counts.add(dense[:, matched.latent] * along, sample.values[:, matched.feature])
        families.add(dense[:, matched.latent] > 0, sample.values > 0)
        x = sample.x.double()
        counts.error += float((x - y_hat).square().sum())
        mean, spread, counts.rows = mean + x.sum(0), spread + x.square().sum(0), counts.rows + len(x)
    variance = float((spread - mean.square() / counts.rows).sum())
    return {
        **pair_numbers(matched, counts),
        **family_numbers(families, matched.cosine, cosines(W_dec[matched.latent], known.features), known.features),
        **live_numbers(cosines(W_dec[counts.firings > 0], known.features)),
        "fvu": counts.error / variance,
        "l0": float(counts.firings.sum()) / counts.rows,
        "dead_share": float((counts.firings == 0).double().mean()),
    }


def draws(known: Known, rows: int, seed: int) -> Iterator[Sample]:
    """`rows` fresh tokens, some at a time; their seeds begin at 2^31 (only 32 bits count), far from those of training."""
    for number, start in enumerate(range(0, rows, ROWS)):
        yield known.sample(min(ROWS, rows - start), 2**31 + seed * 1_000_003 + number)


def unit(rows: Float[Tensor, "feature d"]) -> Float[Tensor, "feature d"]:
    """Rows of length 1."""
    return torch.nn.functional.normalize(rows, dim=1)


def pair_numbers(matched: Matched, counts: Counts) -> dict[str, float]:
    """Means over the matched pairs."""
    occurs: Bool[Tensor, "pair"] = counts.active > 0
    precision = counts.both / counts.fired.clamp_min(1)
    recall = counts.both / counts.active.clamp_min(1)
    f1 = 2 * counts.both / (counts.fired + counts.active).clamp_min(1)
    both = counts.both > 0
    return {
        "mcc": float(matched.cosine.mean()),
        "f1": float(f1[occurs].mean()),
        "precision": float(precision[occurs].mean()),
        "recall": float(recall[occurs].mean()),
        "shrinkage": float((counts.written[both] / counts.true[both]).mean()) if both.any() else float("nan"),
    }


def live_numbers(live: Float[Tensor, "live feature"]) -> dict[str, float]:
    """From the cosines of live latents with all features: whether several share one."""
    nearest = live.argmax(1).unique() if len(live) else live[:0]
    return {"uniqueness": len(nearest) / max(len(live), 1), "split": split(live)}
