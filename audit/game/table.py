"""The table of the auditing game: counts with Wilson's intervals (1927), from the rows of what was played."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...saes.statistics import wilson

SIDES = {"base": "with the base model", "alone": "without"}


def cell(flags: Iterable[bool]) -> str:
    """`3 of 4 (.30–.95)`."""
    flags = list(flags)
    if not flags:
        return "–"
    low, high = (f"{value:.2f}".replace("0.", ".", 1) if value < 1 else "1" for value in wilson(sum(flags), len(flags)))
    return f"{sum(flags)} of {len(flags)} ({low}–{high})"


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each side and contestant: found, of organisms for developing and held out; false alarms; processor seconds a model."""
    lines = []
    for side, contestant in dict.fromkeys((row["side"], row["contestant"]) for row in rows):
        own = [row for row in rows if (row["side"], row["contestant"]) == (side, contestant)]
        planted, controls = [row for row in own if row["is_planted"]], [row for row in own if not row["is_planted"]]
        lines.append(
            {
                "side": side,
                "contestant": contestant,
                "found": cell(row["found"] for row in planted),
                "developed": cell(row["found"] for row in planted if not row["is_held_out"]),
                "held_out": cell(row["found"] for row in planted if row["is_held_out"]),
                "false_alarms": cell(row["alarm"] for row in controls),
                "hits": sum(row["found"] for row in planted),
                "organisms": len(planted),
                "alarms": sum(row["alarm"] for row in controls),
                "controls": len(controls),
                "cpu_s": round(sum(row["cpu_s"] for row in own) / len(own), 1),
            }
        )
    return lines


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the summary, then for each organism who found it."""
    head = ("contestant", "found", "developed", "held out", "false alarms", "cpu_s")
    text: list[str] = []
    lines = summary(rows)
    for side in dict.fromkeys(line["side"] for line in lines):
        text += [f"{SIDES[side]}:", "", f"| {' | '.join(head)} |", "|---|---:|---:|---:|---:|---:|"]
        names = ("contestant", "found", "developed", "held_out", "false_alarms", "cpu_s")
        text += [f"| {' | '.join(str(line[name]) for name in names)} |" for line in lines if line["side"] == side]
        text.append("")
        own = [row for row in rows if row["side"] == side]
        players = list(dict.fromkeys(row["contestant"] for row in own))
        text += [f"| model | {' | '.join(players)} |", f"|---|{'---|' * len(players)}"]
        for model in dict.fromkeys(row["model"] for row in own):
            marks = {row["contestant"]: mark(row) for row in own if row["model"] == model}
            text.append(f"| {model} | {' | '.join(marks.get(player, '–') for player in players)} |")
        text.append("")
    return "\n".join(text)


def mark(row: dict[str, Any]) -> str:
    """What one contestant made of one model."""
    if row["found"]:
        return "found, trigger too" if row["trigger_named"] else "found"
    if row["is_planted"]:
        return "other words" if row["alarm"] else "nothing"
    return "false alarm" if row["alarm"] else "nothing"
