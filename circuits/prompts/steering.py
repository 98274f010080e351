"""What a change of features does to a prompt, beside what random directions of the same strength do.

Steps, in the order of the code:

1. The unmodified run.
2. The run with the edits, with attention free and with it frozen at the unmodified run's patterns; what the edits write is noted:
   at site S and position p each feature adds delta[p] W_dec[j], delta the change of its activation.
3. Controls: the same numbers delta[p] at the same places, W_dec[j] replaced by something of the same length. `random`:
   a direction drawn uniformly from the sphere of the written space, one per feature and control, the same at every position.
   `latents`: the decoder row of another latent of that dictionary (one of the 32 whose length is nearest), rescaled. Random
   directions are a weak control, as the model hardly listens to most of them; other latents' are the harder one.

Effects are told as KL(unmodified || changed) in nats, per position and at the last one, and as changes of centred logits (before any
soft-cap) at the last position, foremost the target's. Among tokens that the model would never say such changes are large at random,
so a token is listed as raised or lowered only if its probability is at least `least_probability` in one of the two runs: the rule of
saes/latents/effect/effects.py. `Standing` says where the real effect stands among n controls: p = (1 + those at
least as large) / (1 + n). With 8 controls p cannot be below 1/9: it guards against reading noise, and no more than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ...saes.models import token_strings
from ..experiment.constrained import Held, freezing, hold
from ..experiment.edits import Catalogue, Edit, edit_list
from .rank import NextToken, next_tokens
from .targets import target_value, wanted
from .text import Prompt, prompt_ids
from .written import Outcome, Write, directions, other_rows, push, record

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BATCH_TOKENS = 1024  # tokens of one batch of controls: bounds memory


class Standing(NamedTuple):
    """An effect among its controls, by size: rank 1 is the largest, p = (1 + controls at least as large) / (1 + controls)."""

    value: float
    controls: tuple[float, ...]
    rank: int
    p: float


class Control(NamedTuple):
    """One control run: its kind ("random" or "latents"), KL at the last position, and the change of the target's value."""

    kind: str
    kl: float
    change: float


class Moved(NamedTuple):
    """A token at the last position: its probability before and after, the change of its centred logit, and what controls did."""

    token: str
    id: int
    before: float
    after: float
    change: float
    control_low: float
    control_high: float


@dataclass(frozen=True)
class Changed:
    """The edited run under one treatment of attention, and how it compares."""

    is_frozen: bool
    next_tokens: list[NextToken]
    kl: list[float]
    """KL(unmodified || changed) in nats after every token of the prompt."""
    change: float
    """Of the target's value."""
    controls: list[Control]
    raised: list[Moved]
    """The likely tokens whose centred logit rises, most first."""
    lowered: list[Moved]
    """Likewise those whose falls."""
    size: float
    """The largest share that what is written makes of what stands there, both as lengths: far above 1 is far from anything natural."""
    probabilities: Float[Tensor, "vocab"]

    def standing(self, kind: str = "random", by: Literal["kl", "change"] = "kl") -> Standing:
        """Where KL at the last position, or the size of the target's change, stands among the controls of a kind."""
        value = self.kl[-1] if by == "kl" else self.change
        controls = tuple(getattr(each, by) for each in self.controls if each.kind == kind)
        above = sum(abs(each) >= abs(value) for each in controls)
        return Standing(value, controls, 1 + above, (1 + above) / (1 + len(controls)))


@dataclass(frozen=True)
class Steered:
    """What `steer_prompt` found; `changed` has one entry per treatment of attention asked for."""

    ids: Int[Tensor, "token"]
    tokens: list[str]
    target: str
    target_ids: tuple[int, ...]
    value: float
    """The target's value in the unmodified run."""
    base: list[NextToken]
    probabilities: Float[Tensor, "vocab"]
    changed: list[Changed]

    def __str__(self) -> str:
        lines = [f"unmodified: {_listed(self.base)}; {self.target!r} {self.value:.3f}"]
        for each in self.changed:
            name = "attention frozen" if each.is_frozen else "attention free"
            lines.append(
                f"{name}: {_listed(each.next_tokens)}; {self.target!r} {each.change:+.3f}, KL {each.kl[-1]:.4g}; "
                f"written at most {each.size:.2g} of what stands there"
            )
            for kind in dict.fromkeys(control.kind for control in each.controls):
                stood = each.standing(kind)
                lines.append(
                    f"  KL among {len(stood.controls)} {kind}: rank {stood.rank}, their largest {max(stood.controls):.4g}, p {stood.p:.2g}"
                )
            for name, some in (("raised", each.raised), ("lowered", each.lowered)):
                lines.append(f"  {name} " + ", ".join(f"{moved.token!r} {moved.change:+.2f}" for moved in some[:5]))
        return "\n".join(lines)

    __repr__ = __str__


