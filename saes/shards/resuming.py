"""Going on with Shards that were begun: what has to be the same, which shards are whole, and which text they hold.

A shard that is missing or damaged is written anew, and so are those after it: the text is gone through again in any case. That
the text is the same is told by a digest of each shard's tokens, so nothing is read back from a remote folder.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..errors import UserError
from ..text import Block
from .manifest import FORMAT, VERSION
from .storage import Folder

CHUNK = 2**22  # bytes
SAME = ("context", "dtype", "target_rows", "packed")


def digests(path: Path) -> dict[str, str]:
    """SHA-256 and xxh3 (128 bits) of a file, from one reading."""
    sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_128()
    with path.open("rb", buffering=0) as handle:
        while chunk := handle.read(CHUNK):
            sha256.update(chunk)
            xxh3.update(chunk)
    return {"sha256": sha256.hexdigest(), "xxh3": xxh3.hexdigest()}


def tokens_digest(tokens: Tensor) -> str:
    """xxh3 (128 bits) of tokens as int32."""
    return xxhash.xxh3_128(tokens.to(torch.int32).contiguous().numpy().data).hexdigest()


def continued(folder: Folder, old: dict[str, Any], new: dict[str, Any], sites: list[str]) -> dict[str, Any]:
    """The manifest to go on from: the old one; where a shard is missing or damaged, without it and those after it.

    UserError unless it was begun with the same model, BOS rule, dtype, context, target, packing and sites. Of a finished folder
    the sizes are compared, not the checksums.
    """
    _check_same(folder, old, new, sites)
    whole = list(itertools.takewhile(lambda entry: is_whole(folder, entry, old["finished"]), old["shards"]))
    if len(whole) == len(old["shards"]):
        return old
    logging.getLogger(__name__).warning(
        "%s is missing or damaged; it and the %d shards after it are written anew",
        folder.at(old["shards"][len(whole)]["file"]), len(old["shards"]) - len(whole) - 1,
    )  # fmt: skip
    rows = sum(entry["rows"] for entry in whole)
    return {**old, "shards": whole, "rows": rows, "finished": False, "fingerprint": ""}


def _check_same(folder: Folder, old: dict[str, Any], new: dict[str, Any], sites: list[str]) -> None:
    kind = (old.get("format"), old.get("version"))
    if kind != (FORMAT, VERSION) and not (old["finished"] and kind[0] == FORMAT):
        raise UserError(
            f"expected to resume {FORMAT} version {VERSION} in {folder}; got {kind[0]!r} version {kind[1]!r}; use a new folder"
        )
    models = [
        {part: info.get(part) for part in ("name", "fingerprint", "bos")} for info in (old["model"], new["model"])
    ]
    pairs = [("model", *models), *((key, old.get(key, new[key]), new[key]) for key in SAME)]
    pairs.append(("sites", ", ".join(site["name"] for site in old["sites"]), ", ".join(sites)))
    for key, was, now in pairs:
        if was != now:
            raise UserError(f"expected to resume {folder} with {key} {was}; got {now}; give the same or a new folder")


def is_whole(folder: Folder, entry: dict[str, Any], by_size: bool = False) -> bool:
    """Whether a shard's file has its size and, in a local folder (unless only the size is asked for), its checksum."""
    try:
        if folder.size(entry["file"]) != entry["bytes"]:
            return False
    except FileNotFoundError:
        return False
    return by_size or folder.local is None or digests(folder.local / entry["file"])["sha256"] == entry["sha256"]


def skip_written(folder: Folder, shards: list[dict[str, Any]], blocks: Iterator[Block]) -> Iterator[Block]:
    """Pass over the blocks that are in shards, after comparing their tokens with what is there."""
    for entry in shards:
        given = [block.tokens for block in itertools.islice(blocks, entry["blocks"])]
        tokens = torch.cat([torch.zeros(0, dtype=torch.int64), *given])[: entry["rows"]]
        # The last block on disk may have been cut at the target.
        if len(tokens) < entry["rows"] or tokens_digest(tokens) != entry["tokens"]:
            raise UserError(f"expected the text that {folder} was begun with; got another; give it or a new folder")
    return blocks
