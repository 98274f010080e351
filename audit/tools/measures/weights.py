"""What the weights alone say of a latent: the tokens that its decoder row raises and lowers, through the final norm and the unembedding.

The direct effect, centred over the vocabulary: what later blocks make of the direction is not in it. Of a FeatureStore where there is
one, else computed here; none for dictionaries that write elsewhere than into the residual stream's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ....circuits.targets import token_id
from ....saes import UserError, token_strings
from ...diffing.lens import lens
from .describe import known

if TYPE_CHECKING:
    from ..session import Session

Promoted = list[tuple[str, float]]
MOST = 10


def promoted(session: Session, dictionary: str, latent: int, number: int) -> tuple[Promoted, Promoted]:
    """The tokens (at most MOST) that a latent promotes most and suppresses most, with the direct effects."""
    store = session.workspace.store(dictionary)
    if store is not None and (own := known(session, dictionary, store, latent)).up:
        return own.up[:number], own.down[:number]
    prepare(session, dictionary, [latent])
    up, down = session.kept["promoted"][dictionary][latent]
    return up[:number], down[:number]


def prepare(session: Session, dictionary: str, latents: Sequence[int]) -> None:
    """Compute and keep what several latents promote, where no store has it: one pass over the unembedding for all."""
    kept = session.kept["promoted"].setdefault(dictionary, {})
    store, rows = session.workspace.store(dictionary), _row(session, dictionary)
    is_known = store is not None and "top_logit_tokens" in store._arrays
    left = [] if is_known else [latent for latent in latents if latent not in kept]
    model = session.workspace.model()
    if not left or rows.shape[1] != int(model.cfg.d_model):
        kept.update({latent: ([], []) for latent in left})
        return
    logits = lens(model, rows[left].double())
    for latent, row in zip(left, logits, strict=True):
        kept[latent] = (_ends(model, row, True), _ends(model, row, False))


def _ends(model: Any, logits: Float[Tensor, "vocab"], is_largest: bool) -> Promoted:
    best = logits.topk(min(MOST, len(logits)), largest=is_largest)
    return list(zip(token_strings(model, best.indices), best.values.tolist(), strict=True))


def effects_on(session: Session, dictionary: str, text: str) -> Float[Tensor, "latent"]:
    """The direct effect of each latent on one token; UserError for what is no single token of the target."""
    model, rows = session.workspace.model(), _row(session, dictionary)
    token = token_id(model, text, int(model.cfg.d_vocab))
    if rows.shape[1] != int(model.cfg.d_model):
        raise UserError(
            f"expected a dictionary that writes into the residual stream; {dictionary} does not; search by token"
        )
    return torch.cat([lens(model, part.double())[:, token] for part in rows.split(256)])


def _row(session: Session, dictionary: str) -> Float[Tensor, "latent d"]:
    return next(iter(session.workspace.part(dictionary).W_dec.values())).detach().float().cpu()
