"""What a Diff's manifest and columns must be, so that whoever reads one that was damaged or made by hand is told which field is wrong.

A field that is missing is none; one that is there has the type that `diff` writes. Names and texts may say anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .crosscoder import CLASSES

METHODS = ("crosscoder", "mean", "stagewise", "lens")
WHOLE = ("token", "position", "class")  # columns of whole numbers
SHARES = ("patched", "removed")
LARGEST = 2**63


def misfit(manifest: Mapping[str, Any], columns: Mapping[str, Tensor]) -> str:
    """What is wrong, as "field: expected …", empty where all fits."""
    if manifest.get("method") not in METHODS:
        return f"method: expected {', '.join(METHODS)}"
    for name, (is_right, wanted) in FIELDS.items():
        if manifest.get(name) is not None and not is_right(manifest[name]):
            return f"{name}: expected {wanted}"
    return _wrong_columns(columns, manifest["method"])


def _wrong_columns(columns: Mapping[str, Tensor], method: str) -> str:
    needed = ("score", "is_found", *(("token", "position") if method == "lens" else ()))
    if lacking := [name for name in needed if name not in columns]:
        return f"columns: expected {', '.join(needed)}; there is no {lacking[0]}"
    for name, column in columns.items():
        if column.ndim != 1 or len(column) != len(columns["score"]) or column.is_complex():
            return f"column {name}: expected a list of real numbers as long as score"
        if name in WHOLE and column.is_floating_point():
            return f"column {name}: expected whole numbers"
    kinds = columns.get("class")
    if kinds is not None and len(kinds) and not bool(((kinds >= 0) & (kinds < len(CLASSES))).all()):
        return f"column class: expected numbers from 0 to {len(CLASSES) - 1}"
    return ""


def _is_number(value: Any) -> bool:
    """A number that a float holds; NaN is one."""
    is_whole = type(value) is int and abs(value) < LARGEST
    return is_whole or isinstance(value, float)


def _is_maybe(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_list(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


def _is_table(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_models(value: Any) -> bool:
    sides = [value.get(side) for side in ("a", "b")] if isinstance(value, dict) else [None]
    return all(isinstance(side, dict) and isinstance(side.get("name"), str) for side in sides)


def _is_settings(value: Any) -> bool:
    return isinstance(value, dict) and _is_number(value.get("fdr"))


def _is_latent(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _is_score(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_list(_is_latent)(value.get("latents"))
        and all(_is_share(value.get(side)) for side in SHARES)
    )


def _is_share(value: Any) -> bool:
    if not isinstance(value, dict) or not all(_is_maybe(value.get(name)) for name in ("share", "p")):
        return False
    interval = value.get("interval")
    is_pair = interval is None or (_is_list(_is_number)(interval) and len(interval) == 2)
    return is_pair and _is_list(_is_number)(value.get("controls") or [])


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "models": (_is_models, "two models, a and b, each with a name"),
    "settings": (_is_settings, "settings with the number fdr"),
    "text": (lambda value: isinstance(value, dict), "an object"),
    "sites": (_is_table(_is_text), "an object of texts"),
    "dictionaries": (_is_table(_is_text), "an object of fingerprints"),
    "notes": (_is_list(_is_text), "a list of texts"),
    "fires_on": (_is_table(_is_list(_is_text)), "an object of lists of tokens"),
    "strings": (_is_table(_is_text), "an object of texts"),
    "causal": (_is_list(_is_score), "a list of scores, each with latents, patched and removed"),
}
"""Every part of a manifest that something reads, whether it is right, and what it should be."""
