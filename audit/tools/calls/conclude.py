"""Conclude: hypotheses with their evidence, notes, what is left to spend, the report, and the rest of a long list."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..answers import Answer
from ..board import Status
from ..fields import Evidence, Sentence, Short
from ..registry import Refused, tool
from ..session import Session
from ..untrusted import shown


@tool("conclude", reads_only=False)
def hypothesis(
    session: Session,
    action: Literal["add", "update", "list"],
    statement: Annotated[Sentence, Field(max_length=500)] | None = None,
    id: Short | None = None,
    status: Status | None = None,
    evidence: Evidence = [],  # noqa: B006  (never changed)
    because: Annotated[str, Field(max_length=500)] = "",
) -> Answer:
    """The hypothesis board: add a claim, update its status by evidence, or list the claims.

    A claim is open until evidence decides; supported and rejected need ids of results (such as r3) that exist, were ok and observed
    something: list_models and the board did not. Costs nothing.

    Args:
        action: add (needs statement), update (needs id), or list.
        statement: One claim that could turn out false.
        id: The claim to update, such as h1.
        status: open, supported or rejected.
        evidence: Ids of the results that the status rests on, such as ["r3", "r7"]; added to those it has.
        because: Why the evidence decides it, in a sentence.
    """
    board = session.board
    if action == "add":
        if statement is None:
            raise Refused("expected a statement to add; got none; give one claim", field="statement")
        return Answer({"hypothesis": board.add(statement, status or "open", evidence, because).to_dict()})
    if action == "update":
        if id is None:
            raise Refused("expected the id of the claim to update; got none; list them", field="id")
        return Answer({"hypothesis": board.update(id, status, evidence, because, statement).to_dict()})
    return Answer({"hypotheses": [each.to_dict() for each in board.hypotheses.values()]}, "hypotheses")


@tool("conclude", reads_only=False)
def note(session: Session, text: Sentence, evidence: Evidence = []) -> Answer:  # noqa: B006
    """Keep a note of your own, with the results it is about. Costs nothing.

    Args:
        text: What to remember.
        evidence: Ids of results that it is about.
    """
    return Answer({"note": session.board.note(text, evidence).to_dict(), "notes": len(session.board.notes)})


@tool("conclude")
def budget(session: Session) -> Answer:
    """What is spent and what is left: calls, model runs, and tokens of replies. Costs nothing."""
    spent = {name: getattr(session.spending, name) for name in ("calls", "runs", "tokens")}
    return Answer({"budget": session.budget.to_dict(), "spent": spent, "left": session.spending.left()})


@tool("conclude", reads_only=False)
def report(session: Session, summary: Annotated[str, Field(max_length=1_000)] = "") -> Answer:
    """The findings as they stand: every claim with its status and the results that it cites. Costs nothing; ask again at any time.

    Args:
        summary: What was found, in a few sentences; kept at the head of the report. Left out: the earlier one stays.
    """
    if summary.strip():
        session.summary = shown(summary.strip(), 1_000)
    made = session.report()
    findings = [
        {"id": each.id, "status": each.status, "statement": each.statement, "because": each.because,
         "evidence": [f"{one['id']} ({one['tool']})" for one in each.evidence]}
        for each in made.findings
    ]  # fmt: skip
    counts = {
        status: sum(each.status == status for each in made.findings) for status in ("supported", "open", "rejected")
    }
    return Answer(
        {"summary": made.summary, "counts": counts, "findings": findings, "notes": len(made.notes)}, "findings"
    )


@tool("conclude")
def more(session: Session, handle: Short) -> Answer:
    """The next part of a list that was too long for one reply. Counts as a call (but for lists of tools that cost nothing), runs nothing.

    Args:
        handle: The `more` of the reply that was cut, or the `next` of an earlier part, such as r7/2.
    """
    return session.rest(handle)
