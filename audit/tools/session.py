"""Session: one investigation. Calls are numbered, priced, answered within a size, and written down.

    session = Session(workspace, seed=0, budget=Budget(calls=100), transcript="transcript.jsonl")
    reply = session.call("top_features", {"text": "..."})
    reply.to_dict()        {"ok": True, "id": "r1", "tool", "result", "more", "cost", "left", "seed", "about"}
                           {"ok": False, "id": "r2", "tool", "error": {"kind", "message", "field"}, "cost", "left"}

A call never raises for what it was asked: mistakes are answers. Steps of a call, in the order of the code: its turn; its number; its
arguments checked; its budget charged; the tool's work; the answer cut to fit; the line in the transcript. Several threads may call; they
take turns. The same calls under the same seed have the same replies, byte for byte.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...saes import UserError, model_info
from .answers import Answer, as_json, fit
from .board import Board
from .budget import Budget, Spending
from .measures.readings import Reading
from .registry import TOOLS, Refused, Tool
from .report import Finding, Report
from .resuming import Remembered
from .transcript import Transcript, header_of
from .untrusted import plain, shown, untrusted
from .workspace import Workspace

log = logging.getLogger(__name__)
FREE = ("hypothesis", "note", "budget", "report")  # what may still be called when all is spent
NO_EVIDENCE = (*FREE, "list_models")  # they tell what is here, and nothing of what a model does
# Calls of all kinds: so many for each of the budget's, and so many more; later ones are not written down.
FREELY, FREE_CALLS = 2, 500
LARGEST = 200_000  # characters of all arguments of a call, as JSON
NO_OBJECT = "no object of JSON data"  # what is written down instead of arguments that are none
MESSAGE = 700  # characters of an error's message
ORDER = {"supported": 0, "open": 1, "rejected": 2}


@dataclass(frozen=True)
class Reply:
    """The answer to one call; `to_dict` is what is sent and written down, `to_json` its text, which is what was measured."""

    ok: bool
    id: str
    tool: str
    body: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        """The result, empty for a call that failed."""
        return self.body.get("result", {})

    @property
    def error(self) -> dict[str, Any]:
        """What was wrong, empty for a call that was ok."""
        return self.body.get("error", {})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"ok": self.ok, "id": self.id, "tool": self.tool, **self.body}

    def to_json(self) -> str:
        """The same as text."""
        return as_json(self.to_dict())


class Session:
    """See the module. `kept` is what tools leave for later calls: graphs by id, probes by name, texts by what they were."""

    def __init__(
        self,
        workspace: Workspace,
        seed: int = 0,
        budget: Budget | None = None,
        transcript: str | Path | None = None,
        *,
        resume: bool = False,
    ):
        """UserError where the transcript's file is there already, or with `resume` was begun otherwise.

        With `resume` the same calls in the same order are answered as they stand there (resuming.py), and further ones go on from
        there; `catch_up` makes those of the file.
        """
        self.workspace, self.seed, self.budget = workspace, seed, budget or Budget()
        self.spending = Spending(self.budget)
        self.results: dict[str, dict[str, Any]] = {}
        self.board = Board(self._refusal)
        self.kept: dict[str, dict[str, Any]] = {
            "graphs": {},
            "probes": {},
            "described": {},
            "promoted": {},
            "rows": {},
            "numbers": {},
        }
        self.paid: frozenset[Reading] = frozenset()
        self.summary = ""
        self.arguments: dict[str, Any] = {}
        self._more: dict[str, tuple[str, str, list[Any], int, int]] = {}
        self._number = 0
        self._lock = threading.RLock()
        header = header_of(seed, self.budget.to_dict(), workspace.fingerprints())
        self._known = Remembered.of(transcript, header) if resume and transcript is not None else Remembered()
        self._transcript = Transcript(transcript, header, self._known.calls.values() if resume else None)

    def call(self, name: str, arguments: Any = None) -> Reply:
        """Answer one call; `arguments` is an object of JSON data, and whatever is wrong with it is in the reply.

        Raises OSError where the transcript cannot be written, UserError where one that is gone on with has another call in this place,
        and what the workspace's `turn` raises where it lets nobody wait any more: then there was no call, and the transcript has no line
        of one.
        """
        with self._lock, self.workspace.turn:
            name = shown(str(name)[:60])[:60]  # done again it changes nothing, so that a replay finds it
            if self._number >= FREELY * self.budget.calls + FREE_CALLS:
                message = (
                    f"expected at most {self._number} calls, free ones included; got another; this session is over"
                )
                error = {"kind": "budget", "message": message}
                return Reply(False, "r0", name, {"error": error, "cost": 0, "left": self.spending.left()})
            self._number += 1
            id = f"r{self._number}"
            given = _as_given(arguments)
            self.arguments[id] = NO_OBJECT if given is None else given
            reply = self._remembered(id, name) or self._answered(id, name, given)
            self.results[id] = reply.to_dict()
            if id not in self._known.calls:
                line = {"id": id, "tool": name, "arguments": self.arguments[id], "reply": reply.to_dict()}
                self._transcript.add(line)
            return reply

    def catch_up(self) -> None:
        """Make the calls of the transcript that is gone on with, so that whoever asks next finds the session as it was."""
        for line in self._known.calls.values():
            self.call(str(line["tool"]), line["arguments"])

    def log(self) -> str:
        """The transcript so far, as JSON lines, also where it is written to no file."""
        with self._lock:
            return "".join(self._transcript.lines)

    def _remembered(self, id: str, name: str) -> Reply | None:
        """The reply that an interrupted session gave, with what it cost; None where the call has to be made."""
        given = self.arguments[id]
        known = self._known.reply(id, name, given)
        if known is None or (name == "more" and given.get("handle") in self._more):  # its list was made again
            return None
        most = self.budget.to_dict()
        self.spending.calls, self.spending.runs, self.spending.tokens = (most[one] - known["left"][one] for one in most)
        if known["ok"]:
            self.paid = self.paid.union(TOOLS[name].reads(self, TOOLS[name].check(given)))
        body = {one: each for one, each in known.items() if one not in ("ok", "id", "tool")}
        return Reply(known["ok"], id, name, body)

    def _answered(self, id: str, name: str, given: dict[str, Any] | None) -> Reply:
        before, paid = self.spending.runs, self.paid
        try:
            if not self._is_free(name, given):
                self.spending.open()
            tool = self._tool(name)
            values = tool.check(_object(given))
            wanted = self.paid.union(tool.reads(self, values))
            self.spending.charge(tool.price(self, values) + sum(each.runs for each in wanted - self.paid))
            self.paid = wanted
            answer = tool.function(self, **values)
            return self._fitted(id, tool, answer, self.spending.runs - before)
        except UserError as error:
            self.spending.runs, self.paid = before, paid  # nothing was learned; the call itself stays charged
            return self._failed(id, name, error if isinstance(error, Refused) else Refused(str(error), "user"), before)
        except Exception as error:
            log.exception("the tool %s failed", name)
            message = f"expected {name} to work; it failed ({type(error).__name__}); this is a defect, go on with another tool"
            return self._failed(id, name, Refused(message, "internal"), before)

    def _is_free(self, name: str, given: dict[str, Any] | None) -> bool:
        """Whether a call is of those that conclude, or reads on in what one of them listed."""
        handle = (given or {}).get("handle") if name == "more" else None
        if isinstance(handle, str) and handle in self._more:
            name = self.results[self._more[handle][0]]["tool"]
        return name in FREE

    def _tool(self, name: str) -> Tool:
        if name not in TOOLS:
            raise Refused(f"expected a tool ({', '.join(TOOLS)}); got {name!r}; choose one", "unknown_tool")
        return TOOLS[name]

    def _fitted(self, id: str, tool: Tool, answer: Answer, cost: int) -> Reply:
        answer = Answer(plain(answer.result), answer.rows, plain(answer.about), answer.seed)
        handle = f"{id}/2"

        def framed(result: dict[str, Any], is_cut: bool) -> dict[str, Any]:
            seed = self.seed if answer.seed is None else answer.seed
            body = {
                "result": result,
                **({"more": handle} if is_cut else {}),
                "cost": cost,
                "left": self.spending.left(),
            }
            return Reply(True, id, tool.name, {**body, "seed": seed, "about": answer.about}).to_dict()

        result, rest = fit(answer, framed, self.workspace.count)
        if rest and answer.rows is not None:
            total = len(answer.result[answer.rows])
            self._more[handle] = (id, answer.rows, rest, total - len(rest), total)
        body = framed(result, bool(rest))
        self.spending.tokens += self.workspace.count(as_json(body))
        return self._sent(body)

    def _failed(self, id: str, name: str, why: Refused, before: int) -> Reply:
        error: dict[str, Any] = {"kind": why.kind, "message": shown(str(why), MESSAGE)}
        error |= {} if why.field is None else {"field": why.field}
        error |= {} if why.said is None else {"said": untrusted(why.said)}
        body = {"error": error, "cost": self.spending.runs - before, "left": self.spending.left()}
        while self.workspace.count(as_json(body)) > 1_500:  # a message of signs that are many tokens each
            error["message"] = error["message"][: len(error["message"]) // 2]
        self.spending.tokens += self.workspace.count(as_json(body))
        return self._sent({"ok": False, "id": id, "tool": name, **body})

    def _sent(self, body: dict[str, Any]) -> Reply:
        rest = {name: each for name, each in body.items() if name not in ("ok", "id", "tool", "left")}
        return Reply(body["ok"], body["id"], body["tool"], {**rest, "left": self.spending.left()})

    def rest(self, handle: str) -> Answer:
        """The next rows of a list that was cut, for the tool `more`; Refused for a handle that was not given."""
        if handle not in self._more:
            known = ", ".join(list(self._more)[-5:]) or "none"
            raise Refused(
                f"expected a handle of a reply's `more` ({known}); got {shown(handle, 40)!r}; take one", field="handle"
            )
        of, rows, left, start, total = self._more[handle]
        number = int(handle.partition("/")[2]) + 1

        def framed(result: dict[str, Any], is_cut: bool) -> dict[str, Any]:
            frame = {
                "ok": True,
                "id": f"r{self._number}",
                "tool": "more",
                "left": self.spending.left(),
                "about": {},
                "seed": self.seed,
            }
            return {
                **frame,
                "more": f"{of}/{number}" if is_cut else "",
                "result": {**result, "of": of, "from": start, "total": total, "next": handle},
            }

        result, rest = fit(Answer({rows: left}, rows), framed, self.workspace.count)
        after = start + len(left) - len(rest)
        found = {"of": of, "from": start + 1, "to": after, "total": total, rows: result[rows]}
        if rest:
            self._more[f"{of}/{number}"] = (of, rows, rest, after, total)
            found["next"] = f"{of}/{number}"
        return Answer(found)

    def about(self, dictionary: str | None = None) -> dict[str, Any]:
        """Which models and dictionary a result was measured with."""
        found: dict[str, Any] = {
            name: model_info(model).fingerprint[:12] for name, model in self.workspace.models.items()
        }
        if dictionary is not None:
            found |= {"dictionary": dictionary, "fingerprint": self.workspace.dictionaries[dictionary].fingerprint[:12]}
        return found

    def report(self) -> Report:
        """The board as it stands now, supported hypotheses first, each with the calls that it cites."""
        findings = [
            Finding(
                each.id, each.statement, each.status, each.because,
                tuple({"id": id, "tool": self.results[id]["tool"], "arguments": self.arguments[id]} for id in each.evidence),
            )
            for each in sorted(self.board.hypotheses.values(), key=lambda each: ORDER[each.status])
        ]  # fmt: skip
        spent = {name: getattr(self.spending, name) for name in ("calls", "runs", "tokens")}
        return Report(
            self.summary, tuple(findings), tuple(each.to_dict() for each in self.board.notes), self.seed,
            self.workspace.fingerprints(), self._number, spent, self.budget.to_dict(),
        )  # fmt: skip

    def _refusal(self, id: str) -> str | None:
        """Why a result cannot be cited."""
        if id not in self.results:
            return "which is no result"
        found = self.results[id]
        if not found["ok"]:
            return "which failed"
        if found["tool"] == "more":
            found = self.results[found["result"]["of"]]
        return "which observed nothing" if found["tool"] in NO_EVIDENCE else None


def _as_given(arguments: Any) -> dict[str, Any] | None:
    """The arguments as JSON data; None for what is no object of JSON data, or too much."""
    try:
        text = json.dumps({} if arguments is None else arguments, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    found = json.loads(text) if len(text) <= LARGEST else None
    return found if isinstance(found, dict) else None


def _object(given: dict[str, Any] | None) -> dict[str, Any]:
    if given is None:
        raise Refused(
            f"expected arguments as one object of finite JSON data, at most {LARGEST} characters; got something else"
        )
    return given
