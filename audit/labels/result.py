"""Labelling: what a run of labels found, with the baselines beside each number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...saes.drawn import drawn
from .records import Records
from .scores import CHANCE, mean_with_interval, rounded

AUTHOR = "unweave label"
TASKS, KINDS = ("detection", "fuzzing"), ("random", "hard", "all")


@dataclass(frozen=True)
class Labelling:
    """Means over latents and a row for each latent.

    `means[task][kind]` holds `label`, `shuffled`, `top_token` (where it was measured) and `gain`, the label less the shuffled one of
    the same latent, each a mean of balanced accuracies with its 95 % interval over latents; `auc` where there are probabilities.
    `too_few` are latents without enough places, `kept` those whose label by a person was left.
    """

    method: str
    means: dict[str, dict[str, dict[str, Any]]]
    rows: list[dict[str, Any]]
    too_few: dict[int, str]
    empty: list[int]
    kept: list[int]
    written: int
    failures: int
    judged: int
    out: str

    _repr_html_ = drawn

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        named = {
            "method": self.method, "scored": len(self.rows), "chance": CHANCE, "means": self.means, "failures": self.failures,
            "judged": self.judged, "too_few": {str(latent): why for latent, why in self.too_few.items()}, "empty": self.empty,
            "written": self.written, "kept": self.kept, "rows": self.rows, "out": self.out,
        }  # fmt: skip
        return rounded(named)

    def __str__(self) -> str:
        lines = [f"{self.method}: {len(self.rows)} latents scored, {len(self.too_few)} with too few places; chance 0.5"]
        for task in TASKS:
            for kind in KINDS:
                one = self.means[task][kind]
                numbers = "  ".join(f"{name} {_shown(one[name])}" for name in one if name != "auc")
                lines.append(f"{task:<10}{kind:<8}{numbers}")
        return "\n".join([*lines, f"{self.failures} of {self.judged} answers could not be read"])


def _shown(mean: dict[str, Any]) -> str:
    if mean["mean"] is None:
        return "none"
    return f"{mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"


def summary(records: Records, latents: Sequence[int], written: Sequence[bool], method: str, out: Path) -> Labelling:
    """What the records say of `latents`; `written` is for those that were scored, in their order."""
    explained = {latent: records.found["explanation"][latent] for latent in latents}
    scored = [latent for latent in latents if latent in records.found["score"]]
    lines = [records.found["score"][latent] for latent in scored]
    means = {task: {kind: _means(lines, task, kind) for kind in KINDS} for task in TASKS}
    alls = [line[task]["all"] for line in lines for task in TASKS]
    rows = []
    for latent, line in zip(scored, lines, strict=True):
        row = {"latent": latent, "label": explained[latent]["text"], "partner": line["partner"]}
        for task in TASKS:
            row |= {f"{task}_{kind}": (line[task][kind] or {}).get("value") for kind in KINDS}
        row |= {name: line["detection"]["all"][name] for name in ("low", "high", "auc", "n", "failures")}
        shuffled = line.get("shuffled")
        rows.append(row | {"shuffled": shuffled["detection"]["all"]["value"] if shuffled else None, "chance": CHANCE})
    return Labelling(
        method, means, rows,
        {latent: one["why"] for latent, one in explained.items() if one["status"] == "too few"},
        [latent for latent, one in explained.items() if one["status"] == "empty"],
        [latent for latent, is_written in zip(scored, written, strict=False) if not is_written],
        sum(written), sum(one["failures"] for one in alls), sum(one["n"] for one in alls), str(out),
    )  # fmt: skip


def _means(lines: Sequence[dict[str, Any]], task: str, kind: str) -> dict[str, Any]:
    def values(path: Sequence[str], number: str = "value") -> list[float | None]:
        found = []
        for line in lines:
            part: Any = line
            for name in (*path, task, kind):
                part = part.get(name) if part else None
            found.append(part[number] if part else None)
        return found

    own, other, token = values(()), values(("shuffled",)), values(("top_token",))
    gain = [a - b for a, b in zip(own, other, strict=True) if a is not None and b is not None]
    out = {"label": _mean(own), "shuffled": _mean(other), "gain": mean_with_interval(gain)}
    if any(value is not None for value in token):
        out["top_token"] = _mean(token)
    auc = values((), "auc")
    return out | ({"auc": _mean(auc)} if any(value is not None for value in auc) else {})


def _mean(values: Sequence[float | None]) -> dict[str, Any]:
    return mean_with_interval([value for value in values if value is not None])
