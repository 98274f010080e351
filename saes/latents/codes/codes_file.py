"""The codes of a whole text on disk, written while `collect` passes over it and looked up by row and by latent.

CodesWriter keeps each stretch of rows as a durable part, so that a killed run loses only what came after its last flush, and
makes of the parts the two files of codes_sort.py. `codes.json` says what there is; it is written after what it names, so
a part or file that it does not name is no part of the codes. Codebook maps the two files and checks what it reads of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...codes import Codes
from ...errors import UserError
from ...io import map_tensors, read_json, read_tensors, write_json, write_tensors
from .codes_sort import row_chunks, write_by_latent, write_by_row

FORMAT, VERSION = "unweave.codes", 1
RECORD, BY_ROW, BY_LATENT, PARTS = "codes.json", "codes.safetensors", "by_latent.safetensors", "codes-parts"
PART_SLOTS = 2**23
COUNTS = {"rows": int, "slots": int}


def codes_bytes(rows: int, slots: int, latents: int) -> int:
    """Bytes of the two finished files, headers aside."""
    return 16 * slots + 8 * (rows + 1) + 8 * (latents + 1) + 16 * latents


class CodesWriter:
    """Appends the codes of consecutive rows to the store at `folder`, which may take up to `limit_mib` MiB for them.

    Codes that would take more are not kept: the parts are removed and only rows and slots are counted. The memory held is
    that of the rows since the last flush, at most PART_SLOTS slots of 8 bytes.
    """

    def __init__(self, folder: str | Path, latents: int, limit_mib: int | float):
        self.folder, self.latents, self.limit = Path(folder), latents, int(limit_mib * 2**20)
        self._record: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "latents": latents,
            "kept": True,
            "finished": False,
            "rows": 0,
            "slots": 0,
            "parts": [],
        }
        if (self.folder / RECORD).exists():
            self._record = read_record(self.folder)
            if self._record["latents"] != latents:
                raise UserError(
                    f"expected codes of {latents} latents in {self.folder}; got {self._record['latents']}; "
                    "give another folder"
                )
        self.rows, self.slots = self._record["rows"], self._record["slots"]
        self._pending: list[dict[str, Tensor]] = []

    @property
    def kept(self) -> bool:
        """False once the codes took more than the limit."""
        return self._record["kept"]

    def append(self, first_row: int, codes: Codes) -> None:
        """Add the codes of the rows `first_row`, `first_row` + 1, …; slots whose value is not above 0 are empty.

        Raises UserError unless `first_row` is the row after the last, ValueError for a latent out of range.
        """
        if self._record["finished"] or first_row != self.rows:
            raise UserError(
                f"expected the codes of row {self.rows} next in {self.folder}; got those of row {first_row}; "
                "resume at the row to go on from"
            )
        values = codes.values.float()
        active = values > 0
        latents = codes.indices[active].int()
        if len(latents) and not (latents.min() >= 0 and latents.max() < self.latents):
            raise ValueError(f"expected latents in [0, {self.latents}); got {int(latents.min())}..{int(latents.max())}")
        self.rows += len(values)
        self.slots += len(latents)
        part = {"counts": active.sum(1).int(), "latents": latents, "values": values[active]}
        if codes_bytes(self.rows, self.slots, self.latents) > self.limit:
            self._give_up()
        if not self.kept:
            part = {name: tensor[:0] for name, tensor in part.items()}
        self._pending.append(part)
        if self.slots - self._record["slots"] >= PART_SLOTS:
            self.flush()

    def _give_up(self) -> None:
        if self.kept:
            self._record["kept"] = False
            self._pending = []
            self._save()
            self._remove_parts()

    def flush(self) -> None:
        """Make what was appended durable, as one part."""
        if self.rows == self._record["rows"]:
            return
        entry = {"rows": self.rows - self._record["rows"], "slots": self.slots - self._record["slots"], "file": ""}
        if self.kept:
            entry["file"] = f"part-{self._record['rows']:012d}-{entry['rows']}.safetensors"
            part = {name: torch.cat([one[name] for one in self._pending]) for name in self._pending[0]}
            write_tensors(self.folder / PARTS / entry["file"], part)
        self._pending = []
        self._set_parts([*self._record["parts"], entry])

    def _set_parts(self, parts: list[dict[str, Any]]) -> None:
        self._record |= {"finished": False, "parts": parts}
        for name in ("rows", "slots"):
            self._record[name] = sum(entry[name] for entry in parts)
        self._save()

    def _save(self) -> None:
        write_json(self.folder / RECORD, self._record)

    def _remove_files(self) -> None:
        for name in (BY_ROW, BY_LATENT):
            for path in [self.folder / name, *self.folder.glob(f".tmp-*-{name}")]:
                path.unlink(missing_ok=True)

    def _remove_parts(self) -> None:
        if (self.folder / PARTS).exists():
            shutil.rmtree(self.folder / PARTS)

    def resume(self, rows: int) -> None:
        """Go on after `rows` rows: what lies beyond is dropped. UserError if fewer rows are there."""
        if rows > self._record["rows"]:
            raise UserError(
                f"expected the codes of {rows} rows in {self.folder}; got {self._record['rows']}; collect it anew"
            )
        if self._record["finished"] and rows < self._record["rows"]:
            self._reopen()
        if not self._record["finished"]:
            self._drop(rows)
        self._pending = []
        self.rows, self.slots = self._record["rows"], self._record["slots"]

    def _reopen(self) -> None:
        """Make parts of a finished file again."""
        if self.kept:
            by_row = map_codes(self.folder / BY_ROW)
            parts = []
            for begin, end in row_chunks(by_row["starts"], PART_SLOTS):
                starts = by_row["starts"][begin : end + 1]
                part = {name: by_row[name][int(starts[0]) : int(starts[-1])] for name in ("latents", "values")}
                file = f"part-{begin:012d}-{end - begin}.safetensors"
                write_tensors(self.folder / PARTS / file, {"counts": starts.diff().int(), **part})
                parts.append({"rows": end - begin, "slots": len(part["values"]), "file": file})
            self._set_parts(parts)
        self._record["finished"] = False

    def _drop(self, rows: int) -> None:
        """Leave the first `rows` rows, cutting the part that holds the last of them; files that are not named go."""
        self._remove_files()
        left, begin = [], 0
        for entry in self._record["parts"]:
            if begin < rows:
                left.append(entry if begin + entry["rows"] <= rows else self._cut(entry, begin, rows - begin))
            begin += entry["rows"]
        self._record["kept"] |= rows == 0
        self._set_parts(left)
        named = {entry["file"] for entry in left}
        for path in (self.folder / PARTS).glob("*"):
            if path.name not in named:
                path.unlink()

    def _cut(self, entry: dict[str, Any], first: int, rows: int) -> dict[str, Any]:
        if not self.kept:
            raise UserError(
                f"expected to resume {self.folder} at the end of one of its parts; got row {first + rows}, and the codes "
                "were too many to be kept; collect it anew"
            )
        part = self._part(entry)
        slots = int(part["counts"][:rows].sum())
        file = f"part-{first:012d}-{rows}.safetensors"
        write_tensors(
            self.folder / PARTS / file,
            {"counts": part["counts"][:rows], "latents": part["latents"][:slots], "values": part["values"][:slots]},
        )
        return {"rows": rows, "slots": slots, "file": file}

    def _part(self, entry: dict[str, Any]) -> dict[str, Tensor]:
        path = self.folder / PARTS / entry["file"]
        part = read_tensors(path, "a part of the codes")
        latents = part.get("latents", torch.empty(0))
        is_whole = (
            part.keys() == {"counts", "latents", "values"}
            and len(part["counts"]) == entry["rows"]
            and len(latents) == len(part["values"]) == int(part["counts"].sum()) == entry["slots"]
            and (not len(latents) or (int(latents.min()) >= 0 and int(latents.max()) < self.latents))
        )
        if not is_whole:
            raise UserError(f"expected {entry['rows']} rows of codes in {path}; got something else; collect it anew")
        return part

    def finish(self) -> dict[str, Any]:
        """Write the two files and remove the parts; a finish that was killed is done again by the next.

        Returns `kept`, `slots` (counted even if not kept) and `bytes` on disk, for the manifest.
        """
        self.flush()
        if not self.rows:
            raise UserError(f"expected codes of at least one row for {self.folder}; got none; give some text")
        if self.kept and not self._record["finished"]:
            self._remove_files()
            write_by_row(self.folder / BY_ROW, self._all_parts(), self.rows, self.slots)
            write_by_latent(self.folder / BY_ROW, self.folder / BY_LATENT, self.latents)
        if not self._record["finished"]:
            if self.kept:
                self._record["parts"] = []
            self._record["finished"] = True
            self._save()
        self._remove_parts()
        files = [self.folder / name for name in (BY_ROW, BY_LATENT)] if self.kept else []
        return {"kept": self.kept, "slots": self.slots, "bytes": sum(path.stat().st_size for path in files)}

    def _all_parts(self) -> Iterator[dict[str, Tensor]]:
        return (self._part(entry) for entry in self._record["parts"])


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the codes in `folder`; UserError when it is damaged or of another version."""
    path = folder / RECORD
    record = read_json(path, "the record of a store's codes")
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise UserError(
            f"expected {FORMAT} version {VERSION} at {path}; got {record.get('format')!r} version "
            f"{record.get('version')!r}; collect it anew"
        )
    if not (
        _fits(record, {**COUNTS, "latents": int, "kept": bool, "finished": bool, "parts": list})
        and all(
            _fits(entry, {**COUNTS, "file": str}) and Path(entry["file"]).name == entry["file"]
            for entry in record["parts"]
        )
    ):
        raise UserError(f"expected a whole record of codes at {path}; got one with wrong entries; collect it anew")
    return record


def _fits(entry: Any, types: dict[str, type]) -> bool:
    return isinstance(entry, dict) and all(
        type(entry.get(name)) is kind and (kind is not int or entry[name] >= 0) for name, kind in types.items()
    )


def map_codes(path: Path) -> dict[str, Tensor]:
    """Memory-map one of the two files; UserError when it is missing, truncated or damaged."""
    try:
        return map_tensors(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"expected codes at {path}; could not read them ({error}); collect them anew") from error
