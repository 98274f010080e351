"""FeatureStore: what each latent does, on disk, opened without a model.

A folder with `manifest.json` (provenance), `features.safetensors` (fixed-width arrays, memory-mapped; see stats.py and
collect.py for how each is made), `tokens.safetensors` (the text's tokens and the vocabulary) and `labels.sqlite` (labels and
notes, the one part that changes). Keys are in docs/formats.md.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..io import map_tensors, read_json, write_json, write_tensors
from ..shards import Shards
from .stats import histogram_edges

FORMAT, VERSION = "unweave.features", 1
COLUMNS = ("count", "density", "mean_value", "std_value", "max_value", "token_entropy", "context_entropy")


class Histogram(NamedTuple):
    """Counts of a latent's values in log-spaced bins."""

    edges: Float[Tensor, "edge"]
    counts: Int[Tensor, "bin"]


class Example(NamedTuple):
    """A place where a latent fires: `tokens` with the latent's `values`, `focus` the index of the one it is shown for."""

    row: int
    document: int
    position: int
    value: float
    tokens: list[str]
    values: list[float]
    focus: int


class Feature(NamedTuple):
    """Everything the store knows of one latent. Logit lists are (token, direct effect)."""

    latent: int
    label: str | None
    count: int
    density: float
    mean_value: float
    max_value: float
    token_entropy: float
    context_entropy: float
    histogram: Histogram
    examples: list[Example]
    top_logits: list[tuple[str, float]]
    bottom_logits: list[tuple[str, float]]


