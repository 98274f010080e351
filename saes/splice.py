"""Let the model compute through a dictionary: what it writes is replaced by the dictionary's reconstruction.

At each position that the dictionary answers for (keep.py) the written site becomes

    y_hat                       (keep_error=False), or
    y_hat + (y - y_hat) = y     (keep_error=True), the error held fixed: nothing changes until codes are intervened on.

Other positions pass through untouched, unless `everywhere`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .dictionary import Dictionary
from .errors import UserError
from .models import model_info
from .sites import resolve_site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Replace = Callable[[Tensor, Tensor], Tensor]


@contextlib.contextmanager
def splice(
    model: TransformerBridge, dictionaries: Iterable[Dictionary], keep_error: bool = False, everywhere: bool = False
) -> Iterator[TransformerBridge]:
    """Within the block, `model` computes through `dictionaries`; forward passes are over whole prompts (no KV cache).

    Raises UserError if a dictionary was trained on another model or a site that this one lacks.
    """
    with contextlib.ExitStack() as stack:
        for dictionary in dictionaries:
            stack.enter_context(replacing(model, dictionary, _reconstruct(dictionary, keep_error), everywhere))
        yield model


def _reconstruct(dictionary: Dictionary, keep_error: bool) -> Replace:
    def replace(x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]) -> Float[Tensor, "token d_out"]:
        y_hat = dictionary(x).to(y)
        return y_hat + (y - y_hat).detach() if keep_error else y_hat

    return replace


@contextlib.contextmanager
def replacing(
    model: TransformerBridge, dictionary: Dictionary, replace: Replace, everywhere: bool = False
) -> Iterator[None]:
    """Within the block, the written site becomes `replace(x, y)` at the rows that `dictionary` answers for."""
    check_model(dictionary, model)
    read, write = resolve_site(model, dictionary.read), resolve_site(model, dictionary.write)
    seen: dict[str, Tensor] = {}

    def remember(value: Tensor, hook: Any) -> None:
        seen["x"] = value

    def rewrite(value: Tensor, hook: Any) -> Tensor:
        x, y = ((value if read == write else seen["x"]).flatten(2).flatten(0, 1), value.flatten(2).flatten(0, 1))
        positions = torch.arange(value.shape[1], device=value.device).expand(value.shape[:2]).flatten()
        kept = dictionary.kept(positions, {dictionary.read: x, dictionary.write: y})
        if everywhere:
            kept = torch.ones_like(kept)
        out = y.clone()
        out[kept] = replace(x[kept], y[kept]).to(y)
        return out.view_as(value)

    hooks = [(write, rewrite)] if read == write else [(read, remember), (write, rewrite)]
    with model.hooks(fwd_hooks=hooks):
        yield


def check_model(dictionary: Dictionary, model: TransformerBridge) -> None:
    """UserError unless the dictionary was trained on this model's weights (one without provenance is accepted)."""
    trained = dictionary.metadata.get("model")
    info = model_info(model)
    if trained and trained["fingerprint"] != info.fingerprint:
        raise UserError(
            f"expected a dictionary of {info.name} (weights {info.fingerprint[:8]}); this one was trained on "
            f"{trained['name']} (weights {trained['fingerprint'][:8]}); load that model or another dictionary"
        )
