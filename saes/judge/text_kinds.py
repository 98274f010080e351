"""What kind of text a document is, told from its characters alone: code or prose, English or another language.

    code      brackets, operators and underscores are more than CODE of its characters that are not blank
    english   the mean log2-probability of its letter triples is higher under English than under every other bundled language

The profiles of the languages are the triples of the bundled translations of one text (saes/corpus.py), smoothed by adding one half;
nothing is downloaded. On the bundled documents themselves both are right (a test says how often, each left out of its own profile).
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from ..corpus import bundled

CODE = 0.02
SIGNS = frozenset("()[]{}=_<>+*/\\|#@^&%$~`;")
SHOWN = 4000  # characters that a document is judged by
SMOOTHING = 0.5


def is_code(text: str) -> bool:
    """Whether signs of programs are frequent."""
    shown = [char for char in text[:SHOWN] if not char.isspace()]
    return sum(char in SIGNS for char in shown) > CODE * len(shown)


def language(text: str, known: Mapping[str, Counter[str]] | None = None) -> str:
    """The code of the bundled language whose letter triples fit best, "eng" for English."""
    found = triples(text[:SHOWN])
    known = profiles() if known is None else known
    return max(known, key=lambda name: fit(found, known[name]))


def fit(found: Counter[str], profile: Counter[str]) -> float:
    """Summed log-probability of triples under a profile."""
    total, kinds = profile.total(), 27**3
    return math.fsum(
        count * math.log2((profile[triple] + SMOOTHING) / (total + SMOOTHING * kinds))
        for triple, count in found.items()
    )


def triples(text: str) -> Counter[str]:
    """Counts of three letters in a row, blanks between words counting as one letter."""
    letters = re.sub(r"[\W\d_]+", " ", text.lower())
    return Counter(letters[place : place + 3] for place in range(len(letters) - 2))


@functools.cache
def profiles() -> dict[str, Counter[str]]:
    """The triples of each bundled language, by its code."""
    translations = [one for one in bundled() if one.kind.startswith("language:")]
    return profiles_of((one.kind.removeprefix("language:"), one.text) for one in translations)


def profiles_of(texts: Iterable[tuple[str, str]]) -> dict[str, Counter[str]]:
    """Triples of texts by language."""
    found: dict[str, Counter[str]] = {}
    for name, text in texts:
        found.setdefault(name, Counter()).update(triples(text))
    return found
