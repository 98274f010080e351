"""Write Shards so that the manifest on disk always describes exactly the shards that are whole.

Rows are collected until they fill a shard, which is written under a temporary name, flushed, renamed, and only then
entered in the manifest. What a killed run leaves is a valid, unfinished folder; `ShardWriter(resume=True)` continues it
after checking that model, BOS rule, dtype, context, target and text are those it was begun with.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .io import read_json, sha256_file, write_json, write_tensors
from .models import ModelInfo
from .shards import FORMAT, VERSION, Shards
from .text import Block, PaddedBlocks


class ShardWriter:
    """Appends rows to a folder of at most `target` rows; `rows` counts what was handed over, on disk or not yet.

    `about_text` gives the manifest's `text` from the number of the last document on disk.
    """

    def __init__(
        self, folder: Path, model: ModelInfo, sites: list[str], dtype: torch.dtype, target: int, context: int,
        shard_mib: int, resume: bool, about_text: Callable[[int], dict[str, Any]] | None = None,
    ):  # fmt: skip
        self.folder, self.sites, self.dtype, self._limit = folder, sites, dtype, shard_mib * 2**20
        self._parts: list[dict[str, Tensor]] = []
        self._blocks = 0
        self._about_text = about_text
        self.manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "model": model.dict(),
            "text": None,
            "special_tokens": "one BOS at position 0 of each block where the model has one; no others added",
            "context": context,
            "dtype": str(dtype).removeprefix("torch."),
            "sites": [],
            "target_rows": target,
            "rows": 0,
            "shards": [],
            "finished": False,
            "fingerprint": "",
        }
        old = read_json(folder / "manifest.json", "a manifest") if (folder / "manifest.json").exists() else None
        if old and old.get("format") == FORMAT and not old.get("shards"):
            self._save()  # a run that ended before its first shard left nothing to keep
        elif resume and old:
            self._reopen()
        elif folder.exists() and any(folder.iterdir()):
            raise UserError(f"expected an empty folder for Shards; {folder} has files; give --resume or another folder")
        else:
            self._save()
        self.rows: int = self.manifest["rows"]

    def _reopen(self) -> None:
        old = Shards.open(self.folder, unfinished=True).manifest
        for key in ("model", "context", "dtype", "target_rows"):
            was, now = old[key], self.manifest[key]
            if key == "model":
                was, now = ({part: info[part] for part in ("name", "fingerprint", "bos")} for info in (was, now))
            if was != now:
                raise UserError(
                    f"expected to resume {self.folder} with {key} {was}; got {now}; give the same or a new folder"
                )
        if [site["name"] for site in old["sites"]] != self.sites:
            raise UserError(
                f"expected to resume {self.folder} with its sites ({', '.join(site['name'] for site in old['sites'])}); "
                f"got {', '.join(self.sites)}; give the same or a new folder"
            )
        self.manifest = old

    def skip_written(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Pass over the blocks that are on disk, after comparing their tokens with what is there."""
        count = sum(entry["blocks"] for entry in self.manifest["shards"])
        if count:
            written = Shards.open(self.folder, unfinished=True).tokens
            given = torch.cat([written[:0], *(block.tokens for block in itertools.islice(blocks, count))])
            # The last block on disk may have been cut at the target.
            if len(given) < len(written) or not torch.equal(given[: len(written)], written):
                raise UserError(
                    f"expected the text that {self.folder} was begun with; got another; give it or a new folder"
                )
        return blocks

    def add(self, activations: dict[str, Tensor], blocks: PaddedBlocks) -> None:
        """Append the rows of one forward pass, cut at the target; close the shard when it is full."""
        part = {site: rows.to(self.dtype) for site, rows in activations.items()}
        for site, rows in part.items():
            if not torch.isfinite(rows).all():
                most = float(activations[site].abs().max())
                raise UserError(
                    f"expected activations that fit {self.manifest['dtype']}; got {most:.3g} at {site}; "
                    "store bfloat16 or float32"
                )
        columns = zip(("tokens", "positions", "documents"), blocks.rows(), strict=True)
        part |= {name: column.int() for name, column in columns}
        room = self.manifest["target_rows"] - self.rows
        part = {name: rows[:room] for name, rows in part.items()}
        self.manifest["sites"] = [{"name": site, "width": activations[site].shape[1]} for site in self.sites]
        self._parts.append(part)
        self._blocks += len(blocks.tokens)
        self.rows += len(part["tokens"])
        if sum(rows.nbytes for part in self._parts for rows in part.values()) >= self._limit:
            self._flush()

    def _flush(self) -> None:
        if not self._parts:
            return
        path = self.folder / f"shard-{len(self.manifest['shards']):05d}.safetensors"
        tensors = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        write_tensors(path, tensors)
        entry = {
            "file": path.name,
            "rows": len(tensors["tokens"]),
            "blocks": self._blocks,
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        self.manifest["shards"].append(entry)
        self.manifest["rows"] += entry["rows"]
        if self._about_text:
            self.manifest["text"] = self._about_text(int(tensors["documents"][-1]))
        self._parts, self._blocks = [], 0
        self._save()

    def finish(self) -> None:
        """Write what is left and mark the folder as finished; UserError when there was no row at all."""
        self._flush()
        if not self.manifest["rows"]:
            raise UserError("expected text of at least one token; got empty text; give some text")
        sums = "".join(entry["sha256"] for entry in self.manifest["shards"])
        self.manifest |= {"finished": True, "fingerprint": hashlib.sha256(sums.encode()).hexdigest()[:32]}
        self._save()

    def _save(self) -> None:
        write_json(self.folder / "manifest.json", self.manifest)
