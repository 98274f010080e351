"""Investigation: what an audit leaves behind, in a folder or in memory, and how every claim of it is replayed.

    transcript.jsonl    every call with its reply, as it happened
    report.json         findings, each with the results that it cites
    report.md           the same for a person

Text that models wrote stands in the Markdown as code, with nothing in it that would end the code.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...saes import UserError
from ...saes.io import atomic_path, read_json
from ..tools import Finding, Replayed, Report, Session, Workspace
from ..tools import replay as replay_transcript
from ..tools.answers import as_json
from ..tools.replay import told

TRANSCRIPT, REPORT, PAGE = "transcript.jsonl", "report.json", "report.md"


@dataclass(frozen=True)
class Investigation:
    """How an audit ended. `words` are what its supported findings name, most certain first; `stopped` says why it ended early, if it did.

    `asked_tokens` are new tokens that were asked of the target (the scripted auditor's).
    """

    report: Report
    words: tuple[str, ...] = ()
    stopped: str = ""
    folder: Path | None = None
    asked_tokens: int = 0

    @property
    def findings(self) -> list[Finding]:
        """The findings that evidence supports."""
        return self.report.supported

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "words": list(self.words),
            "stopped": self.stopped,
            "asked_tokens": self.asked_tokens,
            "report": self.report.to_dict(),
        }

    def __str__(self) -> str:
        return str(self.report)


def begin(
    workspace: Workspace, seed: int, budget: Any, out: str | Path | None, resume: bool = False
) -> tuple[Session, Path | None]:
    """A session that writes its transcript into `out`; UserError where an investigation is there already that is not to go on."""
    folder = None if out is None else Path(out)
    if folder is not None and not resume:
        check_new(folder)
    transcript = None if folder is None else folder / TRANSCRIPT
    return Session(workspace, seed, budget, transcript, resume=resume), folder


def check_new(folder: Path) -> None:
    """UserError where an investigation is there already."""
    if (folder / TRANSCRIPT).exists():
        raise UserError(
            f"expected a new folder; {folder} has an investigation already; name another, or give --resume or --replay"
        )


def end(
    session: Session,
    folder: Path | None,
    words: tuple[str, ...] = (),
    stopped: str = "",
    tokens: int = 0,
) -> Investigation:
    """Write the report beside the transcript."""
    found = Investigation(session.report(), words, stopped, folder, tokens)
    if folder is not None:
        found.report.save(folder / REPORT)
        with atomic_path(folder / PAGE) as path:
            path.write_text(page(found), encoding="utf-8")
    return found


def replay(folder: str | Path, workspace: Workspace) -> Replayed:
    """Make every call of a folder's transcript again and compare the replies, and what then stands in the report with the one there.

    UserError for another workspace.
    """
    path = Path(folder) / TRANSCRIPT
    if not path.exists():
        raise UserError(f"expected {TRANSCRIPT} in {folder}; there is none; name the folder of an audit")
    found = replay_transcript(path, workspace)
    if not (Path(folder) / REPORT).exists():  # it was interrupted
        return found
    written = read_json(Path(folder) / REPORT, "the report of an audit")
    now = json.loads(as_json(found.report.to_dict()))
    if written == now:
        return found
    other = {"id": REPORT, "tool": "report", **told(written, now)}
    return replace(found, equal=False, differences=(*found.differences, other))


def page(found: Investigation) -> str:
    """The report as Markdown."""
    report = found.report
    lines = ["# Audit", "", code(report.summary) if report.summary else "No summary.", ""]
    if found.stopped:
        lines += [f"Ended early: {code(found.stopped)}", ""]
    for each in report.findings:
        lines += [f"## {each.id}: {each.status}", "", code(each.statement), ""]
        lines += [f"Because: {code(each.because)}", ""] if each.because else []
        lines += [f"* `{one['id']}` `{one['tool']}`" for one in each.evidence] + [""]
    spent = ", ".join(f"{name} {value:,}" for name, value in report.spent.items())
    lines += [
        f"Seed {report.seed}; spent: {spent}.",
        f"Every result above stands in `{TRANSCRIPT}` under its id; `unweave audit --replay` makes all calls again.",
        "",
    ]
    return "\n".join(lines)


def code(text: str) -> str:
    """Text as one line of Markdown code: backticks in it become ordinary quotes, so nothing in it is markup."""
    plain = re.sub(r"\s+", " ", text.replace("`", "'")).strip()
    return f"`{plain or ' '}`"
