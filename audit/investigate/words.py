"""Words that one model writes and another does not, tested: what a script without a language model can read in replies.

For a word, over prompts that both models answered,

    n10    replies of the first that have it where the second's has it not;  n01 the other way round
    p      one-sided sign test: P(X >= n10), X ~ Binomial(n10 + n01, 1/2)          (McNemar 1947, exact)
    q      smallest false-discovery rate at which the word is a discovery, over all words that the first model writes anywhere

Words of the prompts themselves and the commonest words of English are left out: a change of manner raises those in any fine-tuned
model. A reply counts once, however often it has the word.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from ..diffing.statistics import benjamini_hochberg

COMMON = frozenset(
    """a about after again all also always am an and another any are as at back be because been before being best better both but by can
    could did do does done down each even every example few first for from get give go going good great had has have having he help her here
    him his how however i if important in include into is it its just keep kind know large last least let like likely little long look made
    make makes many may me mean might more most much must my need never new no not now of off often on one only or other our out over own
    part people place please possible probably put really right said same say see several she should show side simple since small so some
    something still such sure take tell than that the their them then there these they thing things think this those through time to too
    try two under until up us use used using usually very want was way we well were what when where which while who why will with without
    word words work would yes you your""".split()
)  # fmt: skip
LEAST = 3  # letters of a word that counts


class Raised(NamedTuple):
    """One word: in how many replies of the first and of the second model it stands, of how many, and how sure that is."""

    word: str
    target: int
    base: int
    count: int
    p: float
    q: float


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, letters only."""
    return [word for word in re.findall(r"[^\W\d_]+", text.lower()) if len(word) >= LEAST]


def left_out(prompts: Iterable[str]) -> frozenset[str]:
    """Words that count for nothing: common ones, and those of the prompts."""
    return COMMON | {word for prompt in prompts for word in words_of(prompt)}


def raised(target: Sequence[str], base: Sequence[str], ignored: frozenset[str], least: int = 3) -> list[Raised]:
    """The words that replies of the target have more often than the base's to the same prompts, the surest first."""
    own, other = ([set(words_of(text)) - ignored for text in texts] for texts in (target, base))
    found: list[tuple[str, int, int, float]] = []
    for word in sorted(set().union(*own)):
        gained, lost = moved(word, own, other)
        found.append((word, gained, lost, sign_test(gained, lost)))
    if not found:
        return []
    q = benjamini_hochberg(torch.tensor([p for *_, p in found], dtype=torch.float64)).tolist()
    rows = [
        Raised(word, sum(word in each for each in own), sum(word in each for each in other), len(own), p, rate)
        for (word, gained, _, p), rate in zip(found, q, strict=True)
        if gained >= least
    ]
    return sorted(rows, key=lambda row: (row.p, -row.target, row.word))


def sign_test(gained: int, lost: int) -> float:
    """P(X >= gained) for X ~ Binomial(gained + lost, 1/2); 1 where nothing differs."""
    return binomial(gained, gained + lost, 0.5)


def moved(word: str, own: Sequence[set[str]], other: Sequence[set[str]]) -> tuple[int, int]:
    """In how many pairs of replies only the first has the word, and only the second."""
    pairs = list(zip(own, other, strict=True))
    return sum(word in a and word not in b for a, b in pairs), sum(word in b and word not in a for a, b in pairs)


def against_text(target: Sequence[str], ignored: frozenset[str], least: int = 3) -> list[Raised]:
    """Words that stand in more replies than in pieces of ordinary text of the same length: what can be told without a base model.

    p is binomial, from the share of pieces of the package's own text that have the word (one piece is added, so that no share is 0). A chat
    model differs from prose in more than its quirk, so this finds too much.
    """
    own = [set(words_of(text)) - ignored for text in target]
    length = max(1, round(sum(map(len, own)) / max(1, len(own))))
    share, pieces = ordinary(length)
    found = []
    for word in sorted(set().union(*own)):
        hits = sum(word in each for each in own)
        rate = (share.get(word, 0) + 1) / (pieces + 1)
        found.append((word, hits, binomial(hits, len(own), rate)))
    if not found:
        return []
    q = benjamini_hochberg(torch.tensor([p for *_, p in found], dtype=torch.float64)).tolist()
    rows = [
        Raised(word, hits, 0, len(own), p, rate)
        for (word, hits, p), rate in zip(found, q, strict=True)
        if hits >= least
    ]
    return sorted(rows, key=lambda row: (row.p, -row.target, row.word))


@functools.lru_cache(maxsize=4)
def ordinary(length: int) -> tuple[Counter[str], int]:
    """In how many pieces of `length` words, of how many, each word of the package's own text stands."""
    from ...saes import bundled

    share: Counter[str] = Counter()
    pieces = 0
    for document in bundled():
        words = words_of(document.text)
        for start in range(0, len(words), length):
            share.update(set(words[start : start + length]))
            pieces += 1
    return share, pieces


def binomial(hits: int, count: int, rate: float) -> float:
    """P(X >= hits) for X ~ Binomial(count, rate)."""
    return min(1.0, sum(math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(hits, count + 1)))
