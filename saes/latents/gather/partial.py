"""The unfinished part of a FeatureStore: what a killed `collect` leaves, and how the next one goes on from it.

    unfinished.json       the settings of the pass; there from the first moment to the last
    state.safetensors     FeatureStats after some rows, a batch's end; the codes up to there are durable before it is written
    manifest.json         written last: a folder that has one is a whole store

A folder with `unfinished.json` is ours to go on with (same settings) or to begin anew; any other file makes it someone else's.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...io import is_temporary, read_json, read_tensors, write_json, write_tensors
from .stats import FeatureStats

SETTINGS, STATE, MANIFEST = "unfinished.json", "state.safetensors", "manifest.json"
WORK = 2**33  # tokens x latents between two checkpoints


def versions() -> dict[str, str]:
    """What a number may depend on in its last bits."""
    return {
        "unweave": importlib.metadata.version("unweave"),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }


class Partial:
    """The unfinished store at `folder` with these settings; `is_done` if only its last files had to be removed."""

    def __init__(self, folder: Path, settings: dict[str, Any], resume: bool):
        self.folder, self.is_done = folder, False
        present = [path for path in folder.iterdir() if not is_temporary(path.name)] if folder.exists() else []
        if present and not (folder / SETTINGS).exists():
            raise UserError(f"expected an empty folder for the FeatureStore; {folder} has files; choose another")
        if present and resume:
            self._check(settings)
            self.is_done = (folder / MANIFEST).exists()
        if folder.exists():
            for path in list(folder.iterdir()):
                if is_temporary(path.name):
                    path.unlink()
        if self.is_done:
            self.remove()
            return
        if not resume:
            for name in (MANIFEST, STATE):
                (folder / name).unlink(missing_ok=True)
        if not present or not resume:
            write_json(folder / SETTINGS, settings | {"versions": versions()})

    def _check(self, settings: dict[str, Any]) -> None:
        old = read_json(self.folder / SETTINGS, "the settings of an unfinished FeatureStore")
        differ = [
            f"{key} {settings[key]} instead of {old.get(key)}" for key in settings if old.get(key) != settings[key]
        ]
        if differ:
            raise UserError(
                f"expected to go on with {self.folder} as it was begun; got {', '.join(differ)}; use the same settings, "
                "begin anew (resume off), or choose another folder"
            )
        if old.get("versions") != versions():
            warnings.warn(
                f"{self.folder} was begun with {old.get('versions')}, and goes on with {versions()}; the last bits may differ",
                stacklevel=4,
            )

    def load(self, stats: FeatureStats) -> int:
        """Bring `stats` to where the pass stopped; the number of rows that it has seen."""
        if (self.folder / STATE).exists():
            state = read_tensors(self.folder / STATE, "the state of an unfinished FeatureStore")
            expected = {name: (tensor.dtype, tensor.ndim) for name, tensor in stats.state().items()}
            if {name: (tensor.dtype, tensor.ndim) for name, tensor in state.items()} != expected:
                raise UserError(
                    f"expected the state of an unfinished FeatureStore in {self.folder}; got another's; begin anew (resume off)"
                )
            stats.load(state)
        return stats.rows

    def save(self, stats: FeatureStats) -> None:
        """Keep the state durably."""
        state: dict[str, Tensor] = stats.state()
        write_tensors(self.folder / STATE, state)

    def remove(self) -> None:
        """Remove what only an unfinished store has, the settings last."""
        for name in (STATE, SETTINGS):
            (self.folder / name).unlink(missing_ok=True)


def checkpoint_tokens(latents: int) -> int:
    """Tokens between checkpoints, so that work between them is about the same whatever the dictionary."""
    return max(1, WORK // latents)
