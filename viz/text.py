"""Strings and numbers that are safe to show.

Tokens, labels and metadata come from models, corpora and other people's files, so they can hold anything: markup, NUL,
text-direction overrides, halves of surrogate pairs, ten thousand characters. Three forms are made here, once, for the
figures and the page alike:

* `visible(token)`: one token standing alone; spaces at its ends and every control character get a sign (`␣Paris`, `⏎`).
* `readable(text)`: running text; spaces stay, everything that would break the line or its direction gets a sign.
* `plotly_text(text)`: either of them for plotly, which renders a subset of HTML in labels and hovers (links included).

The page puts strings into text nodes only, so they need no HTML escape there. Numbers become JSON numbers or null: JSON
has no NaN.
"""

from __future__ import annotations

import math
import re
from typing import Any

LONGEST = 120  # characters of one token or label that are shown
EXACT = 2**53  # the largest whole number up to which a browser holds each
_SIGNS = {
    "\n": "⏎",
    "\r": "␍",
    "\t": "⇥",
    "\x7f": "␡",
    "\u2028": "⏎",
    "\u2029": "⏎",
    "\u200b": "⟨ZWSP⟩",
    "\ufeff": "⟨BOM⟩",
}


_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def _sign(found: re.Match[str]) -> str:
    character = found[0]
    if character in _SIGNS:
        return _SIGNS[character]
    return chr(0x2400 + ord(character)) if character < " " else f"⟨U+{ord(character):04X}⟩"


def readable(text: object, longest: int = LONGEST) -> str:
    """Running text with controls, direction marks and lone surrogates as signs; cut after `longest` characters."""
    plain = str(text)
    shown = _UNSAFE.sub(_sign, plain[:longest])
    if len(plain) <= longest:
        return shown
    return f"{shown}… ({len(plain)} characters)" if longest >= LONGEST else f"{shown}…"


def visible(token: object, longest: int = LONGEST) -> str:
    """One token standing alone: as `readable`, and the spaces at its ends are `␣`; the empty token is `∅`."""
    shown = readable(token, longest)
    left, right = len(shown) - len(shown.lstrip(" ")), len(shown) - len(shown.rstrip(" "))
    if left == len(shown):
        return "␣" * left or "∅"
    return "␣" * left + shown.strip(" ") + "␣" * right


def reason(error: object) -> str:
    """An error in words for the page: the names of files and folders in it are other people's."""
    return readable(error, 800)


def plotly_text(text: str) -> str:
    """`text` for a plotly label or hover: it shows literally and never becomes markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def number(value: Any, digits: int = 4) -> float | int | None:
    """A JSON number with `digits` significant digits, whole ones up to `EXACT` as they are; None for NaN, infinities, what no float
    holds and things that are no numbers."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int) and abs(value) <= EXACT:
        return value
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def jsonable(value: Any, depth: int = 8, longest: int = 400) -> Any:
    """Metadata of any origin as shown JSON: dicts, lists, finite numbers, `readable` strings; whole numbers that a browser would
    round, and deeper levels, as text of at most `longest` characters."""
    if isinstance(value, dict) and depth:
        return {readable(key): jsonable(inner, depth - 1, longest) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and depth:
        return [jsonable(inner, depth - 1, longest) for inner in value]
    if value is None or (isinstance(value, int) and abs(value) <= EXACT):
        return value
    if isinstance(value, float):
        return number(value, 6)
    return readable(value, longest)
