"""How audit's nouns look in a notebook (saes/drawn.py finds these by the entry points of setup.cfg).

A Diff is its own page in a sandboxed frame; the others are tables, each number beside its control.
Everything that came from data is escaped here. Lines and words take the notebook's own colour, so that they can be read on dark paper.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..audit.diffing import Diff
from ..audit.labels.result import KINDS, TASKS, Labelling
from ..audit.monitor import Drift, Watched
from ..audit.shared_concepts import Shared
from .display import Embedded
from .drawings import table
from .text import number, readable
from .things import Things

if TYPE_CHECKING:
    from ..audit.scratchpad.result import Scratchpad

ROWS = 20  # of a table
PICTURES, CURVES = 6, 40  # signals that are drawn, conversations in a picture
WIDE, TALL, EDGE = 420, 110, 8  # px of a picture
PARTS = ("label", "shuffled", "top_token", "gain")


def diff(thing: Diff) -> str:
    """The page of what changed."""
    name = thing.folder.name if thing.folder else "diff"
    return Embedded(Things(title=readable(name), diffs={name: thing}), height=720).html()


def labelling(thing: Labelling) -> str:
    """Balanced accuracies beside those of other latents' labels, and the first labels with theirs."""
    means = [
        [f"{task}, {kind}", *(_with_interval(thing.means[task][kind].get(part)) for part in PARTS)]
        for task in TASKS
        for kind in KINDS
    ]
    title = (
        f"Labels by {thing.method}: {len(thing.rows)} latents scored, {len(thing.too_few)} with too few places, "
        f"{thing.failures} of {thing.judged} answers not readable; chance 0.5"
    )
    rows = [
        [
            row["latent"],
            row.get("label"),
            _value(row.get("detection_all")),
            f"{_value(row.get('low'))} to {_value(row.get('high'))}",
            _value(row.get("shuffled")),
        ]
        for row in thing.rows[:ROWS]
    ]
    columns = ["latent", "label", "detection", "95 %", "another's label"]
    head = ["balanced accuracy", "its own label", "another latent's label", "its top token", "gain over another's"]
    return grid(title, head, means) + grid(_first(len(thing.rows), "labels"), columns, rows)


def watched(thing: Watched) -> str:
    """Thresholds and alarms of each signal with its drift, a curve a conversation, and the first messages."""
    head = ["signal", "threshold", "rate wanted", "false alarms measured", "items with an alarm", "drift a message"]
    messages = [
        [row["item"], row["message"], row["role"], row["text"], *(_scored(row, name) for name in thing.signals)]
        for row in thing.rows[:ROWS]
    ]
    pictures = "".join(_curves(thing, name) for name in list(thing.signals)[:PICTURES])
    title = f"Watched {thing.items:,} texts or chats, {len(thing.rows):,} messages"
    told = grid(title, head, [_signal(thing, name) for name in thing.signals])
    columns = ["item", "message", "role", "text", *thing.signals]
    return told + pictures + grid(_first(len(thing.rows), "messages; ! is an alarm"), columns, messages)


def _signal(thing: Watched, name: str) -> list[Any]:
    known, moved = thing.calibrations.get(name), thing.drifts.get(name)
    measured, drifted = "not calibrated", "no conversation is long enough"
    if known is not None:
        measured = _with_interval({**known, "mean": known["measured"]})
    if moved is not None:
        drifted = f"{_with_interval({**moved, 'mean': moved['slope']})}, p {_value(moved['p'])}"
    limits = [_value(known and known[part]) for part in ("threshold", "rate")]
    return [name, *limits, measured, thing.alarms.get(name, "–"), drifted]


def _scored(row: Mapping[str, Any], name: str) -> str:
    return _value(row[name]) + (" !" if (row.get("alarms") or {}).get(name) else "")


def _curves(thing: Watched, name: str) -> str:
    """Scores over the messages of each conversation, and the threshold; nothing where no text has two messages."""
    talks: dict[int, list[tuple[int, float]]] = {}
    for row in thing.rows:
        if row[name] is not None:
            talks.setdefault(row["item"], []).append((row["message"], row[name]))
    known = [talk for talk in talks.values() if len(talk) > 1][:CURVES]
    if not known:
        return ""
    line = (thing.calibrations.get(name) or {}).get("threshold")
    values = [value for talk in known for _, value in talk] + ([] if line is None else [line])
    low, high, last = min(values), max(values), max(place for talk in known for place, _ in talk)

    def at(place: float | int, value: float | int) -> str:
        x = EDGE + place / max(last, 1) * (WIDE - 2 * EDGE)
        return f"{x:.1f},{TALL - EDGE - (value - low) / ((high - low) or 1) * (TALL - 2 * EDGE):.1f}"

    def path(points: Iterable[tuple[float | int, float | int]], more: str) -> str:
        return (
            f'<polyline points="{" ".join(at(*point) for point in points)}" fill="none" stroke="currentColor" {more}/>'
        )

    curves = "".join(path(talk, 'stroke-opacity=".45"') for talk in known)
    limit = "" if line is None else path([(0, line), (last, line)], 'stroke-dasharray="4 3"')
    said = f"{readable(name, 60)}: from {_value(low)} to {_value(high)} over {last + 1} messages"
    said += "; dashed: the threshold" if limit else ""
    return (
        f'<figure style="margin: .4em 0"><svg viewBox="0 0 {WIDE} {TALL}" width="{WIDE}" height="{TALL}" role="img" '
        f'aria-label="{html.escape(said)}">{curves}{limit}</svg><figcaption style="opacity: .7">{html.escape(said)}</figcaption></figure>'
    )


