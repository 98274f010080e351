"""SAELens' registry of releases, `pretrained_saes.yaml`: `release/sae_id` → a repository of the hub and a folder in it.

It is taken from an installed sae_lens (which is not imported), else from our cache beside the hub's, else, when a name was found nowhere
else and the hub may be asked, from SAELens' public repository into that cache. Each release has `repo_id`, `conversion_func` and
`saes` with `id`, `path`, and sometimes `norm_scaling_factor`. What a path holds is told by its files, as everywhere.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..io import atomic_path
from .files import LARGEST_TEXT, read_yaml

SOURCE = "https://raw.githubusercontent.com/decoderesearch/SAELens/main/sae_lens/pretrained_saes.yaml"
REFUSED = {
    "temporal": "a temporal dictionary encodes a token from those before it",
    "mntss_clt_layer_transcoder": "it is one layer of a cross-layer transcoder: load the whole, {repository}",
}


class Release(NamedTuple):
    """Where a dictionary of the registry lies, and what its activations are multiplied by if that is told (else 0)."""

    repository: str
    inside: str
    scale: float


def find(name: str, *, fetch: bool = False) -> Release | None:
    """The entry of `release/sae_id`, None if there is no such release or no registry at hand. UserError for an unknown sae_id."""
    path = _registry()
    if path is None and fetch:
        path = _fetched()
    release, _, sae_id = name.partition("/")
    entry = _read(path, path.stat().st_mtime_ns).get(release) if path is not None else None
    if not isinstance(entry, dict) or not isinstance(entry.get("repo_id"), str):
        return None
    saes = entry.get("saes")
    known = (
        {str(sae["id"]): sae for sae in saes if isinstance(sae, dict) and "id" in sae} if isinstance(saes, list) else {}
    )
    if sae_id not in known:
        raise UserError(
            f"expected a dictionary of the release {release}; got {sae_id!r}; it has {', '.join(list(known)[:6])[:300]}, ..."
        )
    kind = entry.get("conversion_func")
    if isinstance(kind, str) and kind in REFUSED:
        raise UserError(f"{name} is not loaded: {REFUSED[kind].format(repository=entry['repo_id'])}")
    return _release(name, entry["repo_id"], known[sae_id])


def _release(name: str, repository: str, sae: dict[str, Any]) -> Release:
    inside, scale = str(sae.get("path") or ""), sae.get("norm_scaling_factor", 0)
    if inside.startswith("/") or ".." in inside.split("/") or type(scale) not in (int, float):
        raise UserError(
            f"expected the path of a folder for {name} in SAELens' registry; got {inside[:80]!r}; it is damaged"
        )
    return Release(repository, inside.strip("/"), float(scale))


def _registry() -> Path | None:
    """The file of an installed sae_lens, else our copy."""
    spec = importlib.util.find_spec("sae_lens")
    installed = Path(spec.origin).with_name("pretrained_saes.yaml") if spec is not None and spec.origin else None
    return next((path for path in (installed, _copy()) if path is not None and path.is_file()), None)


def _copy() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "unweave" / "pretrained_saes.yaml"


def _fetched() -> Path | None:
    """Our copy, fetched now; None offline or where its source cannot be reached."""
    from urllib.request import urlopen

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return None
    try:
        with urlopen(SOURCE, timeout=10) as answer:
            text = answer.read(LARGEST_TEXT + 1)
        if len(text) > LARGEST_TEXT:
            return None
        with atomic_path(_copy()) as temporary:
            temporary.write_bytes(text)
    except OSError:
        return None
    return _copy()


@functools.lru_cache(maxsize=2)
def _read(path: Path, changed: int) -> dict[str, Any]:
    """The registry; parsed once as long as the file does not change."""
    return read_yaml(path, "SAELens' registry")
