"""What an interrupted session left: as long as the calls are the same, they are answered from its transcript.

A call whose tool keeps nothing is not made again: its reply and what it cost are taken from its line. Made again, with the same reply, are
calls that keep something (the board, graphs, probes), and those of lists that were cut and not yet read to their end, since the transcript
has no more of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...saes import UserError
from .registry import TOOLS
from .transcript import read_transcript


class Remembered:
    """The calls of a transcript, by their ids; none for a session that begins."""

    def __init__(self, calls: Sequence[Mapping[str, Any]] = ()):
        """UserError for a line whose reply has not what every reply has."""
        self.calls = {str(each["id"]): each for each in calls}
        for id, each in self.calls.items():
            if not _is_reply(each["reply"]):
                raise UserError(f"expected a reply with ok, result or error, and left under {id}; it is damaged")
        rests = [each["reply"]["result"] for each in calls if each["tool"] == "more" and each["reply"]["ok"]]
        self._read = {rest.get("of") for rest in rests if "next" not in rest}

    @staticmethod
    def of(path: str | Path, header: Mapping[str, Any]) -> Remembered:
        """What a file has, none where there is no file; UserError for one that was begun otherwise."""
        if not Path(path).exists():
            return Remembered()
        known = read_transcript(path)
        if other := [name for name in header if known.header.get(name) != header[name]]:
            raise UserError(
                f"expected to go on with what {path} was begun with; got other {', '.join(other)}; give the same again"
            )
        return Remembered(known.calls)

    def reply(self, id: str, name: str, arguments: Any) -> Mapping[str, Any] | None:
        """The reply to a call that need not be made; UserError where another call stands in its place."""
        line = self.calls.get(id)
        if line is None:
            return None
        if (line["tool"], line["arguments"]) != (name, arguments):
            raise UserError(
                f"expected the calls of the transcript again; got another {id}; give the same flags, or begin anew"
            )
        reply = line["reply"]
        is_open = "more" in reply and id not in self._read
        return None if is_open or (name in TOOLS and not TOOLS[name].reads_only) else reply


def _is_reply(reply: Mapping[str, Any]) -> bool:
    left = reply.get("left")
    is_told = isinstance(left, dict) and all(type(left.get(name)) is int for name in ("calls", "runs", "tokens"))
    return is_told and isinstance(reply.get("result" if reply.get("ok") is True else "error"), dict)