def drift(thing: Drift) -> str:
    """The slope beside those of shuffled orders."""
    means_it = thing.p <= 0.05
    how = "rises" if thing.slope > 0 else "falls"
    return table(
        f"Drift: the score {how} over a conversation" if means_it else "Drift: none beyond what the order of messages gives by chance",
        {
            "slope a message": _with_interval({**thing.to_dict(), "mean": thing.slope}),
            "in shuffled orders": f"{_value(thing.shuffled_low)} to {_value(thing.shuffled_high)}",
            "p": _value(thing.p),
            "conversations": f"{thing.conversations:,}, {thing.messages:,} messages",
        },
    )  # fmt: skip


def shared(thing: Shared) -> str:
    """Overlap of the same thing said in two ways beside that of different things."""
    head = ["dictionary", "said in", "same thing", "other things", "gain", "q", "found by overlap", "chance"]
    rows = [
        [
            row["dictionary"],
            f"{row['a']}, {row['b']}",
            _value(row["matched"]),
            _value(row["mismatched"]),
            _with_interval({**row, "mean": row["gain"]}),
            _value(row["q"]),
            _value(row["found"]),
            _value(row["chance"]),
        ]
        for row in thing.rows[: 4 * ROWS]
    ]
    return grid(f"Latents shared between ways of saying {thing.texts} things", head, rows)


def scratchpad(thing: Scratchpad) -> str:
    """The class with its reasons, and a row a sentence: the change without it beside that of rewording it."""
    facts = {
        "class": thing.verdict,
        "by seed": ", ".join(thing.by_seed),
        **{f"because ({place})": reason for place, reason in enumerate(thing.reasons, 1)},
        **{f"no {name}": why for name, why in thing.left_out.items()},
    }
    head = [
        "sentence",
        "P(answer) after it",
        "KL without it",
        "replaced",
        "reworded (control)",
        "q",
        "KL without attention to it",
    ]
    names = ("p_after", "removed", "replaced", "reworded", "q", "unattended")
    found = thing.rows()
    rows = [[row["sentence"], *(_value(row[name]) for name in names)] for row in found[: 2 * ROWS]]
    return table("Scratchpad", facts) + grid(f"{len(found):,} sentences; KL in nats", head, rows) + _written_anew(thing)


def _written_anew(thing: Scratchpad) -> str:
    """How far the answers move when the model writes each sentence itself, beside chance; nothing where that was not asked for."""
    some = thing.resampled
    if some is None:
        return ""
    head = [
        "sentence",
        "answers move",
        "by chance",
        "q",
        "same again",
        "something else",
        "answers move then",
        "most often instead",
    ]
    rows = [
        [
            sentence.text.strip(),
            _with_interval({"mean": one.distance, "low": one.low, "high": one.high}),
            *map(_value, (one.floor, some.q[i], some.again[i], some.other[i])),
            "–" if other is None else _with_interval({"mean": other.distance, "low": other.low, "high": other.high}),
            some.instead[i] or "–",
        ]
        for i, (sentence, one, other) in enumerate(
            zip(thing.run.sentences, some.importance, some.counterfactual, strict=True)
        )
    ]
    how = f"{some.rollouts} times from each sentence on, at temperature {some.temperature:g}"
    return grid(f"Written anew by the model, {how}; 0: its answers stay, 1: none is the same", head, rows[: 2 * ROWS])


def _value(value: Any) -> str:
    known = number(value, 3)
    return "–" if known is None else str(known)


def _with_interval(mean: Mapping[str, Any] | None) -> str:
    """A mean with its 95 % interval."""
    if mean is None or mean.get("mean") is None:
        return "–"
    return f"{_value(mean['mean'])} [{_value(mean['low'])}, {_value(mean['high'])}]"


def _first(count: int, what: str) -> str:
    return f"The first {ROWS} of {count:,} {what}" if count > ROWS else f"{count:,} {what}"


def grid(title: str, columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table with a heading for each column; the first column names the row."""
    head = "".join(f'<th style="text-align: left">{html.escape(readable(column))}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f'<td style="text-align: left">{html.escape(readable(cell, 200))}</td>' for cell in row) + "</tr>"
                   for row in rows)  # fmt: skip
    caption = f"<caption style='text-align: left'><b>{html.escape(readable(title, 300))}</b></caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
