"""FeatureStore: what each latent does, on disk, opened without a model.

A folder with `manifest.json` (provenance), `features.safetensors` (arrays with a row per latent, memory-mapped; stats.py and
weights.py say how each is made), `tokens.safetensors` (the text's tokens and the vocabulary), the codes where they were kept
(codebook.py) and `labels.sqlite` (labels.py, the one part that changes). Keys are in docs/formats.md.

Opening compares shapes and reads no array; what is read of one is checked then, so that a damaged or hostile store gives a
UserError and never another answer.
"""

from __future__ import annotations

import math
import operator
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...drawn import drawn
from ...errors import UserError
from ...io import map_tensors, read_json
from ..codes.codebook import Codebook
from ..gather.stats import BINS, histogram_edges
from ..gather.windows import windows_of
from ..said.labels import Labels
from .feature import COLUMN_NOTES, Example, Feature, Histogram, TokenShare
from .interesting import interesting
from .shape import damaged, misfit
from .store_text import StoreText
from .write import FORMAT, VERSION

__all__ = ["Example", "Feature", "FeatureStore", "Histogram", "TokenShare"]


class FeatureStore:
    """An opened store: `store[latent]` is a Feature, `store.columns` the table of all latents.

    A latent is named by its number, 0 to `len(store)` - 1. IndexError for any other, also below 0: a latent has one name.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self._arrays, text = (_map(folder / f"{name}.safetensors") for name in ("features", "tokens"))
        if wrong := misfit(self._arrays, text, manifest):
            raise damaged(folder, wrong)
        self.text = StoreText(folder, text, manifest["before"], manifest["after"])
        self.columns: dict[str, Tensor] = _columns(self._arrays)

    @staticmethod
    def open(folder: str | Path) -> FeatureStore:
        """Open a folder that `collect` wrote; UserError if it is something else or damaged."""
        folder = Path(folder)
        if not (folder / "manifest.json").exists() and (folder / "unfinished.json").exists():
            raise UserError(
                f"expected a finished FeatureStore; {folder} is not; finish it with the same `unweave collect`"
            )
        manifest = read_json(folder / "manifest.json", "the manifest of a FeatureStore")
        if manifest.get("format") != FORMAT or manifest.get("version") not in range(1, VERSION + 1):
            raise UserError(
                f"expected {FORMAT} version {VERSION} in {folder}; got {manifest.get('format')!r} version "
                f"{manifest.get('version')!r}; collect it anew"
            )
        return FeatureStore(folder, manifest)

    def __len__(self) -> int:
        return len(self._arrays["count"])

    def __repr__(self) -> str:
        dead = int((self.count == 0).sum())
        about = self.manifest.get("dictionary")
        site = about.get("site") if isinstance(about, dict) else None
        rows = len(self.tokens)
        return f"FeatureStore({self.folder}: {len(self):,} latents of {site} on {rows:,} tokens, {dead:,} silent)"

    _repr_html_ = drawn

    @property
    def count(self) -> Int[Tensor, "latent"]:
        """Tokens on which each latent fires."""
        return self._arrays["count"]

    @property
    def density(self) -> Float[Tensor, "latent"]:
        """Share of the kept tokens on which each latent fires."""
        return self._arrays["density"]

    @property
    def max_value(self) -> Float[Tensor, "latent"]:
        """Largest value of each latent."""
        return self._arrays["max_value"]

    @property
    def column_notes(self) -> dict[str, str]:
        """What each of `columns` means, with its unit."""
        return {name: COLUMN_NOTES[name] for name in self.columns}

    @property
    def tokens(self) -> Int[Tensor, "row"]:
        """Token id of every row of the text (mapped, and not checked)."""
        return self.text.arrays["tokens"]

    @property
    def positions(self) -> Int[Tensor, "row"]:
        """Position of every row within its block."""
        return self.text.arrays["positions"]

    @property
    def documents(self) -> Int[Tensor, "row"]:
        """Document number of every row."""
        return self.text.arrays["documents"]

    @property
    def vocabulary(self) -> list[str]:
        """The string of every token id."""
        return self.text.vocabulary

    @cached_property
    def codebook(self) -> Codebook | None:
        """The codes of the whole text, None where they were not kept."""
        return Codebook.open(self.folder)

    @cached_property
    def labels(self) -> Labels:
        """Labels, notes, tags, stars and scores, with their history."""
        return Labels(self.folder, len(self))

    def __getitem__(self, latent: SupportsIndex) -> Feature:
        latent = self._checked(latent)
        scalar: dict[str, Any] = {
            name: self.columns[name][latent].item() if name in self.columns else empty
            for name, empty in SCALARS.items()
        }
        examples, samples = self._places(latent)
        return Feature(
            latent=latent,
            label=self.label(latent),
            histogram=Histogram(histogram_edges(), self._arrays["histogram"][latent]),
            examples=examples,
            samples=samples,
            tokens=self._shares(latent),
            top_logits=self._logits("top", latent),
            bottom_logits=self._logits("bottom", latent),
            logit_histogram=self._logit_histogram(latent),
            **scalar,
        )

    def _places(self, latent: int) -> tuple[list[Example], list[Example]]:
        """Examples and samples."""
        arrays, before = self._arrays, self.text.before
        try:
            windows = windows_of(arrays, latent, before + 1 + self.text.after)
        except ValueError as error:
            raise damaged(self.folder, str(error)) from error
        names = [name for name in ("example", "sample") if f"{name}_rows" in arrays]
        rows = [row for name in names for row in arrays[f"{name}_rows"][latent].tolist()]
        values = [value for name in names for value in arrays[f"{name}_values"][latent].tolist()]
        bins = [-1] * arrays["example_rows"].shape[1]
        bins += arrays["sample_bins"][latent].tolist() if "sample" in names else []
        found: tuple[list[Example], list[Example]] = ([], [])
        for slot, (row, value, bin) in enumerate(zip(rows, values, bins, strict=True)):
            if row != -1:
                if bin >= BINS:
                    raise damaged(self.folder, f"bin {bin} of a sample")
                windows[slot][before] = value
                found[slot >= arrays["example_rows"].shape[1]].append(self._example(row, windows[slot], bin))
        return found

    def _example(self, row: int, window: list[float], bin: int) -> Example:
        start, stop = self.text.window(row)
        before = self.text.before
        shown = window[before - (row - start) : before + (stop - row)]
        return Example(
            row, *self.text.place(row), window[before], self.text.strings(start, stop), shown, row - start, bin
        )

    def example_at(
        self, latent: int, row: int, values: Float[Tensor, "window"] | None = None, bin: int = -1
    ) -> Example:
        """The text around any row, with the latent's values there.

        `values` are those from `before` rows before it to `after` rows after it (see the manifest; 0 where it is silent).
        Left out, they are looked up in the codebook, or, where there is none, in the examples and samples (else all 0).
        IndexError for a latent that is not there, UserError for such a row, ValueError for too few or many values.
        """
        latent = self._checked(latent)
        if values is None:
            window = self._known_values(latent, row)
        else:
            window = [float(value) for value in values]
            if len(window) != self.text.before + 1 + self.text.after:
                raise ValueError(f"expected {self.text.before + 1 + self.text.after} values; got {len(window)}")
        return self._example(row, window, bin)

    def _known_values(self, latent: int, row: int) -> list[float]:
        start, stop = self.text.window(row)
        before, after = self.text.before - (row - start), self.text.after - (stop - row - 1)
        shown = [0.0] * (stop - start)
        if self.codebook is not None and self.codebook.rows >= stop:
            shown = self.codebook.values(latent, start, stop).tolist()
        else:
            known = [place for places in self._places(latent) for place in places if place.row == row]
            shown = known[0].values if known else shown
        return [0.0] * before + shown + [0.0] * after

    def _logits(self, which: str, latent: int) -> list[tuple[str, float]]:
        if f"{which}_logit_tokens" not in self._arrays:
            return []
        tokens, values = self._arrays[f"{which}_logit_tokens"][latent], self._arrays[f"{which}_logit_values"][latent]
        return [(self.text.token(token), value) for token, value in zip(tokens.tolist(), values.tolist(), strict=True)]

    def _shares(self, latent: int) -> list[TokenShare]:
        if "token_ids" not in self._arrays:
            return []
        columns = (self._arrays[f"token_{name}"][latent].tolist() for name in ("ids", "counts", "lift"))
        fires = max(int(self.count[latent]), 1)
        return [
            TokenShare(self.text.token(token), count, count / fires, lift)
            for token, count, lift in zip(*columns, strict=True)
            if token != -1
        ]

    def _logit_histogram(self, latent: int) -> Histogram | None:
        if "logit_histogram" not in self._arrays:
            return None
        counts, (low, high) = self._arrays["logit_histogram"][latent], self._arrays["logit_range"][latent].tolist()
        return Histogram(torch.linspace(low, high, len(counts) + 1), counts)

    def neighbours(self, latent: int, n: int = 8) -> list[tuple[int, float]]:
        """The latents with the nearest decoder rows, and their cosines (at most as many as were collected)."""
        latent = self._checked(latent)
        indices, cosines = self._arrays["neighbours"][latent, :n], self._arrays["neighbour_cosines"][latent, :n]
        found = list(zip(indices.tolist(), cosines.tolist(), strict=True))
        if not all(0 <= other < len(self) for other, _ in found):
            raise damaged(self.folder, f"neighbours of latent {latent}")
        return found

    def interesting(self, n: int = 10) -> list[int]:
        """Latents worth a first look, by a stated statistic.

        Candidates have density in [1e-4, 1e-2], a full list of examples, and varied contexts (context entropy at least three
        quarters of its maximum, so no repeated boilerplate). Half of the answer fires on one token in many contexts (token
        entropy up to 0.5 bits), half on a family of tokens (1 to 3 bits); in each, densities nearest 1e-3 come first.
        """
        return interesting(self.columns, self._arrays["example_rows"], n)

    def label(self, latent: int) -> str | None:
        """The label of a latent, if someone gave it one."""
        return self.labels.get(latent).label

    def set_label(self, latent: int, label: str) -> None:
        """Keep a label for a latent (replacing an earlier one)."""
        latent = self._checked(latent)
        self.labels.set(latent, label=label)

    def _checked(self, latent: Any) -> int:
        try:
            number = operator.index(latent)
        except TypeError as error:
            raise TypeError(
                f"expected the number of a latent; got {latent!r:.80}; `columns` has the statistics, `search` finds by text"
            ) from error
        if not 0 <= number < len(self):
            raise IndexError(f"expected a latent in [0, {len(self)}); got {number}")
        return number


# Statistics that are fields of a Feature, and what they are where the store has not collected them.
SCALARS: dict[str, float] = {
    **dict.fromkeys(
        ("count", "density", "mean_value", "std_value", "max_value", "token_entropy", "context_entropy"), 0
    ),
    **dict.fromkeys(("encoder_cosine", "position_share", "mean_position"), math.nan),
    "position_top": -1,
}


def _columns(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every statistic that is one number a latent."""
    derived = {}
    if arrays["neighbour_cosines"].shape[1]:
        derived["nearest_cosine"] = arrays["neighbour_cosines"][:, 0]
    if "logit_range" in arrays:
        derived |= {"logit_min": arrays["logit_range"][:, 0], "logit_max": arrays["logit_range"][:, 1]}
    known = arrays | derived
    return {name: known[name] for name in COLUMN_NOTES if name in known}


def _map(path: Path) -> dict[str, Tensor]:
    try:
        return map_tensors(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"expected a FeatureStore file at {path}; could not read it ({error}); collect it anew"
        ) from error
