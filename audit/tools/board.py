"""The hypothesis board: what is believed, how far, and by which results.

    h1   open        "it changes its answer when the prompt names the year"
    h1   supported   ... evidence r4 (the change of the target's logit is outside that of all controls)

A hypothesis is open until evidence decides. Supporting or rejecting one takes at least one result that exists, was ok, and was an
observation: nothing that was never measured can be cited, nor the board itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from .registry import Refused
from .untrusted import shown

Status = Literal["open", "supported", "rejected"]
HYPOTHESES, NOTES, EVIDENCE = 50, 100, 20


@dataclass(frozen=True)
class Hypothesis:
    """One claim: `evidence` are ids of results, `because` why they decide it, `changes` its earlier states in words."""

    id: str
    statement: str
    status: Status
    evidence: tuple[str, ...]
    because: str
    changes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        found = asdict(self)
        return {**found, "evidence": list(self.evidence), "changes": list(self.changes)}


@dataclass(frozen=True)
class Note:
    """Something to remember, with the results it is about."""

    id: str
    text: str
    evidence: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"id": self.id, "text": self.text, "evidence": list(self.evidence)}


class Board:
    """Hypotheses by id, and notes. `refusal(id)` says why a result cannot be cited, None where it can."""

    def __init__(self, refusal: Callable[[str], str | None]):
        self.hypotheses: dict[str, Hypothesis] = {}
        self.notes: list[Note] = []
        self._refusal = refusal

    def add(
        self, statement: str, status: Status = "open", evidence: Sequence[str] = (), because: str = ""
    ) -> Hypothesis:
        """A new hypothesis. Refused for one that stands already, too many, or evidence that does not count."""
        statement = _told(statement, 500, "statement")
        same = next(
            (one.id for one in self.hypotheses.values() if one.statement.casefold() == statement.casefold()), None
        )
        if same is not None:
            raise Refused(f"expected a statement that is new; got {same}; update that one", field="statement")
        if len(self.hypotheses) >= HYPOTHESES:
            raise Refused(
                f"expected at most {HYPOTHESES} hypotheses; got another; update one that stands", field="statement"
            )
        cited = self._cited(status, evidence)
        made = Hypothesis(f"h{len(self.hypotheses) + 1}", statement, status, cited, shown(because, 500))
        self.hypotheses[made.id] = made
        return made

    def update(
        self,
        id: str,
        status: Status | None = None,
        evidence: Sequence[str] = (),
        because: str = "",
        statement: str | None = None,
    ) -> Hypothesis:
        """Change one that stands; evidence is added to what it has. Refused as for `add`."""
        if id not in self.hypotheses:
            known = ", ".join(self.hypotheses) or "none"
            raise Refused(
                f"expected the id of a hypothesis ({known}); got {shown(id, 40)!r}; add one first", field="id"
            )
        old = self.hypotheses[id]
        new_status: Status = status or old.status
        every = tuple(dict.fromkeys([*old.evidence, *evidence]))
        cited = self._cited(new_status, every)
        said = shown(statement.strip(), 500) if statement and statement.strip() else old.statement
        was = f"{old.status}: {', '.join(old.evidence) or 'no evidence'}"
        was += "" if said == old.statement else f"; it said: {old.statement}"
        made = replace(
            old, status=new_status, evidence=cited, because=shown(because, 500) or old.because, statement=said,
            changes=(*old.changes, was)[-10:],
        )  # fmt: skip
        self.hypotheses[id] = made
        return made

    def note(self, text: str, evidence: Sequence[str] = ()) -> Note:
        """Keep a note; Refused where there are too many, or for results that are not there."""
        if len(self.notes) >= NOTES:
            raise Refused(f"expected at most {NOTES} notes; got another; use what is there", field="text")
        made = Note(f"n{len(self.notes) + 1}", _told(text, 1_000, "text"), self._cited("open", evidence))
        self.notes.append(made)
        return made

    def _cited(self, status: Status, evidence: Sequence[str]) -> tuple[str, ...]:
        cited = tuple(dict.fromkeys(evidence))
        if len(cited) > EVIDENCE:
            raise Refused(
                f"expected at most {EVIDENCE} results as evidence; got {len(cited)}; cite the best", field="evidence"
            )
        for id in cited:
            if (why := self._refusal(id)) is not None:
                raise Refused(
                    f"expected ids of results that were ok; got {shown(id, 40)!r}, {why}; cite others", field="evidence"
                )
        if status != "open" and not cited:
            raise Refused(
                f"expected at least one result as evidence for {status}; got none; cite ids such as r3, or leave it open",
                field="evidence",
            )
        return cited


def _told(text: str, longest: int, field: str) -> str:
    """What an agent writes down, on one line; Refused where there is nothing to see."""
    if not text.strip():
        raise Refused(f"expected a {field} that says something; got white space; write it out", field=field)
    return shown(text.strip(), longest)
