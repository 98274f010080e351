"""Diff: what one method found between two models, on disk and in hand.

    found = Diff.open("diff")
    found.rows(10)                the ten that rank first, each a dictionary
    found.rows(10, by="d")        by another column
    found.causal                  what patching and removing the first few does

A folder with `manifest.json` (which models, text, settings, controls, the causal scores, notes) and `diff.safetensors` (a column
each: `[latent]`, or `[row]` of the lens). Opening reads no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...saes import UserError
from ...saes.drawn import drawn
from ...saes.io import read_json, read_tensors, write_json, write_tensors
from .crosscoder import CLASSES
from .shape import misfit

FORMAT, VERSION = "unweave.diff", 1
SHOWN = 20  # rows in to_dict
ASCENDING = ("p", "q", "cosine")  # columns where little says more


@dataclass(frozen=True)
class Diff:
    """What one method found. `columns` are by latent (of the lens by position and token); `manifest` says how it was made."""

    manifest: dict[str, Any]
    columns: dict[str, Tensor] = field(repr=False)
    folder: Path | None = None

    @staticmethod
    def open(folder: str | Path) -> Diff:
        """Open a folder that `diff` wrote; UserError if it is something else or damaged."""
        folder = Path(folder)
        manifest = read_json(folder / "manifest.json", "the manifest of a Diff")
        if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
            raise UserError(
                f"expected {FORMAT} version {VERSION} in {folder}; got {manifest.get('format')!r} version "
                f"{manifest.get('version')!r}; make it anew"
            )
        columns = read_tensors(folder / "diff.safetensors", "the numbers of a Diff")
        lacking = [name for name in ("models", "settings") if manifest.get(name) is None]
        if lacking:
            raise UserError(f"expected {lacking[0]} in {folder / 'manifest.json'}; there are none; make the Diff anew")
        return Diff(manifest, columns, folder).check()

    def check(self) -> Diff:
        """The same Diff; UserError naming the file and the field that is not what `diff` writes: one that was damaged or made by hand."""
        if wrong := misfit(self.manifest, self.columns):
            name = "diff.safetensors" if wrong.startswith("column") else "manifest.json"
            where = "this Diff" if self.folder is None else str(self.folder / name)
            field, _, wanted = wrong.partition(": ")
            raise UserError(f"{wanted} as {field} in {where}; got something else; make it anew")
        return self

    def save(self, folder: str | Path) -> Diff:
        """Write the folder, the manifest last; returns the Diff that is there."""
        folder = Path(folder)
        manifest = {"format": FORMAT, "version": VERSION, **self.manifest}
        # Columns may be one tensor under several names, which the file cannot be told.
        write_tensors(folder / "diff.safetensors", {name: column.clone() for name, column in self.columns.items()})
        write_json(folder / "manifest.json", manifest)
        return Diff(manifest, self.columns, folder)

    @property
    def method(self) -> str:
        """crosscoder, mean, stagewise or lens."""
        return self.manifest["method"]

    @property
    def causal(self) -> list[dict[str, Any]]:
        """What patching the first latents into A and removing them from B does: together, each alone, and the whole activation."""
        return self.manifest.get("causal") or []

    @property
    def notes(self) -> list[str]:
        """What to know before believing the numbers."""
        return self.manifest.get("notes") or []

    @property
    def discoveries(self) -> int:
        """How many rows are found at the stated false-discovery rate."""
        return int(self.columns["is_found"].sum())

    def __len__(self) -> int:
        return len(self.columns["score"])

    def order(self, by: str = "score") -> list[int]:
        """All rows from first to last: those that are found come first, then by the size of `by` (p, q and cosine: the least first).

        UserError for a column that there is not.
        """
        if by not in self.columns:
            raise UserError(f"expected a column ({', '.join(self.columns)}); got {by!r}; choose one")
        values = self.columns[by].double()
        key = values if by in ASCENDING else -values.abs()
        key = key.nan_to_num(torch.inf, torch.inf, -torch.inf)
        # Two stable sorts: within those found and not found, by the key.
        within = key.argsort(stable=True)
        return within[(~self.columns["is_found"].bool()[within]).int().argsort(stable=True)].tolist()

    def rows(self, k: int | None = None, by: str = "score") -> list[dict[str, Any]]:
        """The first `k` rows (None: all) as dictionaries: the columns, with the class by name and the tokens by their strings."""
        return [self._row(number) for number in self.order(by)[:k]]

    def _row(self, number: int) -> dict[str, Any]:
        row: dict[str, Any] = {} if "token" in self.columns else {"latent": number}
        for name, column in self.columns.items():
            value = column[number].item()
            row[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        if "class" in row:
            row["class"] = CLASSES[int(row["class"])]
        row["is_found"] = bool(row["is_found"])
        strings: Mapping[str, Any] = self.manifest.get("strings") or {}
        if "token" in row:
            row["string"] = strings.get(str(row["token"]))
        if tokens := (self.manifest.get("fires_on") or {}).get(str(number)):
            row["fires_on"] = tokens
        return row

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: the manifest and the first rows."""
        return {**self.manifest, "discoveries": self.discoveries, "latents": len(self), "rows": self.rows(SHOWN)}

    _repr_html_ = drawn

    def __repr__(self) -> str:
        a, b = (self.manifest["models"][side]["name"] for side in ("a", "b"))
        what = "tokens" if self.method == "lens" else "latents"
        rate = self.manifest["settings"]["fdr"]
        return f"Diff({a} → {b} by {self.method}: {self.discoveries:,} of {len(self):,} {what} found at q ≤ {rate})"
