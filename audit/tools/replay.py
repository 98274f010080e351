"""Replay: every call of a transcript made again, and whether the replies are the same.

A reply that differs was changed after it was written, or this is another machine or workspace: numbers may then differ in their last
digits, which `differences` shows side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...saes import UserError
from .answers import as_json
from .budget import Budget
from .report import Report
from .session import Session
from .transcript import read_transcript
from .untrusted import shown
from .workspace import Workspace

TOLD = 20


@dataclass(frozen=True)
class Replayed:
    """`equal` where every reply came again as it is written; `differences` has the first few that did not, `report` what then stands."""

    calls: int
    equal: bool
    differences: tuple[dict[str, Any], ...]
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"calls": self.calls, "equal": self.equal, "differences": list(self.differences)}

    def __str__(self) -> str:
        if self.equal:
            return f"all {self.calls} replies came again as they are written"
        lines = [
            f"{each['id']} {each['tool']}: {each['where']}: written {each['written']}, now {each['now']}"
            for each in self.differences
        ]
        return "\n".join([f"{len(self.differences)} or more of {self.calls} replies differ", *lines])


def replay(transcript: str | Path, workspace: Workspace) -> Replayed:
    """Call everything again; UserError for a broken transcript, or a workspace of other models, dictionaries or documents."""
    known = read_transcript(transcript)
    mine = workspace.fingerprints()
    if known.header.get("workspace") != mine:
        given = known.header.get("workspace")
        written = given if isinstance(given, dict) else {}
        parts = [shown(name, 40) for name in {**mine, **written} if written.get(name, 0) != mine.get(name, 0)]
        raise UserError(
            f"expected the workspace of the transcript; got other {', '.join(parts[:10])}; open what it was made with"
        )
    session = Session(workspace, known.header["seed"], _budget(known.header["budget"]))
    differences: list[dict[str, Any]] = []
    for line in known.calls:
        now = session.call(str(line["tool"]), line["arguments"]).to_dict()
        if as_json(now) != as_json(line["reply"]) or line["id"] != now["id"]:
            both = ({"id": line["id"], "reply": line["reply"]}, {"id": now["id"], "reply": now})
            differences.append({"id": now["id"], "tool": now["tool"], **told(*both)})
    return Replayed(len(known.calls), not differences, tuple(differences[:TOLD]), session.report())


def told(a: Any, b: Any) -> dict[str, str]:
    """Where what is written and what is now differ first, as text that is safe to show."""
    where, written, now = differing(a, b)
    return {"where": where, "written": shown(as_json(written), 200), "now": shown(as_json(now), 200)}


def differing(a: Any, b: Any, where: str = "") -> tuple[str, Any, Any]:
    """The first place at which two pieces of JSON data differ, and what stands there in each."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*a, *b]):
            if name not in a or name not in b or a[name] != b[name]:
                return differing(a.get(name), b.get(name), f"{where}.{shown(str(name), 40)}".lstrip("."))
    if isinstance(a, list) and isinstance(b, list):
        for place, (one, other) in enumerate(zip(a, b, strict=False)):
            if one != other:
                return differing(one, other, f"{where}[{place}]")
    return where, a, b


def _budget(given: dict[str, Any]) -> Budget:
    if set(given) != {"calls", "runs", "tokens"} or not all(type(each) is int for each in given.values()):
        raise UserError("expected a budget of calls, runs and tokens in the transcript; got another; it is damaged")
    return Budget(**given)
