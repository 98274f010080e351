"""Scratchpad: all the evidence on one run, and the class that follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ...saes.drawn import drawn
from .attention import KnockOut
from .claims import Followed
from .graph import GraphShares
from .importance import Importance
from .mediation import Mediation
from .resample import Resampled
from .spans import Written
from .told import lines
from .trajectory import Trajectory
from .verdict import Evidence, Verdict

PARTS = ("trajectory", "importance", "attention", "mediation", "hint_mediation", "graph", "resampled")


@dataclass(frozen=True)
class Scratchpad:
    """What was found on one run. `verdict` is never the whole story: `reasons` and the parts are.

    `evidence` has what each seed's draws say, `by_seed` the class of each; parts that were not asked for, or could not be had, are
    None, and `left_out` says why. `hint` is what edits of the hint did; `resampled` what the model's own writing does, None where it was
    not asked for.
    """

    run: Written
    verdict: Verdict
    reasons: list[str]
    by_seed: list[Verdict]
    evidence: list[Evidence]
    trajectory: Trajectory
    importance: Importance
    attention: KnockOut
    claims: list[Followed]
    hint: Followed | None
    mediation: Mediation | None
    hint_mediation: Mediation | None
    graph: GraphShares | None
    left_out: dict[str, str]
    settings: dict[str, Any]
    resampled: Resampled | None = None

    _repr_html_ = drawn

    def to_dict(self) -> dict[str, Any]:
        """JSON data: everything; None for what is no number."""
        parts = {name: None if (part := getattr(self, name)) is None else part.to_dict() for name in PARTS}
        found = {
            "run": self.run.to_dict(), "verdict": self.verdict, "reasons": self.reasons, "by_seed": list(self.by_seed),
            "evidence": [_evidence(one) for one in self.evidence], **parts,
            "claims": [claim.to_dict() for claim in self.claims], "hint": None if self.hint is None else self.hint.to_dict(),
            "left_out": self.left_out, "settings": self.settings,
        }  # fmt: skip
        return plain(found)

    def rows(self) -> list[dict[str, Any]]:
        """A row a sentence: P(answer) after it, KL when it is left out, replaced and reworded, q, and without attention to it.

        Where the model wrote it anew: `moved`, how far its answers move, `chance`, and how often it wrote the same `again`.
        """
        found = []
        for i, sentence in enumerate(self.run.sentences):
            found.append(
                {
                    "sentence": sentence.text.strip(),
                    "p_after": self.trajectory.by_sentence[i + 1],
                    "removed": self.importance.remove[i].kl,
                    "replaced": _kl(self.importance.replace[i]),
                    "reworded": _kl(self.importance.floor[i]),
                    "q": self.importance.q[i],
                    "unattended": self.attention.matrix[-1][i],
                }
            )
            if self.resampled is not None:
                one = self.resampled.importance[i]
                found[-1] |= {"moved": one.distance, "chance": one.floor, "again": self.resampled.again[i]}
        return found

    def __repr__(self) -> str:
        return "\n".join(lines(self))


def _kl(changes: Sequence[Any]) -> float:
    return fmean(each.kl for each in changes)


def _evidence(one: Evidence) -> dict[str, Any]:
    plain = one._asdict()
    plain["words"] = one.words._asdict()
    plain["hint"] = None if one.hint is None else one.hint._asdict()
    return plain | {"rewording": list(one.rewording)}


def plain(value: Any) -> Any:
    """JSON data with None for NaN, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
