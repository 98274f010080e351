"""Report: what an investigation found, each claim with the results that it rests on, and what was called to get them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...saes.io import write_json

FORMAT, VERSION = "unweave.audit.report", 1


@dataclass(frozen=True)
class Finding:
    """A hypothesis of the board; `evidence` has the id, the tool and the arguments of every result that it cites."""

    id: str
    statement: str
    status: str
    because: str
    evidence: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "id": self.id,
            "statement": self.statement,
            "status": self.status,
            "because": self.because,
            "evidence": list(self.evidence),
        }


@dataclass(frozen=True)
class Report:
    """Findings (supported first), notes, and what the session was: seed, workspace, calls and costs."""

    summary: str
    findings: tuple[Finding, ...]
    notes: tuple[dict[str, Any], ...]
    seed: int
    workspace: dict[str, Any]
    calls: int
    spent: dict[str, int]
    budget: dict[str, int]

    @property
    def supported(self) -> list[Finding]:
        """The findings that evidence supports."""
        return [each for each in self.findings if each.status == "supported"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, as it is saved."""
        return {
            "format": FORMAT, "version": VERSION, "summary": self.summary, "findings": [each.to_dict() for each in self.findings],
            "notes": list(self.notes), "seed": self.seed, "workspace": self.workspace, "calls": self.calls, "spent": self.spent,
            "budget": self.budget,
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    def __str__(self) -> str:
        lines = [self.summary] if self.summary else []
        for each in self.findings:
            cited = ", ".join(one["id"] for one in each.evidence) or "no evidence"
            lines.append(f"{each.id} {each.status:<9} {each.statement} [{cited}]")
        return "\n".join(lines) or "nothing was found"
