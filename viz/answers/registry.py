"""The read-only questions that the front end asks: paths, each with the function that answers it.

    @path(r"stores/(\\d{1,6})/latents/(\\d{1,9})")
    def card(things, store, latent): ...

An answer is a JSON-able dict, or bytes (little-endian float32) for a whole column. A path that names something which is not
there raises KeyError. The live server computes an answer when it is asked; a page is the same answers, frozen (frozen.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ..things import Things

Answer = dict[str, Any] | bytes
_Function = TypeVar("_Function", bound=Callable[..., Answer])
_ANSWERS: list[tuple[re.Pattern[str], Callable[..., Answer]]] = []
_NUMBERS: dict[re.Pattern[str], list[bool]] = {}  # of each group, whether it is one number


def path(pattern: str) -> Callable[[_Function], _Function]:
    """Register the function that answers paths of this form; it gets the things and the pattern's groups, `(\\d{1,6})` as int."""

    def register(function: _Function) -> _Function:
        compiled = re.compile(pattern, re.ASCII)
        _NUMBERS[compiled] = [bool(number) for number in re.findall(r"\((?!\?)(\\d\{1,\d\}\))?", pattern)]
        _ANSWERS.append((compiled, function))
        return function

    return register


def answer(things: Things, asked: str) -> Answer:
    """The answer to one path; KeyError when there is no such path."""
    for pattern, function in _ANSWERS:
        if match := pattern.fullmatch(asked):
            groups = zip(match.groups(), _NUMBERS[pattern], strict=True)
            return function(things, *(int(group) if is_number else group for group, is_number in groups))
    raise KeyError(asked)


def nth(shelf: Sequence[Any], place: int) -> Any:
    """The thing at a place of a shelf; KeyError where there is none."""
    if not 0 <= place < len(shelf):
        raise KeyError(place)
    return shelf[place]
