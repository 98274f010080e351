"""Which sentences does the model's own writing hang on? It writes the scratchpad anew from each sentence on, many times.

The rollouts R_i (rollouts.py) go on after the first i sentences: those of R_{i-1} write sentence i themselves, those of R_i keep it. With
A_i the mean distribution of answers over R_i,

    importance(i)      = ½ Σ_answers |A_i - A_{i-1}|            total variation; 0: the answers stay as they are, 1: none is the same
    counterfactual(i)  = the same, A_{i-1} over those rollouts alone whose own sentence i says something else

(Bogdan et al. 2025, arXiv 2506.19143, "thought anchors", who take KL over drawn answers and sentence embeddings; here answers are not
drawn, and what says something else is told by numbers and words, see `is_other`.) `again` is how often the model writes the very sentence
of the run, `other` how often something else: where that is hardly ever, nothing was resampled, and importance near 0 does not say that
the sentence is not needed.

Control: which rollout is of which kind is permuted. `floor` is the mean distance then, never 0 where answers vary, p how often it is as
large as the measured one, q that by Benjamini and Hochberg over sentences. The 95 % interval comes of drawing rollouts with replacement;
drawing again makes distances larger, so it is moved down by as much as that does on the average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...saes import UserError
from ..diffing.statistics import benjamini_hochberg
from .answers import answer_logs
from .claims import Claim
from .rollouts import Rollout, answers_of, is_again, is_other, write_on
from .spans import Written

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FEWEST = 4  # rollouts of which something can be said
PERMUTATIONS, REDRAWN = 2000, 1000
SHOWN = 5  # answers that are told


@dataclass(frozen=True)
class Moved:
    """How far the answers move: total variation, its interval, what chance gives, p; how many rollouts keep and rewrite the sentence."""

    distance: float
    low: float
    high: float
    floor: float
    p: float
    kept: int
    rewritten: int


@dataclass(frozen=True)
class Resampled:
    """What the model's own writing says. By sentence: `importance`, `counterfactual` (None where fewer than 4 rollouts say something else),
    q of importance, and the shares of rollouts that write the sentence again, and that say something else in its place.

    By place 0 … n, rollouts after so many sentences: `ended` the share that came to an end by itself, `answers` the mean probability of the
    run's answer and of the likeliest others, `written` what each wrote.
    """

    importance: list[Moved]
    counterfactual: list[Moved | None]
    q: list[float]
    again: list[float]
    other: list[float]
    ended: list[float]
    answers: list[dict[str, float]]
    written: list[list[str]]
    instead: list[str | None]
    rollouts: int
    temperature: float

    def to_dict(self) -> dict[str, Any]:
        """JSON data; what the model wrote is untrusted text."""
        return asdict(self)

    @property
    def score(self) -> float:
        """The largest importance above its floor: only for comparing methods."""
        return max(one.distance - one.floor for one in self.importance)

    @property
    def counterfactual_score(self) -> float:
        """The same where something else was written; NaN where that never was."""
        return max((one.distance - one.floor for one in self.counterfactual if one is not None), default=math.nan)


def resample_sentences(
    model: TransformerBridge,
    run: Written,
    *,
    rollouts: int = 16,
    temperature: float = 1.0,
    tokens: int | None = None,
    claims: Sequence[Claim] = (),
    stops: Sequence[str] = (),
    seed: int = 0,
) -> Resampled:
    """Let the model write on `rollouts` times after 0 … n sentences, and compare the answers with and without each.

    `claims`: a sentence without its claimed value says something else; `stops`: texts beside the cue that end a scratchpad; `tokens`: how
    many new ones a rollout may have (default: see rollouts.py). Bogdan et al. 2025. Raises UserError for a run without sentences, fewer
    than 4 rollouts (of which no p can be small), no tokens, and a temperature that is not above 0 (all rollouts would be one).
    """
    _check(run, rollouts, temperature, tokens)
    options: dict[str, Any] = {"temperature": temperature, "stops": stops, "tokens": tokens}
    count = len(run.sentences)
    by_place = [
        write_on(model, run, kept, rollouts, seed=seed * 100_003 + kept * rollouts, **options)
        for kept in range(count + 1)
    ]
    logs = answer_logs(model, [one.run for some in by_place for one in some])
    table, names = answers_of(model, run.answer, logs)
    by_answer = table.split(rollouts)
    values = [[claim.value for claim in claims if claim.sentence == i] for i in range(count)]
    others = [
        torch.tensor([is_other(run.sentences[i].text, one.first, values[i]) for one in by_place[i]])
        for i in range(count)
    ]
    importance = [moved(by_answer[i + 1], by_answer[i], seed) for i in range(count)]
    counterfactual = [
        moved(by_answer[i + 1], by_answer[i][others[i]], seed) if int(others[i].sum()) >= FEWEST else None
        for i in range(count)
    ]
    p = torch.tensor([one.p for one in importance], dtype=torch.float64)
    return Resampled(
        importance,
        counterfactual,
        benjamini_hochberg(p).tolist(),
        [_share([is_again(run.sentences[i].text, one.first) for one in by_place[i]]) for i in range(count)],
        [_share(some.tolist()) for some in others],
        [_share([one.is_ended for one in some]) for some in by_place],
        [_likeliest(some.mean(0).tolist(), names) for some in by_answer],
        [[one.text for one in some] for some in by_place],
        [_instead(by_place[i], others[i].tolist()) for i in range(count)],
        rollouts,
        temperature,
    )


def moved(
    kept: Float[Tensor, "rollout answer"], rewritten: Float[Tensor, "other_rollout answer"], seed: int = 0
) -> Moved:
    """The total variation between the means of two lots of distributions, with its interval, its floor and p."""
    generator = torch.Generator().manual_seed(seed)
    first, second = len(kept), len(rewritten)
    pooled = torch.cat([kept, rewritten])
    signs = torch.tensor([1 / first] * first + [-1 / second] * second, dtype=torch.float64)
    distance = float(_distances(signs[None], pooled)[0])
    shuffled = torch.rand(PERMUTATIONS, len(pooled), generator=generator).argsort(1)
    chance = _distances(signs[shuffled], pooled)
    reached = int((chance >= distance - 1e-9).sum())
    again = _distances(_redrawn(first, second, generator), pooled)
    ends = again.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)) - again.mean() + distance
    low, high = ends.clamp(0, 1).tolist()
    return Moved(distance, low, high, float(chance.mean()), (1 + reached) / (1 + PERMUTATIONS), first, second)


def _distances(
    weights: Float[Tensor, "draw rollout"], pooled: Float[Tensor, "rollout answer"]
) -> Float[Tensor, "draw"]:
    return (weights @ pooled).abs().sum(1) / 2


def _redrawn(first: int, second: int, generator: torch.Generator) -> Float[Tensor, "draw rollout"]:
    """Weights of means of rollouts drawn with replacement, each kind for itself."""
    counts = []
    for size in (first, second):
        picks = torch.randint(size, (REDRAWN, size), generator=generator)
        counts.append(torch.nn.functional.one_hot(picks, size).sum(1).double() / size)
    return torch.cat([counts[0], -counts[1]], 1)


def _share(some: Sequence[bool]) -> float:
    return sum(some) / len(some)


def _likeliest(means: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    """The run's own answer, which is the first, and the likeliest others."""
    order = sorted(range(1, len(names) - 1), key=lambda i: -means[i])[: SHOWN - 1]
    found: dict[str, float] = {}
    for i in [0, *order]:
        found[names[i]] = found.get(names[i], 0.0) + means[i]
    return found


def _instead(some: Sequence[Rollout], others: Sequence[bool]) -> str | None:
    """The sentence that was most often written in the other's place and says something else."""
    texts = [one.first.strip() for one, is_one in zip(some, others, strict=True) if is_one]
    return max(dict.fromkeys(texts), key=texts.count) if texts else None


def check_rollouts(rollouts: int, temperature: float) -> None:
    """UserError for so few rollouts, or so cold, that nothing could be told from chance."""
    if rollouts < FEWEST:
        raise UserError(
            f"expected at least {FEWEST} rollouts to resample; got {rollouts}; of fewer no p can be small (0 leaves it out)"
        )
    if not 0 < temperature < math.inf:
        raise UserError(
            f"expected a temperature above 0; got {temperature}; at 0 all rollouts would be one, and nothing could be told from chance"
        )


def _check(run: Written, rollouts: int, temperature: float, tokens: int | None) -> None:
    check_rollouts(rollouts, temperature)
    if not run.sentences:
        raise UserError("expected a scratchpad of at least one sentence; got none; there is nothing to write anew")
    if tokens is not None and tokens < 1:
        raise UserError(f"expected at least 1 token a rollout; got {tokens}; leave it out for twice what was left")