class FeatureStore:
    """An opened store: `store[latent]` is a Feature, `store.columns` the table of all latents."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self._arrays, self._tokens = (_map(folder / f"{name}.safetensors") for name in ("features", "tokens"))
        _check_arrays(folder, self._arrays, self._tokens)
        self.columns: dict[str, Tensor] = {name: self._arrays[name] for name in COLUMNS}

    @staticmethod
    def open(folder: str | Path) -> FeatureStore:
        """Open a folder that `collect` wrote; UserError if it is something else or damaged."""
        folder = Path(folder)
        manifest = read_json(folder / "manifest.json", "the manifest of a FeatureStore")
        if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
            raise UserError(
                f"expected {FORMAT} version {VERSION} in {folder}; got {manifest.get('format')!r} version "
                f"{manifest.get('version')!r}; collect it anew"
            )
        return FeatureStore(folder, manifest)

    def __len__(self) -> int:
        return len(self._arrays["count"])

    def __repr__(self) -> str:
        dead = int((self.count == 0).sum())
        site = self.manifest["dictionary"]["site"]
        rows = self.manifest["rows"]
        return f"FeatureStore({self.folder}: {len(self):,} latents of {site} on {rows:,} tokens, {dead:,} silent)"

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

    @cached_property
    def vocabulary(self) -> list[str]:
        """The string of every token id."""
        data, ends = bytes(self._tokens["vocab_bytes"].tolist()), self._tokens["vocab_ends"].tolist()
        return [data[start:end].decode("utf-8", "surrogatepass") for start, end in zip([0, *ends], ends, strict=False)]

    def __getitem__(self, latent: int) -> Feature:
        self._check(latent)
        arrays = self._arrays
        scalar: dict[str, Any] = {name: arrays[name][latent].item() for name in COLUMNS if name != "std_value"}
        return Feature(
            latent=latent,
            label=self.label(latent),
            histogram=Histogram(histogram_edges(), arrays["histogram"][latent]),
            examples=[
                self._example(latent, i)
                for i in range(arrays["example_rows"].shape[1])
                if arrays["example_rows"][latent, i] >= 0
            ],
            top_logits=self._logits("top", latent),
            bottom_logits=self._logits("bottom", latent),
            **scalar,
        )

    def _example(self, latent: int, number: int) -> Example:
        row = int(self._arrays["example_rows"][latent, number])
        positions, documents, ids = (self._tokens[name] for name in ("positions", "documents", "tokens"))
        before, after = self.manifest["before"], self.manifest["after"]
        start = row - min(before, int(positions[row]))
        stop = row + 1
        while stop < len(ids) and stop <= row + after and positions[stop] > 0:
            stop += 1
        window = self._arrays["example_windows"][latent, number]
        values = window[before - (row - start) : before + (stop - row)].float().tolist()
        tokens = [self.vocabulary[token] for token in ids[start:stop].tolist()]
        value = float(self._arrays["example_values"][latent, number])
        return Example(row, int(documents[row]), int(positions[row]), value, tokens, values, row - start)

    def _logits(self, which: str, latent: int) -> list[tuple[str, float]]:
        if f"{which}_logit_tokens" not in self._arrays:
            return []
        tokens, values = self._arrays[f"{which}_logit_tokens"][latent], self._arrays[f"{which}_logit_values"][latent]
        return [(self.vocabulary[token], value) for token, value in zip(tokens.tolist(), values.tolist(), strict=True)]

    def neighbours(self, latent: int, n: int = 8) -> list[tuple[int, float]]:
        """The latents with the nearest decoder rows, and their cosines (at most as many as were collected)."""
        indices, cosines = self._arrays["neighbours"][latent, :n], self._arrays["neighbour_cosines"][latent, :n]
        return list(zip(indices.tolist(), cosines.tolist(), strict=True))

    def interesting(self, n: int = 10) -> list[int]:
        """Latents worth a first look, by a stated statistic.

        Candidates have density in [1e-4, 1e-2], a full list of examples, and varied contexts (context entropy at least three
        quarters of its maximum, so no repeated boilerplate). Half of the answer fires on one token in many contexts (token
        entropy up to 0.5 bits), half on a family of tokens (1 to 3 bits); in each, densities nearest 1e-3 come first.
        """
        full = (self._arrays["example_rows"] >= 0).all(1)
        most = torch.tensor(float(self._arrays["example_rows"].shape[1])).log2()
        varied = self.columns["context_entropy"] >= 0.75 * most
        candidates = full & varied & (self.density >= 1e-4) & (self.density <= 1e-2)
        bits = self.columns["token_entropy"]
        families = (bits <= 0.5, (bits >= 1) & (bits <= 3), torch.ones_like(candidates))
        one, several, any_ = (self._nearest(candidates & family) for family in families)
        chosen = one[: n // 2] + several[: n - n // 2]
        return (chosen + [latent for latent in any_ if latent not in chosen])[:n]

    def _nearest(self, wanted: Bool[Tensor, "latent"]) -> list[int]:
        """The wanted latents, densities nearest 1e-3 (in ratio) first."""
        latents = wanted.nonzero().squeeze(1)
        return latents[(self.density[latents] / 1e-3).log().abs().argsort(stable=True)].tolist()

    def label(self, latent: int) -> str | None:
        """The label of a latent, if someone gave it one."""
        if not (self.folder / "labels.sqlite").exists():
            return None
        with self._labels() as database:
            row = database.execute("SELECT label FROM labels WHERE latent = ?", (int(latent),)).fetchone()
        return row[0] if row else None

    def set_label(self, latent: int, label: str) -> None:
        """Keep a label for a latent (replacing an earlier one)."""
        self._check(latent)
        with self._labels() as database:
            database.execute(
                "INSERT INTO labels VALUES (?, ?) ON CONFLICT DO UPDATE SET label = excluded.label",
                (int(latent), label),
            )

    @contextlib.contextmanager
    def _labels(self) -> Iterator[sqlite3.Connection]:
        """A connection for one statement, so that any thread may call; UserError when the file is damaged or locked away."""
        path = self.folder / "labels.sqlite"
        try:
            with contextlib.closing(sqlite3.connect(path)) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS labels (latent INTEGER PRIMARY KEY, label TEXT NOT NULL)")
                yield database
        except sqlite3.Error as error:
            raise UserError(
                f"expected a labels database at {path}; could not use it ({error}); restore or remove it"
            ) from error

    def _check(self, latent: int) -> None:
        if not 0 <= latent < len(self):
            raise IndexError(f"expected a latent in [0, {len(self)}); got {latent}")


def _map(path: Path) -> dict[str, Tensor]:
    try:
        return map_tensors(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"expected a FeatureStore file at {path}; could not read it ({error}); collect it anew"
        ) from error


def _check_arrays(folder: Path, arrays: dict[str, Tensor], tokens: dict[str, Tensor]) -> None:
    """UserError unless every array is there, as long as the others, and points only at rows, tokens and latents there are."""
    needed = {
        *COLUMNS,
        "histogram",
        "example_rows",
        "example_values",
        "example_windows",
        "neighbours",
        "neighbour_cosines",
    }
    columns = {"tokens", "positions", "documents"}
    is_whole = (
        needed <= arrays.keys()
        and {*columns, "vocab_bytes", "vocab_ends"} <= tokens.keys()
        and len({len(arrays[name]) for name in needed}) == 1
        and len({len(tokens[name]) for name in columns}) == 1
        and _below(arrays["example_rows"], len(tokens["tokens"]), least=-1)
        and _below(arrays["neighbours"], len(arrays["count"]))
        and all(
            _below(part, len(tokens["vocab_ends"])) for name, part in arrays.items() if name.endswith("_logit_tokens")
        )
        and _below(tokens["tokens"], len(tokens["vocab_ends"]))
    )
    if not is_whole:
        raise UserError(f"expected a whole FeatureStore in {folder}; its arrays do not fit together; collect it anew")


def _below(numbers: Tensor, limit: int, least: int = 0) -> bool:
    return not numbers.numel() or bool(least <= numbers.min() and numbers.max() < limit)


def write_store(
    folder: Path, manifest: dict[str, Any], arrays: dict[str, Tensor], shards: Shards, vocab: list[str]
) -> None:
    """Write the files of a store, the manifest last, so that a folder with one is whole."""
    encoded = [token.encode("utf-8", "surrogatepass") for token in vocab]
    tokens = {name: getattr(shards, name).int() for name in ("tokens", "positions", "documents")}
    tokens["vocab_bytes"] = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)
    tokens["vocab_ends"] = torch.tensor([len(token) for token in encoded]).cumsum(0)
    write_tensors(folder / "features.safetensors", arrays)
    write_tensors(folder / "tokens.safetensors", tokens)
    write_json(folder / "manifest.json", {"format": FORMAT, "version": VERSION, **manifest})
