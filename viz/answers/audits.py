"""An audit as the page shows it: findings, the results that each cites, and every call.

| path | answer |
|---|---|
| `audits/A` | summary, findings with their evidence, notes, a line for each call, seed, budget, what was looked at |
| `audits/A/calls/ID` | one call: tool, arguments, reply |

Statements and replies hold text that models and corpora wrote; in a reply it stands as {"untrusted": text}, and the page marks it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..audits import Audit
from ..text import jsonable, number, readable
from .registry import nth, path

if TYPE_CHECKING:
    from ..things import Things

LINE = 160  # characters of a call's arguments in its line
LONGEST = 4000  # characters of a text in a reply
CARRIED = 300  # calls of an audit that a page carries with their replies, those that are cited first
STATES = ("supported", "open", "rejected")


@path(r"audits/(\d{1,6})")
def audit(things: Things, place: int) -> dict[str, Any]:
    """The audit at a place."""
    found = audit_at(things, place)
    report = found.report
    about = {name: report.get(name, found.header.get(name)) for name in ("seed", "budget", "spent", "workspace")}
    return {
        **audit_row(list(things.audits)[place], found),
        "findings": [_finding(each) for each in _dicts(report.get("findings"))],
        "note_texts": [_note(each) for each in _dicts(report.get("notes"))],
        "lines": [_line(call) for call in found.calls],
        "about": jsonable(about),
    }


def audit_row(name: str, found: Audit) -> dict[str, Any]:
    """An audit in the numbers that one looks at first."""
    states = Counter(str(each.get("status")) for each in _dicts(found.report.get("findings")))
    return {
        "name": readable(name),
        "summary": _text(found.report.get("summary"), 1000),
        "is_finished": bool(found.report),
        **{state: states[state] for state in STATES},
        "calls": len(found.calls),
        "failed": sum(call["reply"].get("ok") is not True for call in found.calls),
    }


def audit_at(things: Things, place: int) -> Audit:
    """The audit at a place; KeyError where there is none."""
    return nth(list(things.audits.values()), place)


@path(r"audits/(\d{1,6})/calls/(r\d{1,9})")
def audit_call(things: Things, place: int, name: str) -> dict[str, Any]:
    """One call of an audit by the id of its result."""
    for call in audit_at(things, place).calls:
        if call["id"] == name:
            return {**_line(call), "given": jsonable(call["arguments"], 12, LONGEST), "reply": _reply(call["reply"])}
    raise KeyError(name)


def _reply(reply: dict[str, Any]) -> Any:
    """What was answered: the result, or the error."""
    part = "result" if reply.get("ok") is True else "error"
    return jsonable(reply.get(part), 12, LONGEST)


def _line(call: dict[str, Any]) -> dict[str, Any]:
    reply = call["reply"]
    error = reply.get("error")
    arguments = json.dumps(call["arguments"], ensure_ascii=False, default=str)
    return {
        "id": readable(call["id"], 40),
        "tool": readable(call["tool"], 40),
        "arguments": readable(arguments.removeprefix("{").removesuffix("}"), LINE),
        "ok": reply.get("ok") is True,
        "cost": number(reply.get("cost")),
        "error": _text(error.get("message"), 400) if isinstance(error, dict) else None,
    }


def _finding(each: dict[str, Any]) -> dict[str, Any]:
    status = str(each.get("status"))
    return {
        "id": readable(each.get("id", ""), 40),
        "statement": _text(each.get("statement"), 1000),
        "status": status if status in STATES else "open",
        "because": _text(each.get("because"), 1000),
        "evidence": _cited([one.get("id") for one in _dicts(each.get("evidence"))]),
    }


def _note(each: dict[str, Any]) -> dict[str, Any]:
    return {"text": _text(each.get("text"), 1000), "evidence": _cited(each.get("evidence"))}


def _cited(ids: Any) -> list[str]:
    return [readable(each, 40) for each in ids if isinstance(each, str)] if isinstance(ids, list) else []


def _text(text: Any, longest: int) -> str:
    return readable(text, longest) if isinstance(text, str) else ""


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def frozen_audits(things: Things) -> Iterator[tuple[str, Any]]:
    """What a page carries of each audit: all of its lines, and at most CARRIED replies."""
    for place in range(len(things.audits)):
        answer = audit(things, place)
        yield f"audits/{place}", answer
        cited = [name for part in ("findings", "note_texts") for each in answer[part] for name in each["evidence"]]
        known = {line["id"] for line in answer["lines"]}
        wanted = dict.fromkeys([*(name for name in cited if name in known), *(line["id"] for line in answer["lines"])])
        for name in list(wanted)[:CARRIED]:
            try:
                yield f"audits/{place}/calls/{name}", audit_call(things, place, name)
            except KeyError:  # an id that is not as ids are
                continue
