"""Negatives: windows in which a latent is silent, random ones and hard ones, and all that one latent is labelled with.

    random       any row of the half
    neighbour    rows where a neighbour fires: one of the nearest decoder rows, or of the most correlated latents
    same_token   rows with one of the tokens that the latent fires on most in the explaining half: what a label of the token alone
                 cannot tell apart

Hard negatives are neighbour and same_token in equal parts, as far as there are any; numbers for them stand apart from those for
random ones, which flatter a label.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ...saes import company
from .snippets import Draws, Snippet, StoreRows, generator_of, one_per_block, positives

NEIGHBOURS, TOKENS = 8, 3
HARD = ("neighbour", "same_token")


class Material(NamedTuple):
    """All snippets of one latent. `lacking` says what there is too little of for a label with a score, None if nothing."""

    latent: int
    explain: list[Snippet]
    contrast: list[Snippet]  # negatives of the explaining half, of all kinds
    positive: list[Snippet]
    random: list[Snippet]
    hard: list[Snippet]
    lacking: str | None


def material(rows: StoreRows, latent: int, draws: Draws) -> Material:
    """Draw the snippets of `latent`; IndexError for one that is not there."""
    explain = positives(
        rows, latent, False, draws.explain, generator_of(draws.seed, latent, 0), strongest=draws.explain // 2
    )
    positive = positives(rows, latent, True, draws.score, generator_of(draws.seed, latent, 1))
    negatives = []
    for purpose, scored, number in ((2, False, draws.explain), (3, True, draws.negatives)):
        generator = generator_of(draws.seed, latent, purpose)
        random = random_negatives(rows, latent, scored, number, generator)
        negatives += [random, hard_negatives(rows, latent, scored, number, generator)]
    contrast, scoring = negatives[0] + negatives[1], negatives[2:]
    counts = {
        "places to explain": len(explain),
        "places to score": len(positive),
        "silent windows to explain": len(contrast),
        "silent windows to score": len(scoring[0]),
    }
    short = [f"{count} {name}" for name, count in counts.items() if count < draws.least]
    lacking = f"too few: {', '.join(short)}; at least {draws.least} are needed" if short else None
    return Material(latent, explain, contrast, positive, scoring[0], scoring[1], lacking)


def random_negatives(
    rows: StoreRows, latent: int, scored: bool, number: int, generator: torch.Generator
) -> list[Snippet]:
    """At most `number` windows of a half, one a block, in which `latent` is silent."""
    candidates = ((rows.positions > 0) & (rows.is_scored == scored)).nonzero().squeeze(1)
    return _drawn(rows, latent, candidates, "random", number, generator)


def hard_negatives(
    rows: StoreRows, latent: int, scored: bool, number: int, generator: torch.Generator
) -> list[Snippet]:
    """At most `number` windows of a half in which `latent` is silent though they look as if it should fire."""
    is_half = (rows.positions > 0) & (rows.is_scored == scored)
    near = torch.zeros_like(is_half)
    for other in neighbours(rows, latent):
        near[rows.book.firings(other).rows] = True
    same = torch.isin(rows.tokens, top_tokens(rows, latent))
    found = [
        _drawn(rows, latent, (is_half & one).nonzero().squeeze(1), kind, number, generator)
        for one, kind in ((near, HARD[0]), (same, HARD[1]))
    ]
    half = max(number // 2, number - len(found[1]))
    return found[0][:half] + found[1][: number - min(half, len(found[0]))]


def neighbours(rows: StoreRows, latent: int, number: int = NEIGHBOURS) -> list[int]:
    """The latents with the nearest decoder rows and the most correlated ones."""
    near = [other for other, _ in rows.store.neighbours(latent, number)]
    return list(dict.fromkeys([*near, *(each.latent for each in company(rows.store, latent, number))]))


def top_tokens(rows: StoreRows, latent: int, number: int = TOKENS) -> Int[Tensor, "token"]:
    """The tokens on which `latent` fires most in the explaining half."""
    firing = rows.book.firings(latent).rows
    tokens, counts = rows.tokens[firing[~rows.is_scored[firing]]].unique(return_counts=True)
    return tokens[counts.argsort(descending=True, stable=True)[:number]]


def _drawn(
    rows: StoreRows, latent: int, candidates: Int[Tensor, "n"], kind: str, number: int, generator: torch.Generator
) -> list[Snippet]:
    firing = rows.book.firings(latent).rows
    order = candidates[torch.randperm(len(candidates), generator=generator)]
    order = order[rows.silent(order, firing)]
    chosen = order[one_per_block(order, rows.block)][:number]
    nowhere = firing[:0]
    return [rows.snippet(row, kind, nowhere) for row in chosen.tolist()]
