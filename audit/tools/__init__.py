"""Tools with which an agent, a script or a person finds what a model hides: one registry, a session with a budget, a board, a transcript.

session = Session(Workspace({"target": model, "base": base}, {"resid": dictionary}), seed=0, budget=Budget(calls=100), transcript="t.jsonl")
reply = session.call("compare_texts", {"a": [...], "b": [...]})
session.call("hypothesis", {"action": "add", "statement": "...", "status": "supported", "evidence": [reply.id]})
session.report().save("report.json")
replay("t.jsonl", workspace).equal

Modules: registry.py what a tool is, fields.py its arguments · workspace.py what may be looked at, opening.py from folders · session.py a
call, budget.py, answers.py its size, untrusted.py text that is data · board.py, report.py, transcript.py, replay.py what stays · calls/
the tools · measures/ what they share.
"""

from . import calls  # noqa: F401  (registers the tools)
from .answers import Answer
from .board import Board, Hypothesis, Note
from .budget import Budget
from .registry import TOOLS, Refused, Tool, schemas, tool
from .replay import Replayed, replay
from .report import Finding, Report
from .session import Reply, Session
from .transcript import read_transcript
from .workspace import Workspace

__all__ = [
    "TOOLS",
    "Answer",
    "Board",
    "Budget",
    "Finding",
    "Hypothesis",
    "Note",
    "Refused",
    "Replayed",
    "Reply",
    "Report",
    "Session",
    "Tool",
    "Workspace",
    "read_transcript",
    "replay",
    "schemas",
    "tool",
]
