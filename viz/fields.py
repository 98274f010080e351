"""What the page sends, checked: every field's type, range and length, with a UserError that names the field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..circuits.prompts.wishes import Wish
from ..saes.errors import UserError
from .text import readable

Body = dict[str, Any]
CHARACTERS, MESSAGES, TOKENS = 20_000, 100, 1024
EDITS, POSITIONS, ROWS = 64, 4096, 64
ACTIONS = ("ablate", "steer", "set", "scale")
LARGEST = 1e6  # of an edit's amount


def prompt_of(body: Body) -> str | list[dict[str, str]]:
    """The prompt: `text`, or a chat's `messages`."""
    messages = body.get("messages")
    if messages is None:
        return text_of(body)
    if not isinstance(messages, list) or not 0 < len(messages) <= MESSAGES or not all(map(_is_message, messages)):
        raise UserError(
            f'expected messages [{{"role": …, "content": …}}, …], at most {MESSAGES}; got {_said(messages)}; send text'
        )
    length = sum(len(each["content"]) + len(each["role"]) for each in messages)
    if length > CHARACTERS:
        raise UserError(f"expected messages of at most {CHARACTERS} characters together; got {length}; shorten them")
    return [{"role": each["role"], "content": each["content"]} for each in messages]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def text_of(body: Body, name: str = "text") -> str:
    """A text that is not empty and not too long."""
    text = body.get(name)
    if not isinstance(text, str) or not text:
        raise UserError(f"expected {name} as a string that is not empty; got {_said(text)}; write one")
    if len(text) > CHARACTERS:
        raise UserError(f"expected {name} of at most {CHARACTERS} characters; got {len(text)}; shorten it")
    return text


def whole(body: Body, name: str, default: int | None, low: int, high: int) -> int:
    """A whole number from `low` to `high`; `default` None: it must be there."""
    value: Any = default if body.get(name) is None else body[name]
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"expected {name} as a whole number from {low} to {high}; got {_said(value)}; change it")
    return value


def real(body: Body, name: str, default: float, low: float, high: float) -> float:
    """A number from `low` to `high`."""
    value: Any = default if body.get(name) is None else body[name]
    if type(value) not in (int, float) or not low <= value <= high:
        raise UserError(f"expected {name} as a number from {low} to {high}; got {_said(value)}; change it")
    return float(value)


def choice(body: Body, name: str, options: Sequence[str]) -> str:
    """One of some words; the first where none is given."""
    value = body.get(name)
    value = options[0] if value is None else value
    if not isinstance(value, str) or value not in options:
        raise UserError(f"expected {name} to be one of {', '.join(options)}; got {_said(value)}; choose one")
    return value


def target_of(body: Body) -> Any:
    """What is asked about: None, a token as text ("A||B" for a difference) or id, or a pair of them."""
    target = body.get("target")
    pair = target if isinstance(target, list) else [target]
    is_known = len(pair) in (1, 2) and all(type(each) is int or _is_text(each) for each in pair)
    if target is not None and not (is_known and all(len(str(each)) <= 200 for each in pair)):
        raise UserError(f"expected target as a token, its id, or a pair of them; got {_said(target)}; choose one token")
    return tuple(target) if isinstance(target, list) else (target or None if isinstance(target, str) else target)


def _is_text(value: Any) -> bool:
    """Whether it is a string that UTF-8 can hold: tokenizers raise for half a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def wishes_of(body: Body) -> list[Wish]:
    """`edits`: [{latent, how, amount, positions}, …]."""
    edits = body.get("edits")
    edits = [] if edits is None else edits
    if not isinstance(edits, list) or len(edits) > EDITS or not all(isinstance(each, dict) for each in edits):
        raise UserError(f"expected edits as a list of at most {EDITS} objects; got {_said(edits)}; leave some out")
    return [_wish(each) for each in edits]


def _wish(edit: Body) -> Wish:
    how = choice(edit, "how", ACTIONS)
    latent = whole(edit, "latent", None, 0, 2**31)
    amount: Any = edit.get("amount")
    if how != "ablate":
        if type(amount) not in (int, float) or not -LARGEST <= amount <= LARGEST:
            raise UserError(f"expected amount of {how} as a number up to {LARGEST:.0e}; got {_said(amount)}; give one")
        amount = float(amount)
    places = edit.get("positions")
    if places is not None and not (
        isinstance(places, list) and 0 < len(places) <= POSITIONS and all(type(each) is int for each in places)
    ):
        raise UserError(
            f"expected positions as a list of at most {POSITIONS} whole numbers; got {_said(places)}; leave it out for all"
        )
    return Wish(latent, how, None if how == "ablate" else amount, places)


def rows_of(body: Body, limit: int) -> list[int] | None:
    """`rows` of the text, at most 64; None where none are named."""
    rows = body.get("rows")
    if rows is None:
        return None
    if not isinstance(rows, list) or len(rows) > ROWS or not all(type(row) is int and 0 <= row < limit for row in rows):
        raise UserError(f"expected rows as at most {ROWS} numbers below {limit}; got {_said(rows)}; leave some out")
    return rows


def _said(value: Any) -> str:
    return readable(repr(value), 60)
