"""DictionaryConfig and the widths of its sites as JSON, and back. What is read was written by anybody: types are checked."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..dictionary_config import ACTIVATIONS, DictionaryConfig
from ..errors import UserError
from ..layout import Layout

NAMES = ("site", "site_out")
COUNTS = ("latents", "k")
CHOICES = {"across": ("together", "cross_layer", "shared"), "activation": ACTIVATIONS}


def to_json(config: DictionaryConfig, layout: Layout) -> dict[str, Any]:
    """Every field of the config, and `widths`, the width of each site."""
    data = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
    return {**data, "widths": layout.widths}


def from_json(data: Any, where: str) -> tuple[DictionaryConfig, dict[str, int] | None]:
    """The config and the widths (None where they are not told); UserError, naming `where`, for anything else."""
    if not isinstance(data, dict):
        raise UserError(f"expected the config of a dictionary in {where}; got {type(data).__name__}; mend it")
    given = dict(data)
    widths = given.pop("widths", None)
    known = {field.name: field for field in dataclasses.fields(DictionaryConfig)}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"expected fields of a DictionaryConfig in {where}; got {name[:60]!r}; update unweave")
        if not _fits(name, value, known[name].default):
            raise UserError(f"expected {name} as DictionaryConfig has it in {where}; got {str(value)[:60]!r}; mend it")
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    config = DictionaryConfig(**fields)
    sites = config.sites or ("",)
    if widths is None:
        return config, None
    if not isinstance(widths, dict) or set(widths) != set(sites) or not all(_count(w) for w in widths.values()):
        raise UserError(
            f"expected a width for each of {', '.join(sites)[:200]} in {where}; got {str(widths)[:80]}; mend it"
        )
    return config, widths


def _fits(name: str, value: Any, default: Any) -> bool:
    if name in NAMES:
        return isinstance(value, list) and all(isinstance(site, str) for site in value)
    if isinstance(default, tuple):
        return isinstance(value, list) and all(_count(item) for item in value)
    if name in CHOICES:
        return isinstance(value, str) and value in CHOICES[name]
    return _count(value) if name in COUNTS else type(value) is type(default)


def _count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 1 << 48
