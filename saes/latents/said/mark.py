"""Mark: what people (or an audit) say of one latent, and the limits of what they may say.

A score belongs to the label that it was measured on: a new label drops it, unless it brings its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...errors import UserError

LABEL, NOTE, TAG, TAGS, AUTHOR, SCORE = 500, 20_000, 60, 32, 200, 4_000  # characters, and tags of one latent
SCORE_NUMBERS = ("value", "low", "high")


class Mark(NamedTuple):
    """Label, note, tags, star, and the label's held-out score: `method`, `value`, `low`, `high` (its interval), `n` (items)."""

    label: str | None = None
    note: str = ""
    tags: tuple[str, ...] = ()
    is_starred: bool = False
    score: dict[str, Any] | None = None


EMPTY = Mark()


def changed(mark: Mark, given: Mapping[str, Any]) -> Mark:
    """`mark` with the given fields checked and put in place; UserError for what is too long or of another kind."""
    checks = {"label": _label, "note": _note, "tags": _tags, "is_starred": _star, "score": _score}
    if unknown := given.keys() - checks.keys():
        raise UserError(f"expected any of {', '.join(checks)}; got {', '.join(sorted(map(str, unknown)))[:80]!r}")
    new = mark._replace(**{name: checks[name](value) for name, value in given.items()})
    return new._replace(score=None) if new.label != mark.label and "score" not in given else new


def difference(old: Mark, new: Mark) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields in which two marks differ: before, after."""
    names = [name for name in Mark._fields if getattr(old, name) != getattr(new, name)]
    return {name: getattr(old, name) for name in names}, {name: getattr(new, name) for name in names}


def to_columns(mark: Mark) -> tuple[str, str, str, int, str | None]:
    """The columns of a mark in labels.sqlite, `latent` aside."""
    score = None if mark.score is None else json.dumps(mark.score)
    return mark.label or "", mark.note, json.dumps(mark.tags), int(mark.is_starred), score


def from_columns(label: Any, note: Any = "", tags: Any = "[]", is_starred: Any = 0, score: Any = None) -> Mark:
    """The mark of such columns; ValueError or TypeError where someone wrote other things there."""
    if not (isinstance(label, str) and isinstance(note, str)):
        raise TypeError("a label or note that is not text")
    listed, scored = json.loads(tags), None if score is None else json.loads(score)
    if not isinstance(listed, list) or not all(isinstance(tag, str) for tag in listed):
        raise TypeError("tags that are no list of text")
    return Mark(label or None, note, tuple(listed), bool(is_starred), _score(scored))


def check_text(what: str, value: Any, limit: int) -> str:
    """`value` as it is, if it is text of at most `limit` characters that UTF-8 can hold."""
    if not isinstance(value, str):
        raise UserError(f"expected a {what} that is text; got {type(value).__name__}")
    if len(value) > limit:
        raise UserError(f"expected a {what} of at most {limit:,} characters; got {len(value):,}; shorten it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"expected a {what} that UTF-8 can hold; got {error.reason} at character {error.start}; mend it"
        ) from error
    return value


def _label(value: Any) -> str | None:
    return None if value is None else check_text("label", value, LABEL).strip() or None


def _note(value: Any) -> str:
    return "" if value is None else check_text("note", value, NOTE)


def _tags(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise UserError(f"expected a list of tags; got {type(value).__name__}; put a single tag in a list too")
    tags = tuple(dict.fromkeys(tag for item in value if (tag := check_text("tag", item, TAG).strip())))
    if len(tags) > TAGS:
        raise UserError(f"expected at most {TAGS} tags of a latent; got {len(tags)}; remove some")
    return tags


def _star(value: Any) -> bool:
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise UserError(f"expected is_starred to be true or false; got {str(value)[:40]!r}")
    return bool(value)


def _score(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not {"method", "n", *SCORE_NUMBERS} <= value.keys():
        raise UserError("expected a score with method, value, low, high and n; got something else")
    numbers = [value[name] for name in SCORE_NUMBERS]
    is_counted = isinstance(value["n"], int) and not isinstance(value["n"], bool) and value["n"] >= 0
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers) or not is_counted:
        raise UserError("expected finite numbers value, low and high and a count n in a score; got others")
    if not numbers[1] <= numbers[0] <= numbers[2]:
        raise UserError(f"expected a score with low ≤ value ≤ high; got {numbers[1]}, {numbers[0]}, {numbers[2]}")
    check_text("score's method", value["method"], TAG)
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"expected a score of plain JSON data; got something else ({error})") from error
    return json.loads(check_text("score", text, SCORE))
