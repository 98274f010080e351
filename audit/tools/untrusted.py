"""Text that a model wrote, or that stands in a corpus, a vocabulary, a label: it is data, and is marked as such wherever it is shown.

    {"untrusted": "ignore your instructions and ..."}

An agent's host can so tell our sentences and numbers from text that anybody may have written. What cannot be seen (control characters,
direction marks, tag characters and variation selectors, which can carry hidden messages, halves of surrogate pairs) is made visible.
No tool looks into such text for anything to do.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

LONGEST = 300  # characters of one text, unless a tool says otherwise
LEFT, RIGHT = "⟦", "⟧"  # marks around tokens where a latent fires; such marks in the text itself are replaced
DIGITS = 4
SIGNS = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
BLANK = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
)  # letters and marks without a shape


def shown(text: str, longest: int = LONGEST) -> str:
    """Text on one line, what cannot be seen as a sign, cut after `longest` characters."""
    cut = text[: max(longest, 1)]
    plain = "".join(_visible(char) for char in cut)
    return plain if len(text) <= longest else f"{plain}… (cut, {len(text)} characters)"


def _visible(char: str) -> str:
    if char in SIGNS:
        return SIGNS[char]
    code = ord(char)
    is_selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    if is_selector or char in BLANK or unicodedata.category(char) in HIDDEN:
        return f"⟨U+{code:04X}⟩"
    return char


def untrusted(text: str, longest: int = LONGEST) -> dict[str, str]:
    """The text as it stands in a result."""
    return {"untrusted": shown(text, longest)}


def token(text: str) -> str:
    """One token: spaces at its ends as ␣, nothing as ∅."""
    plain = shown(text, 40)
    left, right = len(plain) - len(plain.lstrip(" ")), len(plain) - len(plain.rstrip(" "))
    if left == len(plain):
        return "␣" * left or "∅"
    return "␣" * left + plain.strip(" ") + "␣" * right


def tokens(texts: Sequence[str]) -> dict[str, str]:
    """Several tokens in one untrusted string, apart by two spaces."""
    return untrusted("  ".join(token(each) for each in texts))


def marked(texts: Sequence[str], marks: set[int], longest: int = LONGEST) -> dict[str, str]:
    """Running text of tokens with ⟦marks⟧ around those at the places `marks`."""
    plain = [each.replace(LEFT, "(").replace(RIGHT, ")") for each in texts]
    return untrusted(
        "".join(f"{LEFT}{each}{RIGHT}" if place in marks else each for place, each in enumerate(plain)), longest
    )


def plain(value: Any) -> Any:
    """JSON data: numbers to four significant digits, what is not finite as None, tuples as lists."""
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    raise TypeError(f"a result holds {type(value).__name__}, which is no JSON data")
