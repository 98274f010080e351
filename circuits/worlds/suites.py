"""Worlds with known circuits, and what the tracer makes of them: the ground truth behind `unweave bench circuits`.

| suite | the truth comes from | file |
|---|---|---|
| identities | algebra, on random models | worlds_exact.py |
| planted | virtual weights put into random models | worlds_planted.py |
| programs | weights compiled by hand | worlds_programs.py |
| induction | a probe of a 2-layer attention-only model trained here | worlds_induction.py |
| addition | the known Fourier circuit of a model trained here | worlds_addition.py |
| shortcut | two cross-layer transcoders of one Boolean program | worlds_shortcut.py |
| metamorphic | changes of a dictionary that mean nothing | worlds_metamorphic.py |

Each suite takes a seed, measures, and returns rows. Everything runs on a CPU; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...saes.errors import UserError
from .addition import addition
from .exact import identities
from .induction import induction
from .metamorphic import metamorphic
from .planted import planted
from .programs import programs
from .shortcut import shortcuts
from .tools import Row

SUITES: dict[str, Callable[[int], list[Row]]] = {
    "identities": identities,
    "planted": planted,
    "programs": programs,
    "induction": induction,
    "addition": addition,
    "shortcut": shortcuts,
    "metamorphic": metamorphic,
}


def run_suite(name: str, seed: int = 0) -> list[Row]:
    """The rows of one suite; UserError for a name that is none."""
    if name not in SUITES:
        raise UserError(f"expected suites among {', '.join(SUITES)}; got {name!r}; leave it out to run all")
    return SUITES[name](seed)


def failed(rows: Sequence[Row]) -> list[Row]:
    """Those that missed their target."""
    return [row for row in rows if not row.passed]
