"""The explainer without a language model: a few mechanical clauses, chosen on the explaining half, that a machine can also judge.

Chosen greedily, one clause after the other, at most CLAUSES, as long as what they say together (any of them holds) gains GAIN of

    (balanced accuracy on windows: holds somewhere in it + balanced accuracy on places: holds where the latent fires) / 2

on the positives and negatives of the explaining half. Each clause keeps its precision there, smoothed and at even odds, for windows and
for places: the judge's probability, which gives an AUC. What the label says besides (the tokens it promotes) comes of the weights.

    judge, detection   1 if a clause holds at any place of the snippet
    judge, fuzzing     1 if a clause holds at a marked place
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .negatives import Material
from .patterns import Clause, clauses_at
from .snippets import Snippet

CLAUSES, GAIN, CANDIDATES = 4, 0.01, 300


class Pattern(NamedTuple):
    """A label that a machine can judge: clauses with their precision on windows and on places, and tokens that are promoted."""

    clauses: tuple[tuple[Clause, float, float], ...]
    promoted: tuple[str, ...] = ()

    def says(self) -> str:
        """The label in words, at most 500 characters."""
        text = "; or ".join(clause.says() for clause, _, _ in self.clauses) or "nothing in particular"
        if self.promoted:
            text += f" (promotes {', '.join(repr(token) for token in self.promoted[:4])})"
        return text if len(text) <= 500 else f"{text[:499]}…"

    def window(self, snippet: Snippet) -> float:
        """Probability that the latent fires somewhere in the snippet; at most 0.5 where no clause holds."""
        return self._best(snippet.tokens, range(len(snippet.tokens)), {clause: p for clause, p, _ in self.clauses})

    def places(self, snippet: Snippet, marks: Iterable[int]) -> float:
        """Probability that it fires at the marked places."""
        return self._best(snippet.tokens, marks, {clause: p for clause, _, p in self.clauses})

    def _best(self, tokens: Sequence[str], places: Iterable[int], known: Mapping[Clause, float]) -> float:
        promoted = frozenset(self.promoted)
        held = {clause for place in places for clause in clauses_at(tokens, place, promoted) if clause in known}
        return max((max(known[clause], 0.501) for clause in held), default=0.25)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, which `from_dict` takes."""
        return {"clauses": [[*clause, *numbers] for clause, *numbers in self.clauses], "promoted": list(self.promoted)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Pattern:
        """The pattern of such data."""
        clauses = tuple((Clause(str(kind), str(text)), float(a), float(b)) for kind, text, a, b in data["clauses"])
        return Pattern(clauses, tuple(map(str, data["promoted"])))


class Seen(NamedTuple):
    """Where each clause holds on the explaining half, as bits: in windows that fire and silent ones, at places that fire and others."""

    sides: tuple[dict[Clause, int], dict[Clause, int], dict[Clause, int], dict[Clause, int]]
    totals: tuple[int, int, int, int]


def explain(found: Material, promoted: Sequence[str] = (), only_token: bool = False) -> Pattern:
    """The pattern of a latent; with `only_token` its most frequent token and nothing else (a baseline)."""
    kept = tuple(promoted[:10])
    if only_token:
        fires = Counter(each.tokens[place] for each in found.explain for place in each.marks)
        return Pattern(tuple((Clause("token", token), 1.0, 1.0) for token, _ in fires.most_common(1)))
    seen = look(found.explain, found.contrast, frozenset(kept))
    chosen: list[Clause] = []
    best, held = 0.5, (0, 0, 0, 0)
    candidates = sorted(seen.sides[2], key=lambda clause: (-_worth(seen, held, clause), clause))[:CANDIDATES]
    while len(chosen) < CLAUSES and candidates:
        worth, clause = max((_worth(seen, held, clause), clause) for clause in candidates)
        if worth < best + GAIN:
            break
        best, chosen, held = worth, [*chosen, clause], _with(seen, held, clause)
    return _pattern(seen, chosen, kept)


def look(fires: Sequence[Snippet], silent: Sequence[Snippet], promoted: frozenset[str] = frozenset()) -> Seen:
    """Where every clause that holds at a firing place of two snippets or more holds."""
    sides: tuple[dict[Clause, int], ...] = tuple(defaultdict(int) for _ in range(4))
    counts = [len(fires), len(silent), 0, 0]
    firing_in: dict[Clause, set[int]] = defaultdict(set)
    for number, snippet in enumerate([*fires, *silent]):
        is_silent = int(number >= len(fires))
        for place in range(len(snippet.tokens)):
            side = 2 + int(is_silent or place not in snippet.marks)
            for clause in clauses_at(snippet.tokens, place, promoted):
                sides[is_silent][clause] |= 1 << (number - is_silent * len(fires))
                sides[side][clause] |= 1 << counts[side]
                if side == 2:
                    firing_in[clause].add(number)
            counts[side] += 1
    common = [clause for clause, numbers in firing_in.items() if len(numbers) > 1]
    kept = [{clause: side.get(clause, 0) for clause in common} for side in sides]
    return Seen((kept[0], kept[1], kept[2], kept[3]), (counts[0], counts[1], counts[2], counts[3]))


def _with(seen: Seen, held: tuple[int, int, int, int], clause: Clause) -> tuple[int, int, int, int]:
    """Where what held before or `clause` holds."""
    one, two, three, four = (bits | side[clause] for bits, side in zip(held, seen.sides, strict=True))
    return one, two, three, four


def _worth(seen: Seen, held: tuple[int, int, int, int], clause: Clause) -> float:
    """What the explainer maximises, once `clause` is added."""
    rates = [
        bits.bit_count() / max(total, 1) for bits, total in zip(_with(seen, held, clause), seen.totals, strict=True)
    ]
    return (1 + rates[0] - rates[1]) / 4 + (1 + rates[2] - rates[3]) / 4


def _pattern(seen: Seen, chosen: Sequence[Clause], promoted: tuple[str, ...]) -> Pattern:
    def precision(clause: Clause, fires: int, silent: int) -> float:
        hit, miss = ((seen.sides[side][clause].bit_count() + 1) / (seen.totals[side] + 2) for side in (fires, silent))
        return round(hit / (hit + miss), 4)

    return Pattern(tuple((clause, precision(clause, 0, 1), precision(clause, 2, 3)) for clause in chosen), promoted)
