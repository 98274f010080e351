"""What the model says of the answer after a run, and after many changed ones.

    P(answer)   = prod over answer tokens t of p_t(answer token t)          the answer given token by token
    KL          = sum over answer tokens of sum over the vocabulary of p_t log(p_t / q_t), in nats; p the unchanged run's
    drop        = 1 - Q(answer) / P(answer)       0: the answer stands, 1: it is gone; negative where a change helps

Changed runs go through the model in batches, with padding behind each, which a causal model does not see.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...circuits.tracing.frozen import quiet
from .spans import Written

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HELD = 2**25  # numbers of the logits of one batch
Logs = Float[Tensor, "answer vocab"]


class Change(NamedTuple):
    """What a change of the run does to the answer."""

    kl: float
    drop: float


def answer_logs(model: TransformerBridge, runs: Sequence[Written], hooks: Iterable[Any] = ()) -> list[Logs]:
    """Log-probabilities at the answer tokens of each run, float64 on the CPU; `hooks` act on all of them."""
    longest = max((len(run.tokens) for run in runs), default=1)
    batch = max(1, HELD // (longest * int(model.cfg.d_vocab)))
    device = next(model.parameters()).device
    found: list[Tensor] = []
    for start in range(0, len(runs), batch):
        some = list(runs[start : start + batch])
        with torch.no_grad(), quiet():
            logits = model.run_with_hooks(padded(some).to(device), fwd_hooks=list(hooks))
        found += [_at_answer(row, run) for row, run in zip(logits, some, strict=True)]
    return found


def padded(runs: Sequence[Written]) -> Int[Tensor, "run token"]:
    """Token ids with zeros behind the shorter runs."""
    return torch.nn.utils.rnn.pad_sequence([run.tokens for run in runs], batch_first=True)


def _at_answer(logits: Float[Tensor, "token vocab"], run: Written) -> Logs:
    span = run.spans.answer
    return logits[span.start - 1 : span.stop - 1].double().cpu().log_softmax(1)


def probability(logs: Logs, run: Written) -> float:
    """P(answer)."""
    return float(logs.gather(1, torch.tensor(run.answer.ids)[:, None]).sum().exp())


def divergence(logs: Logs, other: Logs) -> float:
    """KL of the answer under the unchanged run from that under a changed one."""
    return float(torch.nn.functional.kl_div(other, logs, log_target=True, reduction="sum").clamp_min(0))


def is_own(logs: Logs, run: Written) -> bool:
    """Whether the model, answering greedily, gives this answer."""
    return logs.argmax(1).tolist() == list(run.answer.ids)


def change(logs: Logs, other: Logs, run: Written) -> Change:
    """What separates two readings of the same answer."""
    before = probability(logs, run)
    return Change(divergence(logs, other), 1 - probability(other, run) / max(before, 1e-300))


def changes(model: TransformerBridge, run: Written, others: Sequence[Written]) -> list[Change]:
    """What each other run does to the answer of `run`."""
    logs, *found = answer_logs(model, [run, *others])
    return [change(logs, other, run) for other in found]
