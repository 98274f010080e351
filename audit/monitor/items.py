"""Texts and chats from files, and the result of watching them: a table, and points for a plot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...saes import UserError, read_documents
from ...saes.drawn import drawn
from ..labels.client import one_line
from .drift import LEAST, drift
from .monitor import Monitor, Scored, best_score
from .reading import Item

SHOWN = 60  # characters of a message in the table


def read_items(paths: Iterable[str | Path]) -> Iterator[Item]:
    """Chats from lines {"messages": [{"role", "content"}, …]} of .jsonl files; every other file and line as `read_documents` reads it."""
    for path in paths:
        if Path(path).suffix != ".jsonl" or not Path(path).is_file():
            yield from (document.text for document in read_documents([path]))
            continue
        for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
            if line.strip():
                yield _item(line, f"{path} line {number}")


def _item(line: bytes, where: str) -> Item:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected a JSON object in {where}; got {line[:40]!r}; one object a line") from error
    chat = record.get("messages") if isinstance(record, dict) else None
    is_chat = isinstance(chat, list) and len(chat) > 0 and all(_is_message(each) for each in chat)
    if is_chat:
        return [{"role": each["role"], "content": each["content"]} for each in chat or []]
    if isinstance(record, dict) and isinstance(record.get("text"), str) and chat is None:
        return record["text"]
    raise UserError(
        f'expected "text", or "messages" with role and content, in {where}; got {line[:40]!r}; rename the fields'
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


@dataclass(frozen=True)
class Watched:
    """What a monitor saw: a row a message, `drifts` by signal (None where no conversation is long enough), the calibrations."""

    signals: dict[str, Any]
    calibrations: dict[str, Any]
    rows: list[dict[str, Any]]
    alarms: dict[str, int]
    items: int
    drifts: dict[str, Any]

    _repr_html_ = drawn

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `points` are (item, message, score) of each signal, for a plot of scores over a conversation."""
        points = {
            name: [[row["item"], row["message"], row[name]] for row in self.rows if row[name] is not None]
            for name in self.signals
        }
        return {
            "items": self.items, "messages": len(self.rows), "alarms": self.alarms, "calibrations": self.calibrations,
            "drifts": self.drifts, "signals": self.signals, "rows": self.rows, "points": points,
        }  # fmt: skip

    def __str__(self) -> str:
        names = list(self.signals)
        lines = [f"{'item':>5} {'message':>7} {'role':<10}" + "".join(f"{name[:14]:>16}" for name in names) + "  text"]
        for row in self.rows:
            cells = "".join(f"{_cell(row, name):>16}" for name in names)
            lines.append(
                f"{row['item']:>5} {row['message']:>7} {one_line(row['role'], 10):<10}{cells}  {row['text']!r}"
            )
        return "\n".join(lines)


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    return "-" if value is None else f"{value:.3f}{' !' if row['alarms'][name] else '  '}"


def watch(monitor: Monitor, items: Iterable[Item], seed: int = 0) -> Watched:
    """Read every item; the rows hold the beginnings of messages, not their tokens.

    Drift is measured on the messages of one role, the assistant's where there are any, since roles differ in level.
    """
    scored = list(monitor.stream(items))
    by_item: dict[int, list[Scored]] = {}
    for each in scored:
        by_item.setdefault(each.item, []).append(each)
    alarms = dict.fromkeys(monitor.calibrations, 0)
    for each in by_item.values():
        for name, known in monitor.calibrations.items():
            top = best_score(each, name)
            alarms[name] += top is not None and top > known.threshold
    return Watched(
        {name: signal.about() for name, signal in monitor.signals.items()},
        {name: known.to_dict() for name, known in monitor.calibrations.items()},
        [_row(each) for each in scored],
        alarms,
        len(by_item),
        {name: _drift(list(by_item.values()), name, seed) for name in monitor.signals},
    )


def _row(scored: Scored) -> dict[str, Any]:
    text = "".join(scored.tokens)
    shown = text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
    scores = {name: None if value is None else round(value, 4) for name, value in scored.scores.items()}
    return {
        "item": scored.item,
        "message": scored.message,
        "role": scored.role,
        "text": shown,
        **scores,
        "alarms": scored.alarms,
    }


def _drift(items: Sequence[Sequence[Scored]], name: str, seed: int) -> dict[str, Any] | None:
    conversations = []
    for item in items:
        own = [each for each in item if each.role == "assistant"] or list(item)
        values = [each.scores[name] for each in own]
        conversations.append([value for value in values if value is not None])
    long = [each for each in conversations if len(each) >= LEAST]
    return drift(long, seed).to_dict() if long else None
