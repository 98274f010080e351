"""From "set latent 17 to 8" to `Edit`s: the places that a change of a latent is made at when none are named.

A dictionary does not answer for every token (saes/keep.py): what it reads at position 0 and at tokens of massive norm is outside its
training, and a change there is no change of the feature. So without positions a latent is changed at all tokens of the prompt that its
dictionary answers for, and at every token that is written after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ...saes.errors import UserError
from ..experiment.edits import ACTIONS, Catalogue, Edit
from ..graph import Node
from ..parts import Part
from .text import Prompt, prompt_ids
from .through import encode_prompt

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Wish(NamedTuple):
    """Change one latent: `action` and `value` as of `Edit`; `positions` None means wherever the dictionary answers for."""

    latent: int
    action: str = "ablate"
    value: float | None = None
    positions: Any = None


def latent_edits(model: TransformerBridge, dictionary: Any, text: Prompt, wishes: Iterable[Wish]) -> list[Edit]:
    """Edits of latents of one dictionary for `steer_prompt`, `stream` and `intervene` on this very prompt.

    Costs a forward pass when a wish names no positions. Raises UserError for latents and actions that there are not.
    """
    catalogue = Catalogue(model, dictionary)
    if len(catalogue.parts) != 1:
        raise UserError(
            f"expected one dictionary; got {len(catalogue.parts)} read sites; make edits for one after another"
        )
    (part,) = catalogue.parts.values()
    ids = prompt_ids(model, text)
    kept: list[int] | None = None
    edits = []
    for wish in wishes:
        _check(wish, part)
        node = Node("latent", part.layer, 0, wish.latent, 0.0, f"latent {wish.latent}", site=part.read)
        if wish.positions is not None:
            edits.append(Edit(node, wish.action, wish.value, wish.positions))
            continue
        if kept is None:
            kept = encode_prompt(catalogue, part, ids)[1].nonzero()[:, 0].tolist()
        if kept:
            edits.append(Edit(node, wish.action, wish.value, kept))
        edits.append(Edit(node, wish.action, wish.value, slice(len(ids), None)))
    return edits


def _check(wish: Wish, part: Part) -> None:
    if not 0 <= wish.latent < part.latents:
        raise UserError(f"expected a latent below {part.latents} of {part.read}; got {wish.latent}; choose another")
    if wish.action not in ACTIONS or wish.action == "swap":
        raise UserError(f"expected an action of ablate, scale, set, steer; got {wish.action!r}; choose one")
