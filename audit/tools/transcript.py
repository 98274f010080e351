"""The transcript of a session: every call with its answer, a line each, so that another can read it and run it again.

    {"format": "unweave.audit", "version": 1, "seed", "budget", "workspace"}     the first line
    {"id", "tool", "arguments", "reply"}                                         a call

Lines are appended and are on the disk before the caller has the reply. A last line that a killed writer cut off is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...saes import UserError
from ...saes.io import atomic_path

FORMAT, VERSION = "unweave.audit", 1


def header_of(seed: int, budget: Mapping[str, int], workspace: Mapping[str, Any]) -> dict[str, Any]:
    """The first line."""
    return {"format": FORMAT, "version": VERSION, "seed": seed, "budget": dict(budget), "workspace": dict(workspace)}


class Transcript:
    """The lines of a session, in a file where `path` names one; UserError where that stands already and is not gone on with."""

    def __init__(
        self, path: str | Path | None, header: Mapping[str, Any], calls: Iterable[Mapping[str, Any]] | None = None
    ):
        """`calls`: those that a file to go on with has, None for a new one."""
        self.path = None if path is None else Path(path)
        self.lines: list[str] = []
        is_there = self.path is not None and self.path.exists() and self.path.stat().st_size > 0
        if is_there and calls is None:
            raise UserError(f"expected a new file for the transcript; {self.path} is there already; give another name")
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path is not None and is_there:
            self.lines = [_text(each) for each in (header, *(calls or ()))]
            with atomic_path(self.path) as path:  # without a last line that was cut off
                path.write_text("".join(self.lines), "utf-8")
        else:
            self.add(header)

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one line; it is on the disk when this returns."""
        text = _text(line)
        self.lines.append(text)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())


def _text(line: Mapping[str, Any]) -> str:
    """One line; arguments may hold halves of surrogate pairs, which are escaped."""
    return json.dumps(line, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Written:
    """What a transcript says: its header and its calls."""

    header: dict[str, Any]
    calls: list[dict[str, Any]]


def read_transcript(path: str | Path) -> Written:
    """The calls of a transcript; UserError for what is none, or a broken line that is not the last."""
    path = Path(path)
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"expected a transcript at {path}; could not read it ({error}); check the path") from error
    found = [_line(path, number, line, number == len(lines)) for number, line in enumerate(lines, 1) if line.strip()]
    header, *calls = [each for each in found if each is not None] or [{}]
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise UserError(
            f"expected {FORMAT} version {VERSION} in {path}; got {str(header.get('format'))[:40]!r}; is it a transcript?"
        )
    is_whole = all(
        {"id", "tool", "arguments", "reply"} <= each.keys() and isinstance(each["reply"], dict) for each in calls
    )
    if not is_whole or not isinstance(header.get("budget"), dict) or type(header.get("seed")) is not int:
        raise UserError(
            f"expected a header with seed and budget, and calls with id, tool, arguments and reply, in {path}; it is damaged"
        )
    return Written(header, calls)


def _line(path: Path, number: int, line: str, is_last: bool) -> dict[str, Any] | None:
    """One line as data, None for a last one that was cut off; a number that is none (NaN) was never written here."""
    try:
        found = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        found = None
        if is_last:
            return None
    if not isinstance(found, dict):
        raise UserError(
            f"expected a JSON object in line {number} of {path}; got something else; the transcript is damaged"
        )
    return found


def _no_number(name: str) -> None:
    raise ValueError(name)
