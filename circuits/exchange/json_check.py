"""Checks of JSON that came from elsewhere: every failure is a UserError that says where in the document it is."""

from __future__ import annotations

import sys
from math import isfinite
from typing import Any

from ...saes.errors import UserError

DEEPEST = 100  # nested levels
LARGEST = 2**63 - 1


def check_json(data: Any, what: str) -> None:
    """UserError, with its path, for the first thing in `data` that is no JSON, not finite, or nested too deeply."""
    todo: list[tuple[Any, Any, int]] = [({"": data}, None, -1)]
    while todo:
        branch, path, depth = todo.pop()
        if depth >= DEEPEST:
            raise UserError(f"expected at most {DEEPEST} nested levels in {what}; got more at {_at(path)}; flatten it")
        for key, value in branch.items() if type(branch) is dict else enumerate(branch):
            kind = type(value)
            if kind is float:
                good = isfinite(value)
            elif kind is int:
                good = value.bit_length() <= 1024
            elif kind is dict:
                good = all(type(name) is str for name in value)
                todo.append((value, (path, key), depth + 1))
            elif kind is list or kind is tuple:
                good = True
                todo.append((value, (path, key), depth + 1))
            else:
                good = kind is str or kind is bool or value is None
            if not good:
                raise UserError(
                    f"expected JSON with finite numbers and text as keys in {what}; got {kind.__name__} at "
                    f"{_at((path, key))}; mend it or leave it out"
                )


def _at(path: Any) -> str:
    steps = []
    while path is not None:
        path, step = path
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step[:40]}")
    return "".join(reversed(steps)).lstrip(".") or "its top"


def want(holds: bool, path: str, what: str) -> None:
    """UserError, naming the path, unless it holds."""
    if not holds:
        raise UserError(
            f"expected {what} at {path} of a graph's JSON; it is missing or of another kind; export it again"
        )


def whole(value: Any, path: str) -> int:
    """An integer of 64 bits, also one written as 3.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    want(type(value) is int and abs(value) <= LARGEST, path, "a whole number of at most 64 bits")
    return int(value)


def real(value: Any, path: str) -> float:
    """A finite number as a float."""
    want(type(value) in (int, float) and abs(value) <= sys.float_info.max, path, "a number")
    return float(value)
