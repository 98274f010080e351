"""records.jsonl: what was found of each latent, a line each, only ever appended to; a killed run goes on from it.

    {"kind": "run", "settings": {…}}                                    the first line: of what, with what, how
    {"kind": "explanation", "latent", "status", "text", "pattern", …}   status: explained, too few, or empty
    {"kind": "score", "latent", "partner", "detection", "fuzzing", …}   labels.py says what is in them

A line that a killed writer left unfinished is cut off. Other settings need another folder: lines of one file can be compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...saes import UserError
from ...saes.runs.lock import FolderLock

NAME = "records.jsonl"


class Records:
    """The lines of one folder; `found[kind][latent]` is the last line of each. Held by one process until `close`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self._lock = FolderLock(folder)
        self.found: dict[str, dict[int, dict[str, Any]]] = {"explanation": {}, "score": {}}
        plain = json.loads(json.dumps(settings))
        try:
            known = self._read()
            if known is None:
                self._append({"kind": "run", "settings": plain})
            elif known != plain:
                differing = sorted(name for name in {*known, *plain} if known.get(name) != plain.get(name))
                raise UserError(
                    f"expected the settings of {self.path}; got others ({', '.join(differing)}); give the same ones, or another folder"
                )
        except BaseException:
            self.close()
            raise

    def _read(self) -> dict[str, Any] | None:
        """Take over what is there; the settings of the first line, None for a file that has none."""
        if not self.path.exists():
            return None
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with self.path.open("r+b") as stream:
                stream.truncate(whole)
        lines = data[:whole].splitlines()
        settings = None
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if number == 1:
                    settings = dict(record["settings"])
                else:
                    self.found[record["kind"]][int(record["latent"])] = record
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f"expected records of labels in {self.path}; line {number} is none ({type(error).__name__}); use another folder"
                ) from error
        return settings

    def add(self, kind: str, latent: int, **fields: Any) -> dict[str, Any]:
        """Append one line; it is on the disk when this returns."""
        record = {"kind": kind, "latent": latent, **fields}
        self._append(record)
        self.found[kind][latent] = record
        return record

    def _append(self, record: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            # Halves of surrogate pairs, which a vocabulary may hold, are escaped.
            stream.write(json.dumps(record, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def close(self) -> None:
        """Let others have the folder."""
        self._lock.release()
