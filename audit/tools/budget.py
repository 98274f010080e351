"""Budget: what an investigation may cost, charged before the work is done.

    calls    calls of any tool but hypothesis, note, budget and report (and `more` of their lists), mistaken ones included
    runs     model runs: 1 is about a forward pass over one prompt, or 32 tokens written (the base model's count too)
    tokens   tokens of the replies, which is what an agent has to read

What several calls need and is read once (ordinary text under a dictionary, 8 runs; the corpus by meaning) is charged to the first call
of the session that needs it. What does not fit is refused before anything runs; a call that ends in an error of what was asked gets its
runs back, since it told nothing, and stays a call. Concluding costs nothing, so that whoever has spent all can still say what was found.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ...saes import UserError
from .registry import Refused

WRITTEN = 32  # tokens written that count as a run


@dataclass(frozen=True)
class Budget:
    """The most of each."""

    calls: int = 200
    runs: int = 2_000
    tokens: int = 200_000

    def __post_init__(self) -> None:
        if min(self.calls, self.runs, self.tokens) < 0:
            raise UserError(f"expected a budget of numbers of 0 or more; got {self}; give larger ones")

    def to_dict(self) -> dict[str, int]:
        """Plain JSON data."""
        return asdict(self)


class Spending:
    """What was spent of a budget."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self.calls = self.runs = self.tokens = 0

    def left(self) -> dict[str, int]:
        """What is left of each, at least 0."""
        most = self.budget.to_dict()
        return {name: max(0, amount - getattr(self, name)) for name, amount in most.items()}

    def open(self) -> None:
        """Charge one call; Refused where the calls or the tokens are spent."""
        for name in ("calls", "tokens"):
            if not self.left()[name]:
                raise self._refused(f"{name} left for another call", f"none of {self.budget.to_dict()[name]}")
        self.calls += 1

    def charge(self, runs: int) -> None:
        """Charge model runs; Refused where there are not so many left, and then nothing is charged."""
        if runs > self.left()["runs"]:
            raise self._refused(f"{runs} model runs left for this call", f"{self.left()['runs']} of {self.budget.runs}")
        self.runs += runs

    def _refused(self, wanted: str, left: str) -> Refused:
        return Refused(
            f"expected {wanted}; got {left}; ask for less, or conclude with hypothesis and report, which cost nothing",
            "budget",
        )


def written(tokens: int, samples: int = 1) -> int:
    """Runs that `samples` texts of `tokens` new tokens cost."""
    return samples * (1 + (tokens + WRITTEN - 1) // WRITTEN)
