"""One forward pass, as far as the deepest site that is wanted: the rows `[row d]` of each site at the real tokens.

    rows = capture(model, pad_blocks(blocks), ["blocks.12.hook_resid_post"])

`Capture` is the same for many batches: what does not depend on the batch is made once, and on CUDA the rows travel to the
host while the next batch is computed (`Captured.wait` tells when they are there). It looks at no number; `capture` refuses
those that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from .errors import UserError
from .plain_modules import PlainModel, Reached, as_model
from .sites import stop_layer
from .text import Block, PackedBlocks, PaddedBlocks, pad_blocks


class Captured(NamedTuple):
    """Rows of each site on the host, in the model's dtype; they may be read once `wait` has returned."""

    rows: dict[str, Tensor]
    wait: Callable[[], None]


class Capture:
    """Runs `model` on batches and keeps `sites` (canonical names)."""

    def __init__(self, model: Any, sites: list[str]):
        self.model, self.sites = as_model(model), sites
        self.device = next((one.device for one in self.model.parameters()), torch.device("cpu"))
        self._stop = None if isinstance(self.model, PlainModel) else stop_layer(sites)
        self._rows: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, blocks: PaddedBlocks | PackedBlocks) -> Captured:
        """The rows of one batch, in the order of `blocks.rows()`; UserError for a site without one row a token."""
        self._rows, self._index = {}, blocks.index().to(self.device)
        self._shape = tuple(blocks.tokens.shape)
        tokens = blocks.tokens.to(self.device)
        more = {} if isinstance(blocks, PaddedBlocks) else {"position_ids": blocks.positions.to(self.device)}
        if isinstance(self.model, PlainModel):
            self._run_plain(self.model, tokens, more)
        else:
            self._run_bridge(tokens, more)
        missing = [site for site in self.sites if site not in self._rows]
        if missing:
            raise UserError(
                f"expected {missing[0]} to be computed in a forward pass; it never fired; choose another site"
            )
        rows, self._rows = {site: self._rows[site] for site in self.sites}, {}
        return _on_host(rows, self.device)

    def widths(self) -> dict[str, int]:
        """Dimensions of each site, from a pass over a single token."""
        return {site: rows.shape[1] for site, rows in self(pad_blocks([Block(torch.tensor([0]), 0)])).rows.items()}

    def _run_bridge(self, tokens: Int[Tensor, "batch seq"], more: dict[str, Any]) -> None:
        hooks: list[Any] = [(site, lambda value, hook, site=site: self._keep(site, value)) for site in self.sites]
        # A cache of keys is of no use here, and transformers tells packed documents apart only without one.
        more = {**more, "use_cache": False} if more else {}
        self.model.run_with_hooks(tokens, fwd_hooks=hooks, stop_at_layer=self._stop, **more)

    def _run_plain(self, model: PlainModel, tokens: Int[Tensor, "batch seq"], more: dict[str, Any]) -> None:
        with model.reaching(self.sites, self._keep):
            try:
                model.forward(tokens, **more)
            except Reached:
                pass

    def _keep(self, site: str, value: Any) -> None:
        if not isinstance(value, Tensor) or value.ndim < 3 or tuple(value.shape[:2]) != self._shape:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"expected {site} to be [batch seq …]; got {got}; choose a site with one row a token")
        self._rows[site] = value.detach().flatten(0, 1).flatten(1).index_select(0, self._index)


def _on_host(rows: dict[str, Tensor], device: torch.device) -> Captured:
    if device.type != "cuda":
        return Captured({site: value.cpu() for site, value in rows.items()}, lambda: None)
    host = {site: torch.empty(value.shape, dtype=value.dtype, pin_memory=True) for site, value in rows.items()}
    for site, value in rows.items():
        host[site].copy_(value, non_blocking=True)
    copied = torch.cuda.current_stream(device).record_event()
    return Captured(host, copied.synchronize)


def capture(model: Any, blocks: PaddedBlocks | PackedBlocks, sites: list[str]) -> dict[str, Tensor]:
    """Activations `[row d]` of `sites` (canonical names) at the real tokens of one batch, on the host, in the model's dtype.

    `model` is a TransformerBridge, or a plain module as in plain_modules.py. UserError for a site that has no row a token, and
    for NaN or infinity.
    """
    captured = Capture(model, sites)(blocks)
    captured.wait()
    for site, rows in captured.rows.items():
        if not torch.isfinite(rows).all():
            raise UserError(f"expected finite activations at {site}; got NaN or infinity; load the model in float32")
    return captured.rows
