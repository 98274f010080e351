"""Where a dictionary lies that is named by text: on the disk, on the Hugging Face hub, or in SAELens' registry of releases.

A `Path` is local. A `str` is local where something is there, else `owner/name`, `owner/name/folder` or `owner/name/folder/file`
on the hub, or `release/sae_id` (releases.py). Of a repository only the files of that one dictionary are fetched. Without the hub, or
with HF_HUB_OFFLINE, what the cache has is used.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError
from . import releases
from .build import Given
from .files import ENDINGS

PART = re.compile(r"\w[\w.+=@ -]*")  # so neither . nor ..
BESIDE = (
    "cfg.json",
    "config.json",
    "config.yaml",
    "hyperparams.json",
    "activation_scaler.json",
    "checkpoints/final.safetensors",
)
"""Files that belong to a dictionary, besides its tensors."""
TENSORS = re.compile(r"(sae_weights|sae|params)\.safetensors|params\.npz|ae\.pt|W_(enc|dec)_\d{1,3}\.safetensors")
LAYERS = re.compile(r"layer_\d{1,3}.*\.safetensors")


def place_of(path: str | Path, given: Given) -> tuple[Path, Given]:
    """The local path of a dictionary, fetched if need be, and what is known of it."""
    try:
        local = Path(path).expanduser()
        here = local.exists()
    except (ValueError, RuntimeError, OSError) as error:  # a zero in it, an unknown user, a name too long
        raise UserError(
            f"expected the path or name of a dictionary; got {str(path)[:80]!r} ({error}); mend it"
        ) from error
    if isinstance(path, Path) or here or not _names_hub(path):
        return local, given
    release = releases.find(path)
    if release is None:
        owner, name, *inside = path.split("/")
        try:
            return fetched(f"{owner}/{name}", "/".join(inside)), given
        except UserError:
            release = releases.find(path, fetch=True)
            if release is None:
                raise
    return fetched(release.repository, release.inside), given._replace(scale=given.scale or release.scale)


def _names_hub(path: str) -> bool:
    """True for two or more plain parts: nothing that leaves a folder, no absolute path."""
    parts = path.split("/")
    return len(parts) >= 2 and all(PART.fullmatch(part) for part in parts) and len(path) < 500


def fetched(repository: str, inside: str) -> Path:
    """The local copy of one dictionary of a repository. UserError where neither the hub nor the cache has it."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        # One question and no retries: what was asked for may only be a path that was mistyped.
        files = [file.rfilename for file in HfApi().model_info(repository, timeout=10).siblings or []]
    except Exception as error:  # whatever hinders it, the cache may still have the files
        return _cached(repository, inside, error)
    wanted = belonging(files, inside)
    if not wanted:
        near = sorted(
            {file for file in files if file.startswith(inside.split("/")[0]) and file.endswith(ENDINGS)} or set(files)
        )
        raise UserError(
            f"expected a dictionary at {inside or 'the top'} of {repository}; got none; there are {', '.join(near[:6])[:300]}, ..."
        )
    try:
        copy = snapshot_download(repository, allow_patterns=[glob.escape(file) for file in wanted])
    except Exception as error:  # a connection that breaks, a disk that is full: all of them end here
        return _cached(repository, inside, error)
    return Path(copy) / inside


def belonging(files: list[str], inside: str) -> list[str]:
    """Of a repository's files those of the dictionary at `inside`, a folder or a file."""
    if inside in files:
        folder = PurePosixPath(inside).parent
        near = [str(folder / name) for name in BESIDE] + [str(folder.parent / "config.json")] * (
            folder.name == "checkpoints"
        )
        return [inside, *(name for name in near if name in files)]
    start = f"{inside}/" if inside else ""
    names = [file.removeprefix(start) for file in files if file.startswith(start)]
    found = [name for name in names if TENSORS.fullmatch(name) or name == BESIDE[-1]]
    if not found:  # the layers of a cross-layer transcoder of Gemma Scope 2
        found = [name for name in names if LAYERS.fullmatch(name)] if "clt" in inside else []
    return [start + name for name in [*found, *(name for name in BESIDE[:-1] if found and name in names)]]


def _cached(repository: str, inside: str, error: Exception) -> Path:
    from huggingface_hub import snapshot_download

    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    try:
        copy = Path(snapshot_download(repository, local_files_only=True)) / inside
    except Exception:  # there is no copy
        copy = None
    if copy is None or not copy.exists():
        raise UserError(
            f"expected {repository}{'/' + inside if inside else ''} as a local path, in the hub's cache, or on the hub; got none "
            f"({reason}); check the name and the connection, or give the path of a local copy"
        ) from error
    return copy


def check_repository(repo_id: Any) -> str:
    """`owner/name`, or `name` for one's own; UserError otherwise."""
    if not isinstance(repo_id, str) or not re.fullmatch(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", repo_id) or ".." in repo_id:
        raise UserError(f"expected owner/name of a repository on the hub; got {str(repo_id)[:80]!r}; mend the name")
    return repo_id
