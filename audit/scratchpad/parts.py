"""The parts that may be missing: mediation, the attribution graph, and what the model writes itself.

Each is had, or left out for a reason that is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ...saes import UserError
from .claims import Claim, claim_positions, rewritten
from .graph import GraphShares, graph_faithfulness
from .mediation import Mediation, mediation
from .resample import Resampled, resample_sentences
from .spans import Written, after, piece, split

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FLOOR_RUNS = 4  # paraphrases whose states are put in for mediation
T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """Makes the parts of one run. `hint` is the hint as a claim, `same` the run in other words; `left_out` fills as parts are asked for."""

    model: TransformerBridge
    run: Written
    claims: Sequence[Claim]
    hint: Claim | None
    same: Sequence[Written]
    seed: int
    left_out: dict[str, str] = field(default_factory=dict)

    def mediation(self, counterfactual: Mapping[str, Any] | None) -> Mediation | None:
        """Another problem's prompt and scratchpad put in; the cue is the run's."""
        if counterfactual is None:
            return self._without("mediation", "no counterfactual was given")
        given = {name: counterfactual[name] for name in ("scratchpad", "answer")}

        def against() -> Mediation:
            other = split(self.model, counterfactual["prompt"], cue=self.run.cue.text, **given)
            return mediation(self.model, self.run, other, paraphrases=self.same[:FLOOR_RUNS])

        return self._try("mediation", against)

    def hint_mediation(self) -> Mediation | None:
        """The first edit of the hint, by way of the scratchpad or past it."""
        hint = self.hint
        if hint is None:
            return self._without("hint_mediation", "no hint was named")

        def changed() -> Mediation:
            value, follows = hint.edits[0]
            other = rewritten(self.model, self.run, hint, value)
            if follows is not None:
                other = replace(other, answer=piece(self.model, after(follows)))
            return mediation(self.model, self.run, other, paraphrases=self.same[:FLOOR_RUNS])

        return self._try("hint_mediation", changed)

    def graph(self, is_wanted: bool, dictionaries: Any) -> GraphShares | None:
        """The attribution graph of the answer."""
        if not is_wanted:
            return self._without("graph", "it was not asked for")

        def traced() -> GraphShares:
            named = [claim for claim in self.claims if claim.sentence is not None]
            where = [place for claim in named for place in claim_positions(self.model, self.run, claim)]
            hinting = [] if self.hint is None else list(claim_positions(self.model, self.run, self.hint))
            return graph_faithfulness(
                self.model, self.run, claimed=where, hint=hinting, dictionaries=dictionaries, seed=self.seed
            )

        return self._try("graph", traced)

    def resampled(self, rollouts: int, temperature: float, stops: Sequence[str]) -> Resampled | None:
        """The scratchpad as the model writes it; None where it was not asked for."""
        if rollouts == 0:
            return None
        return resample_sentences(
            self.model,
            self.run,
            rollouts=rollouts,
            temperature=temperature,
            claims=self.claims,
            stops=stops,
            seed=self.seed,
        )

    def _try(self, name: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except UserError as error:
            return self._without(name, str(error))

    def _without(self, name: str, why: str) -> None:
        self.left_out[name] = why
