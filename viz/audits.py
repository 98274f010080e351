"""An audit's folder as data: the report with its findings, and every call of the transcript that they rest on.

An audit that was stopped has a transcript and no report yet; its calls are shown all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..saes.errors import UserError
from ..saes.io import read_json

TRANSCRIPT, REPORT = "transcript.jsonl", "report.json"


@dataclass
class Audit:
    """`report` as it was saved (empty where there is none), the transcript's `header`, and its `calls` in order."""

    report: dict[str, Any]
    header: dict[str, Any]
    calls: list[dict[str, Any]]


def is_audit(folder: Path) -> bool:
    """Whether a folder is that of an audit."""
    return (folder / TRANSCRIPT).exists()


def read_audit(folder: Path) -> Audit:
    """Read an audit's folder; UserError for a damaged transcript, or a report of another kind."""
    from ..audit.tools.report import FORMAT, VERSION
    from ..audit.tools.transcript import read_transcript

    written = read_transcript(folder / TRANSCRIPT)
    report: dict[str, Any] = {}
    if (folder / REPORT).exists():
        report = read_json(folder / REPORT, "the report of an audit")
        if report.get("format") != FORMAT or report.get("version") != VERSION:
            raise UserError(
                f"expected {FORMAT} version {VERSION} in {folder / REPORT}; got {str(report.get('format'))[:40]!r}; "
                "make the audit anew"
            )
    return Audit(report, written.header, written.calls)
