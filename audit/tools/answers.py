"""What a tool answers, and how an answer is made to fit: no reply is longer than LIMIT tokens.

The list named by `rows` holds what was found, best first. When the reply is too long, the list is cut at its end and `more` is a handle
for the rest; where one row alone is too long, the longest texts in it are shortened until it fits. A small vocabulary takes a token
for a sign or two: where short texts are too long as well, other lists of objects lose their ends, and `lists_cut` says of which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

LIMIT = 1_950  # tokens of a reply: below the 2,000 that are promised
SHORTEST = 24  # characters that a text is never cut below


@dataclass(frozen=True)
class Answer:
    """A tool's result: JSON data. `rows` names the list in it that may be cut, `about` says what it was measured with."""

    result: dict[str, Any]
    rows: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None


def as_json(value: Any) -> str:
    """The text of a reply, as it is measured and sent."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def fit(
    answer: Answer,
    framed: Callable[[dict[str, Any], bool], dict[str, Any]],
    count: Callable[[str], int],
    limit: int = LIMIT,
) -> tuple[dict[str, Any], list[Any]]:
    """The result cut to fit, and the rows that were cut off.

    `framed(result, is_cut)` is the whole reply around a result, `count` measures its text.
    """

    def fits(result: dict[str, Any], is_cut: bool) -> bool:
        return count(as_json(framed(result, is_cut))) <= limit

    if answer.rows is None or fits(answer.result, False):
        return _shortened(answer.result, lambda result: fits(result, False)), []
    rows = answer.result[answer.rows]
    low, high = 1, max(len(rows) - 1, 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(_first(answer, middle), True) else (low, middle - 1)
    cut = len(rows) > low
    return _shortened(_first(answer, low), lambda result: fits(result, cut)), rows[low:]


def _first(answer: Answer, number: int) -> dict[str, Any]:
    assert answer.rows is not None
    rows = answer.result[answer.rows]
    return {**answer.result, answer.rows: rows[:number], "shown": f"{min(number, len(rows))} of {len(rows)}"}


def _shortened(result: dict[str, Any], fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The result with its longest texts halved, one after the other, and then its longest lists of objects, until it fits."""
    if fits(result):
        return result
    result = json.loads(as_json(result))
    while not fits(result):
        holder, key = max(_places(result, str), key=lambda place: len(place[0][place[1]]), default=(None, None))
        if holder is not None and len(holder[key]) > SHORTEST:
            holder[key] = f"{holder[key][: len(holder[key]) // 2]}…"
        else:
            _cut_a_list(result)
    return result


def _cut_a_list(result: dict[str, Any]) -> None:
    """Halve the longest list of objects (one of numbers, such as an interval, says something whole)."""
    lists = [
        (holder[key], str(key))
        for holder, key in _places(result, list)
        if len(holder[key]) > 1 and all(isinstance(each, dict) for each in holder[key])
    ]
    if not lists:
        raise ValueError("a result without long texts and lists is too long; its tool must bound it")
    longest, name = max(lists, key=lambda each: len(as_json(each[0])))
    del longest[len(longest) // 2 :]
    cut = result.setdefault("lists_cut", [])
    cut += [] if name in cut else [name]


def _places(value: Any, kind: type) -> Iterator[tuple[Any, Any]]:
    """Where each part of a kind stands: the dict or list that holds it, and its place in it."""
    places = value.items() if isinstance(value, dict) else enumerate(value)
    for place, each in places:
        if isinstance(each, kind):
            yield value, place
        if isinstance(each, dict | list):
            yield from _places(each, kind)
