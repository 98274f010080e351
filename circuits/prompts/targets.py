"""What a prompt is asked about: the logit of a token, or a difference of two, less the vocabulary's mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from ...saes.errors import UserError
from ..targets import WhyNot, parsed, token_id

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Wanted(NamedTuple):
    """A token id, or two of which the first minus the second is meant, and how it is called."""

    ids: tuple[int, ...]
    label: str


def wanted(model: TransformerBridge, target: Any, logits: Float[Tensor, "vocab"]) -> Wanted:
    """The tokens that are meant, None being the likeliest; UserError for what is no token or pair of tokens of this model."""
    target = int(logits.argmax()) if target is None else parsed(target)
    if isinstance(target, WhyNot):
        other = token_id(model, target.token, len(logits))
        order = logits.topk(2).indices.tolist()
        target = (order[0] if order[0] != other else order[1], other)
    pair = list(target) if isinstance(target, tuple | list) else [target]
    if len(pair) not in (1, 2):
        raise UserError(f"expected a token, or a pair of tokens as target; got {target!r}; give two for a difference")
    ids = tuple(token_id(model, token, len(logits)) for token in pair)
    tokenizer: Any = model.tokenizer
    return Wanted(ids, " − ".join(tokenizer.decode([each], clean_up_tokenization_spaces=False) for each in ids))


def target_value(ids: tuple[int, ...], logits: Float[Tensor, "vocab"]) -> Float[Tensor, ""]:
    """The centred logit, or the difference of two; in float64."""
    logits = logits.double()
    return logits[ids[0]] - (logits[ids[1]] if len(ids) == 2 else logits.mean())
