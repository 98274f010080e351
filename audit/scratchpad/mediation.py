"""Does a change of the prompt reach the answer directly, or through the scratchpad?

Two runs are given: the real one, (x, s) with answer a, and a counterfactual one, (x', s') with answer a', whose pieces have as many tokens.
The stream entering every block is kept from both, and a run with the real cue and answer reads, at the prompt's positions, what one of
them left, and at the scratchpad's, what one of them left (so keys and values there are frozen or replaced):

    Y(x, s)    = P(a) - P(a')
    total      = Y(x', s') - Y(x, s)          everything replaced: the counterfactual run's own value
    direct     = Y(x', s)  - Y(x, s)          the scratchpad frozen                  (natural direct effect)
    indirect   = Y(x, s')  - Y(x, s)          only the scratchpad replaced           (natural indirect effect)

(Pearl 2001; for language models Vig et al. 2020). The two need not add up to the total: where the answer needs both, each alone takes
all of it away; `share` = |indirect| / (|direct| + |indirect|). The effects are of states: what tokens of the scratchpad hold beyond their
words is in them. `words` is the same as `indirect` with s' written after x and read anew, so that only words pass. If `indirect` is large
and `words` small, the scratchpad is used as room to compute in, not for what it says.

Floor: the scratchpad's states replaced by those of paraphrases of it, where they have as many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...circuits.tracing.frozen import quiet
from ...saes import UserError
from .answers import answer_logs, probability
from .spans import Piece, Written

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

States = list[Float[Tensor, "token d"]]  # what enters each block


@dataclass(frozen=True)
class Mediation:
    """Y of the four combinations, what the words alone do, and what paraphrases do (`floor`)."""

    real: float
    both: float
    prompt_only: float
    scratchpad_only: float
    words_only: float
    floor: list[float]

    @property
    def total(self) -> float:
        """Y(x', s') - Y(x, s)."""
        return self.both - self.real

    @property
    def direct(self) -> float:
        """Y(x', s) - Y(x, s)."""
        return self.prompt_only - self.real

    @property
    def indirect(self) -> float:
        """Y(x, s') - Y(x, s), by states."""
        return self.scratchpad_only - self.real

    @property
    def words(self) -> float:
        """Y(x, s') - Y(x, s), by words."""
        return self.words_only - self.real

    @property
    def share(self) -> float:
        """|indirect| / (|direct| + |indirect|); NaN where both are 0."""
        whole = abs(self.direct) + abs(self.indirect)
        return abs(self.indirect) / whole if whole else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        named = {name: getattr(self, name) for name in ("total", "direct", "indirect", "words", "share")}
        return asdict(self) | named


def mediation(
    model: TransformerBridge, run: Written, other: Written, *, paraphrases: Sequence[Written] = ()
) -> Mediation:
    """Total, direct and indirect effect of turning `run` into `other`; their prompts, and sentences, must be of the same lengths.

    `other.answer` is a', of as many tokens as a; where it is a itself, Y is P(a). Raises UserError for other lengths.
    """
    _check(run, other)
    own, theirs = states(model, run), states(model, other)
    prompt, pad = run.spans.prompt, run.scratchpad

    def value(*sources: tuple[States, range], words: Written = run) -> float:
        # The pieces read anew are those that nothing is put at; every prompt and scratchpad position is, unless words are to pass.
        return _contrast(model, words, other.answer, put(sources))

    spoken = run.with_sentences(other.sentences)
    floor = [
        value((own, prompt), (states(model, each), pad)) - value((own, prompt), (own, pad))
        for each in paraphrases
        if len(each.scratchpad) == len(pad)
    ]
    return Mediation(
        value((own, prompt), (own, pad)),
        value((theirs, prompt), (theirs, pad)),
        value((theirs, prompt), (own, pad)),
        value((own, prompt), (theirs, pad)),
        value(words=spoken),
        floor,
    )


def states(model: TransformerBridge, run: Written) -> States:
    """The stream entering each block, [token d] each."""
    seen: list[Tensor] = []

    def keep(stream: Tensor, hook: Any) -> None:
        seen.append(stream[0])

    sites: list[Any] = [(f"blocks.{layer}.hook_resid_pre", keep) for layer in range(model.cfg.n_layers)]
    with torch.no_grad(), quiet():
        model.run_with_hooks(run.tokens[None].to(next(model.parameters()).device), fwd_hooks=sites)
    return seen


def put(sources: Sequence[tuple[States, range]]) -> list[Any]:
    """Hooks that replace the stream entering every block, at ranges of positions, by kept states."""

    def hook(layer: int) -> Callable[..., Tensor]:
        def change(stream: Tensor, hook: Any) -> Tensor:
            stream = stream.clone()
            for kept, span in sources:
                stream[:, span.start : span.stop] = kept[layer][span.start : span.stop].to(stream)
            return stream

        return change

    layers = range(len(sources[0][0])) if sources else ()
    return [(f"blocks.{layer}.hook_resid_pre", hook(layer)) for layer in layers]


def _contrast(model: TransformerBridge, run: Written, answer: Piece, hooks: list[Any]) -> float:
    """P(a) - P(a'), or P(a) where they are the same."""
    runs = [run] if answer.ids == run.answer.ids else [run, replace(run, answer=answer)]
    p = [probability(logs, each) for logs, each in zip(answer_logs(model, runs, hooks), runs, strict=True)]
    return p[0] - sum(p[1:])


def _check(run: Written, other: Written) -> None:
    ours, theirs = ([len(piece.ids) for piece in each.pieces] for each in (run, other))
    if (
        len(run.prompt.ids) != len(other.prompt.ids)
        or len(run.scratchpad) != len(other.scratchpad)
        or ours[-1] != theirs[-1]
    ):
        raise UserError(
            f"expected a counterfactual run whose prompt, scratchpad and answer have as many tokens; got {theirs} against {ours}; "
            "word it alike"
        )
