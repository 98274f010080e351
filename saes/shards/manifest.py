"""The manifest of a Shards folder: what is in it, and whether it can be trusted.

Version 2 added `xxh3` to the entries of shards, the columns `SITE.norm` and `SITE.scale`, and int8. Version 1 is read.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from ..errors import UserError
from .storage import Folder, safe_name

FORMAT, VERSION = "unweave.shards", 2
MANIFEST = "manifest.json"


def open_manifest(folder: Folder, unfinished: bool) -> dict[str, Any]:
    """The manifest of a finished folder (or, with `unfinished`, of any); UserError unless all shards are there in full size."""
    manifest = folder.read_json(MANIFEST, "the manifest of a Shards folder")
    if manifest.get("format") != FORMAT or manifest.get("version") not in range(1, VERSION + 1):
        raise UserError(
            f"expected {FORMAT} version 1 to {VERSION} in {folder}; got {manifest.get('format')!r} version "
            f"{manifest.get('version')!r}; cache the activations again with this version"
        )
    if not _is_whole(manifest):
        raise UserError(
            f"expected a whole manifest in {folder}; entries are missing or malformed; cache the activations anew"
        )
    if not manifest["finished"] and not unfinished:
        raise UserError(
            f"expected a finished Shards folder; {folder} stopped at {manifest['rows']:,} of "
            f"{manifest['target_rows']:,} rows; finish it with `unweave cache … --out {folder} --resume`"
        )
    if manifest["finished"] and manifest["fingerprint"] != fingerprint(manifest["shards"]):
        raise UserError(
            f"expected the fingerprint of {folder} to be that of its shards; it differs; the manifest is damaged, cache anew"
        )
    sizes = folder.sizes()
    for entry in manifest["shards"]:
        size = sizes.get(entry["file"])
        if size != entry["bytes"]:
            came = "no file" if size is None else f"{size:,} bytes"
            raise UserError(
                f"expected {folder.at(entry['file'])} of {entry['bytes']:,} bytes; got {came}; the folder is damaged, cache it anew"
            )
    return manifest


def fingerprint(shards: list[dict[str, Any]]) -> str:
    """Names the content of shards: SHA-256 over their SHA-256s."""
    return hashlib.sha256("".join(entry["sha256"] for entry in shards).encode()).hexdigest()[:32]


def stored_dtype(manifest: dict[str, Any]) -> torch.dtype:
    """What activations are stored in."""
    return getattr(torch, manifest["dtype"])


def norm_column(manifest: dict[str, Any], site: str) -> str | None:
    """Name of the column with a site's norms; None where a site bears that name, whose activations those are then."""
    name = f"{site}.norm"
    return None if name in {one["name"] for one in manifest["sites"]} else name


def _is_whole(manifest: dict[str, Any]) -> bool:
    """Whether every entry that reading needs is there, and only files of the folder itself are named."""
    try:
        dtype = stored_dtype(manifest)
        for entry in manifest["shards"]:
            safe_name(entry["file"])
        return (
            isinstance(dtype, torch.dtype)
            and (dtype.is_floating_point or dtype == torch.int8)
            and all(isinstance(site["name"], str) and int(site["width"]) > 0 for site in manifest["sites"])
            and bool(manifest["sites"] or not manifest["shards"])
            and all(int(entry["rows"]) > 0 and isinstance(entry["sha256"], str) for entry in manifest["shards"])
            and sum(int(entry["rows"]) for entry in manifest["shards"]) == manifest["rows"]
            and all({"bytes", "blocks"} <= entry.keys() for entry in manifest["shards"])
            and bool(manifest["rows"] or not manifest["finished"])
            and {"name", "fingerprint", "bos"} <= manifest["model"].keys()
            and {"finished", "fingerprint", "context", "target_rows"} <= manifest.keys()
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
