"""One forward and one backward pass of the unmodified model: codes at a dictionary's read site, gradients where it writes.

The graph of autograd begins at the first site that is written: below it nothing is differentiated. A gradient is that of the
target with everything above free to answer. The stream at hook_resid_mid has the gradient of what attention adds to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...saes.cache import capture
from ...saes.codes import Codes
from ...saes.errors import UserError
from ...saes.text import Block, pad_blocks
from ..experiment.edits import Catalogue
from ..parts import Part
from ..tracing.frozen import quiet
from .targets import Wanted, target_value


class Pass(NamedTuple):
    """What both passes left. `written`: site as the part names it -> what stands there and the target's gradient."""

    codes: Codes
    kept: Bool[Tensor, "token"]
    written: dict[str, tuple[Float[Tensor, "token d"], Float[Tensor, "token d"]]]
    wanted: Wanted
    value: float
    logits: Float[Tensor, "vocab"]  # of the position asked for, as the model gives them


def forward_backward(
    catalogue: Catalogue,
    part: Part,
    ids: Int[Tensor, "token"],
    position: int,
    choose: Callable[[Float[Tensor, "vocab"]], Wanted],
) -> Pass:
    """Run `ids`; `choose` says from the logits (before any soft-cap) at `position` what the target is.

    UserError when an activation is not finite or the target does not depend on what the dictionary writes.
    """
    read = catalogue.site(part.read)
    writes = {name: catalogue.site(name) for name in part.W_dec}
    leaves = {name: catalogue.site(_added(site)) for name, site in writes.items()}
    seen: dict[str, Tensor] = {}
    begun: dict[str, Tensor] = {}
    raw: list[Tensor] = []

    def keep(site: str) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            seen[site] = value.detach()[0].flatten(1)

        return hook

    def begin(site: str) -> Callable[..., Tensor]:
        # Returned, because what a hook is shown may be a reshaped view that the model does not go on with (OPT).
        def hook(value: Tensor, hook: Any) -> Tensor:
            begun[site] = value if value.requires_grad else value.detach().clone().requires_grad_()
            return begun[site]

        return hook

    hooks: list[Any] = [(site, keep(site)) for site in dict.fromkeys([read, *writes.values()])]
    hooks += [(site, begin(site)) for site in dict.fromkeys(leaves.values())]
    # Logits are formed at one position alone.
    hooks.append(("unembed.hook_in", lambda value, hook: value[:, position : position + 1]))
    hooks.append(("hook_unembed", lambda value, hook: raw.append(value[0, 0])))
    with torch.enable_grad(), quiet():
        logits = catalogue.model.run_with_hooks(ids[None], fwd_hooks=hooks)[0, 0].detach()
        chosen = choose(raw[0].detach())
        target = target_value(chosen.ids, raw[0])
        gradients = dict(zip(begun, _gradients(target, list(begun.values())), strict=True))
    if not all(bool(torch.isfinite(value).all()) for value in (*seen.values(), *gradients.values(), logits)):
        raise UserError(
            f"expected finite activations and gradients at {part.read}; got NaN or infinity; load in float32"
        )
    written = {name: (seen[site], gradients[leaves[name]][0].flatten(1)) for name, site in writes.items()}
    codes, kept = _encode(catalogue, part, seen, ids)
    return Pass(codes, kept, written, chosen, float(target.detach()), logits)


def encode_prompt(catalogue: Catalogue, part: Part, ids: Int[Tensor, "token"]) -> tuple[Codes, Bool[Tensor, "token"]]:
    """The codes of a prompt, and the tokens that the dictionary answers for; the model runs no further than it must."""
    sites = dict.fromkeys(catalogue.site(site) for site in (part.read, *part.W_dec))
    return _encode(catalogue, part, capture(catalogue.model, pad_blocks([Block(ids.cpu(), 0)]), list(sites)), ids)


@torch.no_grad()
def _encode(
    catalogue: Catalogue, part: Part, seen: dict[str, Tensor], ids: Int[Tensor, "token"]
) -> tuple[Codes, Bool[Tensor, "token"]]:
    known = {name: seen[catalogue.site(name)] for name in (part.read, *part.W_dec)}
    widths = {part.read: part.W_enc.shape[1]} | {name: rows.shape[1] for name, rows in part.W_dec.items()}
    wrong = next((name for name, width in widths.items() if known[name].shape[1] != width), None)
    if wrong is not None:
        raise UserError(
            f"expected a dictionary of width {known[wrong].shape[1]} at {wrong}; got one of {widths[wrong]}; is it another model's?"
        )
    x = known[part.read]
    codes = part.encode(x.to(part.W_enc.device, part.W_enc.dtype)).cpu()
    return codes, part.kept(torch.arange(len(x), device=x.device), known, ids).cpu()


def _added(site: str) -> str:
    return site.replace("hook_resid_mid", "hook_attn_out")


def _gradients(target: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    if not target.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    found = torch.autograd.grad(target, leaves, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True))
