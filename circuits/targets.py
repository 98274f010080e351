"""What a graph explains: logits of the last position, or differences of two.

A target is a direction in logit space, {token: +1} or {wanted: +1, other: -1}, read before any soft-cap and centred over
the vocabulary: its cotangent at ln_final's output is sum_i s_i (W_U[:, i] - mean_v W_U[:, v]), its constant the
same of b_U. Targets carry weights, by which influence, ranking and `validate` sum over them: the default targets (the
most likely next tokens, up to 10, until their probabilities reach .95) weigh by probability, given ones equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..saes.errors import UserError
from .frozen import FrozenPass
from .sources import Rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOP_LOGITS, TOP_PROBABILITY = 10, 0.95


class Target(NamedTuple):
    """A logit (one id) or a logit difference (two ids, the first minus the second)."""

    ids: tuple[int, ...]
    label: str
    weight: float
    probability: float  # of the first id

    @property
    def signs(self) -> tuple[int, ...]:
        """+1 for the first id, -1 for the second."""
        return (1, -1)[: len(self.ids)]


def default_targets(model: TransformerBridge, frozen: FrozenPass) -> list[Target]:
    """The likeliest next tokens: at most 10, as many as it takes to reach a probability of .95."""
    top = frozen.probabilities.topk(min(TOP_LOGITS, len(frozen.probabilities)))
    count = int((top.values.cumsum(0) < TOP_PROBABILITY).sum()) + 1
    pairs = zip(top.indices[:count].tolist(), top.values[:count].tolist(), strict=True)
    return [Target((token,), _text(model, token), share, share) for token, share in pairs]


def given_targets(model: TransformerBridge, frozen: FrozenPass, targets: Sequence[Any]) -> list[Target]:
    """Targets from token strings, token ids, or pairs of them (a logit difference), each of weight 1 / number."""
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not targets:
        raise UserError(
            f"expected a list of tokens, ids or pairs as targets; got {targets!r}; give for example [' Paris', (' Paris', ' London')]"
        )
    chosen = []
    for target in targets:
        pair = target if isinstance(target, tuple | list) else (target,)
        if len(pair) not in (1, 2):
            raise UserError(
                f"expected a token or a pair of tokens as target; got {target!r}; give two for a logit difference"
            )
        ids = tuple(_token_id(model, frozen, token) for token in pair)
        label = " − ".join(_text(model, token) for token in ids)
        chosen.append(Target(ids, label, 1 / len(targets), float(frozen.probabilities[ids[0]])))
    return chosen


def _token_id(model: TransformerBridge, frozen: FrozenPass, token: Any) -> int:
    vocab = frozen.W_U.shape[1]
    if isinstance(token, int) and not isinstance(token, bool):
        if not 0 <= token < vocab:
            raise UserError(f"expected a token id from 0 to {vocab - 1}; got {token}; check the target")
        return token
    if not isinstance(token, str):
        raise UserError(f"expected a token string or id as target; got {token!r}; give for example ' Paris'")
    ids = model.tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == model.tokenizer.unk_token_id:
        raise UserError(
            f"expected a target that is one token; got {token!r}, which is {len(ids)} (ids {ids}); mind the leading space, or give an id"
        )
    return int(ids[0])


def _text(model: TransformerBridge, token: int) -> str:
    return model.tokenizer.decode([token], clean_up_tokenization_spaces=False)


def target_rows(frozen: FrozenPass, targets: list[Target]) -> Rows:
    """Cotangents at ln_final's output, constants, and values from the forward pass."""

    def combine(table: Float[Tensor, "row vocab"]) -> Float[Tensor, "target row"]:
        # In slices: a float64 reduction of the whole unembedding would copy it.
        sums = torch.stack([part.sum(1) for part in table.split(1024, dim=1)]).double()
        mean = (sums.sum(0) / table.shape[1]).to(table)
        rows = [
            sum(sign * (table[:, i] - mean) for i, sign in zip(target.ids, target.signs, strict=True))
            for target in targets
        ]
        return torch.stack(rows)  # type: ignore[arg-type]  # sum of tensors

    b_U = torch.zeros_like(frozen.logits) if frozen.b_U is None else frozen.b_U
    constant = combine(b_U[None])[:, 0]
    return Rows(combine(frozen.W_U), constant, combine(frozen.logits[None])[:, 0])