def steer_prompt(
    model: TransformerBridge,
    text: Prompt,
    edits: Edit | Iterable[Edit],
    dictionaries: Any = None,
    *,
    target: Any = None,
    controls: int = 8,
    latents: int = 8,
    seed: int = 0,
    frozen: Sequence[bool] = (True, False),
    top: int = 10,
    least_probability: float = 1e-3,
) -> Steered:
    """Run `text` with `edits` (of any latents, neurons, dictionaries and positions) and compare, as the module header says.

    `target`: as of `rank_features`. `controls`: random directions; `latents`: other latents' rows (0: none). `frozen`: which
    treatments of attention, side by side. `top`: tokens listed at most; as raised and lowered those alone that have
    `least_probability` in the unmodified run or the edited one. Costs 2 forward passes of the prompt, and per treatment
    1 + controls + latents. Raises UserError for edits that do not fit.
    """
    if controls < 0 or latents < 0 or top < 1 or not len(frozen):
        raise UserError(
            f"expected controls and latents of 0 or more, top of at least 1 and frozen (True, False); got {controls}, "
            f"{latents}, {top} and {frozen!r}"
        )
    catalogue, given = Catalogue(model, dictionaries), edit_list(edits)
    ids = prompt_ids(model, text)
    base, _, _ = record(catalogue, ids, [])
    aim = wanted(model, target, base.final)
    comparison = _Comparison(model, aim.ids, base, top, least_probability)
    changed = []
    for is_frozen in dict.fromkeys(frozen):
        held = hold(catalogue, ids, freezing(model, attention=True)) if is_frozen else None
        done, writes, size = record(catalogue, ids, given, held)
        generator = torch.Generator().manual_seed(seed)
        rows = [("random", directions(writes, generator)) for _ in range(controls)]
        rows += [("latents", other_rows(catalogue, writes, generator)) for _ in range(latents)]
        rows = [(kind, each) for kind, each in rows if each or not writes]
        beside = _run_controls(catalogue, ids, writes, [each for _, each in rows], held)
        changed.append(comparison.of(is_frozen, done, [kind for kind, _ in rows], beside, size))
    shares = base.shares[-1]
    value = float(target_value(aim.ids, base.final))
    return Steered(
        ids.cpu(),
        token_strings(model, ids),
        aim.label,
        aim.ids,
        value,
        next_tokens(model, shares.exp(), top),
        shares.exp(),
        changed,
    )


def _run_controls(
    catalogue: Catalogue, ids: Int[Tensor, "token"], writes: list[Write], rows: list[list[Tensor]], held: Held | None
) -> Outcome:
    """The last position of every control, in batches of at most BATCH_TOKENS tokens."""
    step = max(1, BATCH_TOKENS // len(ids))
    found = [push(catalogue, ids, writes, rows[start : start + step], held) for start in range(0, len(rows), step)]
    vocab = catalogue.model.cfg.d_vocab
    empty = Outcome(torch.zeros(0, vocab), torch.zeros(0, vocab))
    return Outcome(*(torch.cat(column) for column in zip(*found, strict=True))) if found else empty


def divergence(base: Float[Tensor, "... vocab"], changed: Float[Tensor, "... vocab"]) -> Float[Tensor, "..."]:
    """KL(base || changed) in nats of log-probabilities, at least 0."""
    return (base.exp() * (base - changed)).sum(-1).clamp_min(0)


class _Comparison(NamedTuple):
    """The unmodified run, with which edited ones and controls are compared."""

    model: TransformerBridge
    target: tuple[int, ...]
    base: Outcome
    top: int
    least: float
    """Probability that a token must have in one of the runs to be listed as moved."""

    def of(self, is_frozen: bool, done: Outcome, kinds: list[str], controls: Outcome, size: float) -> Changed:
        kl = divergence(self.base.shares, done.shares)
        apart = divergence(self.base.shares[-1], controls.shares.to(self.base.shares)).tolist()
        moves = [float(target_value(self.target, row)) - self._value for row in controls.final]
        change = _centred(done.final) - _centred(self.base.final)
        spread = _centred(controls.final).to(change) - _centred(self.base.final)
        return Changed(
            is_frozen,
            next_tokens(self.model, done.shares[-1].exp(), self.top),
            kl.tolist(),
            float(target_value(self.target, done.final)) - self._value,
            [Control(*each) for each in zip(kinds, apart, moves, strict=True)],
            self._moved(1, done, change, spread),
            self._moved(-1, done, change, spread),
            size,
            done.shares[-1].exp(),
        )

    @property
    def _value(self) -> float:
        return float(target_value(self.target, self.base.final))

    def _moved(self, sign: int, done: Outcome, change: Tensor, spread: Float[Tensor, "control vocab"]) -> list[Moved]:
        before, after = self.base.shares[-1].exp(), done.shares[-1].exp()
        known = ((torch.maximum(before, after) >= self.least) & (sign * change > 0)).nonzero()[:, 0]
        ids = known[(sign * change[known]).argsort(descending=True)[: self.top]]
        if not len(ids):
            return []
        columns = [before[ids], after[ids], change[ids]]
        unknown = torch.full_like(columns[0], torch.nan)
        some = spread[:, ids]
        columns += [some.amin(0), some.amax(0)] if len(some) else [unknown, unknown]
        names = token_strings(self.model, ids)
        return [
            Moved(*each) for each in zip(names, ids.tolist(), *(column.tolist() for column in columns), strict=True)
        ]


def _centred(logits: Float[Tensor, "... vocab"]) -> Float[Tensor, "... vocab"]:
    return logits - logits.mean(-1, keepdim=True)


def _listed(tokens: list[NextToken]) -> str:
    return ", ".join(f"{each.token!r} {each.probability:.3f}" for each in tokens[:5])
