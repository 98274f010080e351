"""What a session reads once and has from then on: ordinary text under a dictionary, and the corpus by meaning.

A workspace keeps what was read, and several sessions may share it. So that the same calls cost the same in each, and in a replay, a
session pays for a reading at the first call of its own that needs it, whether or not somebody else has read it before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .baseline import TOKENS
from .meaning import documents_read

if TYPE_CHECKING:
    from ..session import Session
    from ..workspace import Workspace

AT_ONCE = 512  # tokens read that count as a run: the longest prompt


class Reading(NamedTuple):
    """Ordinary text under a dictionary in a model or, with no dictionary, the corpus by meaning in it; and what it costs in runs."""

    dictionary: str | None
    model: str
    runs: int


def ordinary(workspace: Workspace, dictionary: str, which: str = "target") -> Reading:
    """The baseline text under a dictionary."""
    workspace.model(which)
    return Reading(dictionary, which, TOKENS // AT_ONCE)


def by_meaning(workspace: Workspace) -> Reading:
    """The beginnings of the corpus' documents."""
    return Reading(None, "target", -(-documents_read(workspace.corpus) // AT_ONCE))


def usual_of(workspace: Workspace, dictionary: str) -> list[Reading]:
    """What the norms of a dictionary are read from: nothing where there is a store of it."""
    return [] if workspace.store(dictionary) is not None else [ordinary(workspace, dictionary)]


def usual(session: Session, given: Mapping[str, Any]) -> list[Reading]:
    """What most tools need: the norms of the dictionary that a call names. UserError where there is none."""
    return usual_of(session.workspace, session.workspace.dictionary(given["dictionary"]))


def in_all(session: Session, given: Mapping[str, Any]) -> list[Reading]:
    """The norms, and ordinary text in the target and in the base where there is one."""
    name = session.workspace.dictionary(given["dictionary"])
    both = [ordinary(session.workspace, name, which) for which in session.workspace.models]
    return usual_of(session.workspace, name) + (both if session.workspace.has_base else [])
