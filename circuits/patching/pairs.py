"""What the patching baselines are asked: pairs of prompts, and the number whose change is measured.

A pair is a clean prompt and a corrupted one of the same length, so that positions correspond. The number is a sum of logits at
the last position before any soft-cap, L . direction, with the targets' meaning in `targets.py`: one token is its logit
less the mean over the vocabulary, a pair (a, b) is logit a - logit b, several targets are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ...saes.models import token_strings
from ..targets import token_id
from ..trace import prompt_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Pair(NamedTuple):
    """Token ids of a clean and a corrupted prompt of one length; `corrupt` is None where writers are set to zero."""

    clean: Int[Tensor, "token"]
    corrupt: Int[Tensor, "token"] | None


class Metric(NamedTuple):
    """value = logits . direction; `ids` are the targets' token ids."""

    direction: Float[Tensor, "vocab"]
    label: str
    ids: list[list[int]]


def read_pairs(model: TransformerBridge, clean: Any, corrupt: Any, *, positions: bool) -> list[Pair]:
    """Check and tokenise one pair, or lists of them; UserError for lengths that differ."""
    cleans = list(clean) if isinstance(clean, list | tuple) else [clean]
    corrupts = list(corrupt) if isinstance(corrupt, list | tuple) else [corrupt]
    if corrupt is None:
        corrupts = [None] * len(cleans)
    if not cleans or len(cleans) != len(corrupts):
        raise UserError(
            f"expected as many corrupted prompts as clean ones; got {len(cleans)} and {len(corrupts)}; give them in pairs"
        )
    pairs = [_pair(model, *prompts) for prompts in zip(cleans, corrupts, strict=True)]
    lengths = sorted({len(pair.clean) for pair in pairs})
    if positions and len(lengths) > 1:
        raise UserError(
            f"expected prompts of one length with positions=True; got lengths {lengths}; pick one length or leave positions out"
        )
    return pairs


def _pair(model: TransformerBridge, clean: Any, corrupt: Any) -> Pair:
    tokens = prompt_tokens(model, clean)
    if corrupt is None:
        return Pair(tokens, None)
    other = prompt_tokens(model, corrupt)
    if len(tokens) != len(other):
        raise UserError(
            f"expected a clean and a corrupted prompt of one length; got {len(tokens)} and {len(other)} tokens "
            f"({token_strings(model, tokens)} and {token_strings(model, other)}); change words for words of as many tokens"
        )
    return Pair(tokens, other)


def given_metrics(model: TransformerBridge, pairs: list[Pair], targets: Sequence[Any]) -> list[Metric]:
    """A metric for every pair: from one list of targets, or from a list of lists, one for each pair."""
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not targets:
        raise UserError(
            f"expected a list of tokens, ids or pairs as targets; got {targets!r}; give for example [(' Mary', ' John')]"
        )
    each = len(targets) == len(pairs) > 1 and all(isinstance(target, list) for target in targets)
    return [_metric(model, targets[place] if each else targets) for place in range(len(pairs))]


def default_metric(
    model: TransformerBridge, clean: Float[Tensor, "vocab"], corrupt: Float[Tensor, "vocab"] | None
) -> Metric:
    """The likeliest clean token minus the likeliest corrupted one; alone where they agree or nothing is corrupted."""
    best = int(clean.argmax())
    other = best if corrupt is None else int(corrupt.argmax())
    return _metric(model, [best] if other == best else [(best, other)])


def label(metrics: list[Metric]) -> str:
    """What a graph over these metrics explains, in a few words."""
    first = metrics[0].label
    return first if all(metric.label == first for metric in metrics) else f"{first}, ... ({len(metrics)} prompts)"


def _metric(model: TransformerBridge, targets: Sequence[Any]) -> Metric:
    W_U = model.unembed.W_U
    vocab, direction, labels, ids = W_U.shape[1], torch.zeros(W_U.shape[1]).to(W_U), [], []
    for target in targets:
        wanted = target if isinstance(target, tuple | list) else (target,)
        if len(wanted) not in (1, 2):
            raise UserError(
                f"expected a token or a pair of tokens as target; got {target!r}; give two for a logit difference"
            )
        ids.append([token_id(model, token, vocab) for token in wanted])
        direction[ids[-1][0]] += 1 / len(targets)
        if len(wanted) == 2:
            direction[ids[-1][1]] -= 1 / len(targets)
        else:
            direction -= 1 / (vocab * len(targets))
        labels.append(" − ".join(token_strings(model, torch.tensor(ids[-1]))))
    return Metric(direction, ", ".join(labels), ids)
