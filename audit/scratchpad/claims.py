"""Is the value that a sentence states the value that the answer is made of? It is edited, and the answer should follow.

A claim names a value in a sentence (or, with sentence None, in the prompt: a hint), and edits of it: the new value, and the answer that
would follow from it where one is known. With the text edited, everything else as it was,

    drop     = 1 - Q(a) / P(a)                                      how much of the old answer goes
    follows  = Q(a_new) - P(a_new)                                  how much of the new one comes, where it is known
    chance   = mean of Q(a_other) - P(a_other) over the other edits' answers: what follows if any new value would do

`states` is `follows` (or, without a new answer, `drop`) when not the text is edited but the stream of the value's tokens, entering
every block, is put to what the edited run has there, with later sentences keeping what they had read: the latent edit. It needs as
many tokens.
A value that later sentences repeat goes on standing there: edit it in all of them, or the answer will rightly follow the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from ...saes import UserError
from .answers import answer_logs, probability
from .mediation import put, states
from .spans import Piece, Written, after, edited, piece, places, prompt_piece

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Claim(NamedTuple):
    """A stated value: the sentence (None: the prompt) and its text there; `edits` are (new value, the answer that follows or None)."""

    sentence: int | None
    value: str
    edits: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Followed:
    """What edits of one claim did, a number an edit.

    `follows` and `chance` are NaN where no answer is known, `states` where the edited text has another length.
    """

    sentence: int | None
    value: str
    drop: list[float]
    follows: list[float]
    chance: list[float]
    states: list[float]

    @property
    def mean(self) -> dict[str, float]:
        """Means over the edits for which each is known; NaN where it is for none."""
        return {name: mean_known(getattr(self, name)) for name in ("drop", "follows", "chance", "states")}

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self) | {"mean": self.mean}


def claimed_vs_used(model: TransformerBridge, run: Written, claims: Sequence[Claim]) -> list[Followed]:
    """Edit each claim in the text, and in the states, and see whether the answer follows. UserError for a value that is not there."""
    for claim in claims:
        check_claim(run, claim)
    return [_follow(model, run, claim) for claim in claims]


def check_claim(run: Written, claim: Claim) -> None:
    """UserError for a claim about a sentence that is not there, without edits, or with one that changes nothing."""
    if claim.sentence is not None and not 0 <= claim.sentence < len(run.sentences):
        raise UserError(
            f"expected a claim about one of {len(run.sentences)} sentences; got sentence {claim.sentence}; they count from 0"
        )
    if not claim.edits:
        raise UserError(
            f"expected at least one edit of the value {claim.value!r}; got none; give (new value, new answer or None)"
        )
    if any(new.strip() == claim.value.strip() for new, _ in claim.edits):
        raise UserError(f"expected edits that change {claim.value!r}; got the same text; give another")


def rewritten(model: TransformerBridge, run: Written, claim: Claim, value: str) -> Written:
    """The run with the claim's value replaced in the text."""
    holder = holder_of(run, claim)
    places(model, holder, claim.value)
    text = edited(holder.text, claim.value, value)
    if claim.sentence is None:
        return replace(run, prompt=prompt_piece(model, holder, text))
    return run.with_sentence(claim.sentence, piece(model, text))


def holder_of(run: Written, claim: Claim) -> Piece:
    """The piece in which the value stands."""
    return run.prompt if claim.sentence is None else run.sentences[claim.sentence]


def claim_positions(model: TransformerBridge, run: Written, claim: Claim) -> range:
    """Positions of the value's tokens in the run."""
    inside = places(model, holder_of(run, claim), claim.value)
    start = 0 if claim.sentence is None else run.spans.sentences[claim.sentence].start
    return range(start + inside.start, start + inside.stop)


def _follow(model: TransformerBridge, run: Written, claim: Claim) -> Followed:
    answers = [None if answer is None else piece(model, after(answer)) for _, answer in claim.edits]
    before = _probabilities(model, run, answers)
    drop, follows, chance, latent = [], [], [], []
    for number, (value, _) in enumerate(claim.edits):
        changed = rewritten(model, run, claim, value)
        seen = _probabilities(model, changed, answers)
        drop.append(1 - seen[0] / max(before[0], 1e-300))
        gains = [b - a for a, b in zip(before[1:], seen[1:], strict=True)]
        others = [gain for place, gain in enumerate(gains) if place != number and not _is_same(answers, place, number)]
        follows.append(gains[number])
        chance.append(mean_known(others) if answers[number] is not None else float("nan"))
        latent.append(_in_states(model, run, claim, changed, answers[number], before, number))
    return Followed(claim.sentence, claim.value, drop, follows, chance, latent)


def _is_same(answers: Sequence[Piece | None], a: int, b: int) -> bool:
    first, second = answers[a], answers[b]
    return first is not None and second is not None and first.ids == second.ids


def _probabilities(
    model: TransformerBridge, run: Written, answers: Sequence[Piece | None], hooks: Sequence[Any] = ()
) -> list[float]:
    """P of the run's own answer, then of each other one; NaN for None."""
    runs = [run] + [replace(run, answer=answer) for answer in answers if answer is not None]
    p = iter([probability(logs, each) for logs, each in zip(answer_logs(model, runs, hooks), runs, strict=True)])
    return [next(p)] + [float("nan") if answer is None else next(p) for answer in answers]


def _in_states(
    model: TransformerBridge,
    run: Written,
    claim: Claim,
    changed: Written,
    answer: Piece | None,
    before: list[float],
    number: int,
) -> float:
    """The effect of the edit in the states of the value's tokens alone; NaN where the edited text has another length."""
    if [len(each.ids) for each in run.pieces] != [len(each.ids) for each in changed.pieces]:
        return float("nan")
    hooks = put([(states(model, changed), claim_positions(model, run, claim))])
    seen = _probabilities(model, run, [answer], hooks)
    return 1 - seen[0] / max(before[0], 1e-300) if answer is None else seen[1] - before[1 + number]


def mean_known(values: Sequence[float]) -> float:
    """Mean of those that are numbers; NaN without any."""
    known = [value for value in values if value == value]
    return fmean(known) if known else float("nan")
