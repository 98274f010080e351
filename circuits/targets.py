"""What a graph explains.

* a logit, a difference of two logits, or why not another token (`WhyNot`: the likeliest minus it): a direction in logit space, read before
  any soft-cap and centred over the vocabulary: cotangent sum_i s_i (W_U[:, i] - mean_v W_U[:, v]) at the final
  norm's output, constant the same of b_U. `centred=False` leaves the mean in (raw logits);
* any feature (`FeatureAt`): its pre-activation, or a gated neuron's activation, whether it fired or not;
* any direction of the residual stream or of an MLP's input (`Direction`): a probe's w . x + b, a steering vector, a difference of means.

Targets carry weights, by which influence, ranking and `validate` sum over them: the default targets (the
most likely next tokens, up to 10, until their probabilities reach .95) weigh by probability, given ones equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..saes.errors import UserError
from .tracing.frozen import FrozenPass

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOP_LOGITS, TOP_PROBABILITY = 10, 0.95
EXAMPLES = "[' Paris', (' Paris', ' London'), WhyNot(' London'), FeatureAt('blocks.3.mlp.hook_in', 17)]"


class WhyNot(NamedTuple):
    """The logit of the likeliest token minus this one's: what keeps the model from saying it."""

    token: str | int


class FeatureAt(NamedTuple):
    """A latent of the dictionary that reads `site`, or a neuron (site blocks.L.mlp.hook_post), at a position."""

    site: str
    index: int
    position: int = -1


class Direction(NamedTuple):
    """vector . x + bias, where x stands at `site` (of the residual stream, or an MLP's input) at a position."""

    vector: Tensor | Sequence[float]
    site: str
    position: int = -1
    bias: float = 0.0
    label: str = "direction"


class Target(NamedTuple):
    """A resolved target. `ids` are a logit's token, or two of which the first minus the second is meant; else empty."""

    ids: tuple[int, ...]
    label: str
    weight: float
    probability: float = 0.0  # of the first id
    wish: FeatureAt | Direction | None = None

    @property
    def signs(self) -> tuple[int, ...]:
        """+1 for the first id, -1 for the second."""
        return (1, -1)[: len(self.ids)]

    def to_dict(self) -> dict[str, Any]:
        """JSON data, as graph metadata keep it."""
        data = {"ids": list(self.ids), "label": self.label, "weight": self.weight, "probability": self.probability}
        if isinstance(self.wish, FeatureAt):
            return data | {"feature": list(self.wish)}
        if isinstance(self.wish, Direction):
            vector = torch.as_tensor(self.wish.vector, dtype=torch.float64).tolist()
            return data | {"direction": {**self.wish._asdict(), "vector": vector}}
        return data


def default_targets(model: TransformerBridge, frozen: FrozenPass) -> list[Target]:
    """The likeliest next tokens: at most 10, as many as it takes to reach a probability of .95."""
    top = frozen.probabilities.topk(min(TOP_LOGITS, len(frozen.probabilities)))
    count = int((top.values.cumsum(0) < TOP_PROBABILITY).sum()) + 1
    pairs = zip(top.indices[:count].tolist(), top.values[:count].tolist(), strict=True)
    return [Target((token,), _text(model, token), share, share) for token, share in pairs]


def given_targets(model: TransformerBridge, frozen: FrozenPass, targets: Sequence[Any]) -> list[Target]:
    """Targets as they were asked for, each of weight 1 / number; see the module header."""
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not targets:
        raise UserError(f"expected a list of targets; got {targets!r}; give for example {EXAMPLES}")
    return [_target(model, frozen, parsed(target), 1 / len(targets)) for target in targets]


def parsed(target: Any) -> Any:
    """The command line's spellings: `why-not: London`, ` Paris|| London`, `feature:SITE:INDEX[:POSITION]`; else unchanged."""
    if not isinstance(target, str):
        return target
    if target.startswith("why-not:"):
        return WhyNot(target.removeprefix("why-not:"))
    if target.startswith("feature:"):
        site, *numbers = target.removeprefix("feature:").split(":")
        if len(numbers) in (1, 2) and all(number.lstrip("-").isdigit() for number in numbers):
            return FeatureAt(site, *map(int, numbers))
        raise UserError(f"expected feature:SITE:INDEX or feature:SITE:INDEX:POSITION; got {target!r}; mind the colons")
    first, mark, second = target.partition("||")
    return (first, second) if mark and first and second else target


def _target(model: TransformerBridge, frozen: FrozenPass, target: Any, weight: float) -> Target:
    if isinstance(target, FeatureAt):
        return Target((), f"{target.site} {target.index}", weight, wish=target)
    if isinstance(target, Direction):
        return Target((), target.label, weight, wish=target)
    if isinstance(target, WhyNot):
        other = token_id(model, target.token, frozen.W_U.shape[1])
        order = frozen.probabilities.topk(2).indices.tolist()
        target = (order[0] if order[0] != other else order[1], other)
    pair = target if isinstance(target, tuple | list) else (target,)
    if len(pair) not in (1, 2):
        raise UserError(
            f"expected a token or a pair of tokens as target; got {target!r}; give two for a logit difference"
        )
    ids = tuple(token_id(model, token, frozen.W_U.shape[1]) for token in pair)
    label = " − ".join(_text(model, token) for token in ids)
    return Target(ids, label, weight, float(frozen.probabilities[ids[0]]))


def token_id(model: TransformerBridge, token: Any, vocab: int) -> int:
    """The id of a token given as text or id; UserError when it is not one token of this model."""
    if isinstance(token, int) and not isinstance(token, bool):
        if not 0 <= token < vocab:
            raise UserError(f"expected a token id from 0 to {vocab - 1}; got {token}; check the target")
        return token
    if not isinstance(token, str):
        raise UserError(f"expected a token string or id as target; got {token!r}; give for example {EXAMPLES}")
    ids = model.tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == model.tokenizer.unk_token_id:
        raise UserError(
            f"expected a target that is one token; got {token!r}, which is {len(ids)} (ids {ids}); mind the leading space, or give an id"
        )
    return int(ids[0])


def _text(model: TransformerBridge, token: int) -> str:
    return model.tokenizer.decode([token], clean_up_tokenization_spaces=False)


def logit_rows(frozen: FrozenPass, targets: list[Target], centred: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents [target d] at ln_final's output, constants [target], and values [target] from the forward pass."""

    def combine(table: Float[Tensor, "row vocab"]) -> Float[Tensor, "target row"]:
        mean = table.new_zeros(len(table))
        if centred:
            # In slices: a float64 reduction of the whole unembedding would copy it.
            sums = torch.stack([part.sum(1) for part in table.split(1024, dim=1)]).double()
            mean = (sums.sum(0) / table.shape[1]).to(table)
        rows = [
            sum(sign * (table[:, i] - mean) for i, sign in zip(target.ids, target.signs, strict=True))
            for target in targets
        ]
        return torch.stack(rows)  # type: ignore[arg-type]  # sum of tensors

    b_U = torch.zeros_like(frozen.logits) if frozen.b_U is None else frozen.b_U
    return combine(frozen.W_U), combine(b_U[None])[:, 0], combine(frozen.logits[None])[:, 0]
