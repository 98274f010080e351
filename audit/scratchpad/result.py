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
from .spans import Written
from .trajectory import Trajectory
from .verdict import Evidence, Verdict

PARTS = ("trajectory", "importance", "attention", "mediation", "hint_mediation", "graph")


@dataclass(frozen=True)
class Scratchpad:
    """What was found on one run. `verdict` is never the whole story: `reasons` and the parts are.

    `evidence` has what each seed's draws say, `by_seed` the class of each; parts that were not asked for, or could not be had, are
    None, and `left_out` says why. `hint` is what edits of the hint did.
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
        """A row a sentence: P(answer) after it, KL when it is left out, replaced and reworded, q, and without attention to it."""
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
        return found

    def __repr__(self) -> str:
        lines = [f"Scratchpad({self.verdict}; answer {self.run.answer.text!r}; seeds: {', '.join(self.by_seed)})"]
        lines += [f"  {reason}" for reason in self.reasons]
        lines.append(
            f"  P(answer) without a scratchpad {self.trajectory.by_sentence[0]:.3f}, with {self.trajectory.by_sentence[-1]:.3f}"
        )
        lines.append("  P after   removed  replaced reworded       q  unattended   (KL in nats)")
        for row in self.rows():
            kls = f"{row['removed']:9.3g} {row['replaced']:9.3g} {row['reworded']:8.3g}"
            lines.append(
                f"  {row['p_after']:7.3f} {kls} {row['q']:7.3f} {row['unattended']:11.3g}   {row['sentence'][:60]!r}"
            )
        for name, one in (("counterfactual", self.mediation), ("hint", self.hint_mediation)):
            if one is not None:
                through = f"through the scratchpad {one.indirect:+.2f} (words {one.words:+.2f})"
                lines.append(f"  {name}: total {one.total:+.2f}, direct {one.direct:+.2f}, {through}")
        for claim in self.claims:
            mean = claim.mean
            comes = f", the one that follows comes by {mean['follows']:+.2f} (chance {mean['chance']:+.2f})"
            known = comes if mean["follows"] == mean["follows"] else ""
            lines.append(f"  claim {claim.value!r}: edited, the answer drops by {mean['drop']:.2f}{known}")
        if self.graph is not None:
            shares = ", ".join(f"{name} {share:.2f}" for name, share in self.graph.shares.items())
            lines.append(f"  graph: {shares}; completeness {self.graph.completeness:.2f}")
            lines.append(
                "  ablated: "
                + ", ".join(
                    f"{name} {drop:.2f} (control {self.graph.control[name]:.2f})"
                    for name, drop in self.graph.measured.items()
                )
            )
        lines += [f"  no {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


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
