"""The two runs of effects.py: the model on blocks of text as they are, and with what one latent writes taken away.

Blocks of like length run together, right-padded. The last norm's output is cut down to the shown tokens before the
unembedding, so that logits over the vocabulary are never formed for a block's other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...dictionary import Dictionary
from ...sites import layer_of, resolve_site
from ...text import Block, PaddedBlocks, pad_blocks
from ..gather.weights import lasting

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

COPIES = (
    7  # of the logits at the shown tokens: two runs, their log-probabilities, what is likely, the difference, the sort
)


class Window(NamedTuple):
    """Rows of the text: the first of the block, the first and the one after the last that are shown, and the focus."""

    block: int
    start: int
    stop: int
    row: int


class Run(NamedTuple):
    """The model on a batch: log-probabilities with and without the latent at the token before each window and those in it,
    whether the latent has fired by then, and its values on all tokens."""

    with_it: Float[Tensor, "batch place vocab"]
    without: Float[Tensor, "batch place vocab"]
    values: Float[Tensor, "batch seq"]
    has_fired: Bool[Tensor, "batch place"]


def batches(windows: Sequence[Window], vocab: int, memory_mib: int) -> list[list[int]]:
    """Numbers of windows to run together: of like length, as many as the memory holds, at least one."""
    order = sorted(range(len(windows)), key=lambda i: windows[i].stop - windows[i].block)
    found: list[list[int]] = []
    for i in order:
        widest = max((windows[n].stop - windows[n].start for n in (*(found[-1] if found else ()), i)), default=1) + 1
        size = (len(found[-1]) + 1 if found else 1) * widest * vocab * 4 * COPIES
        if not found or size > memory_mib * 2**20:
            found.append([])
        found[-1].append(i)
    return found


def shown_places(windows: Sequence[Window]) -> Int[Tensor, "batch place"]:
    """The position before each window and those in it, within its block, -1 where there is none."""
    width = max(window.stop - window.start for window in windows) + 1
    first = torch.tensor([window.start - window.block - 1 for window in windows])
    last = torch.tensor([window.stop - window.block for window in windows])
    places = first[:, None] + torch.arange(width)
    return torch.where(places < last[:, None], places, -1)


def run_both(
    model: TransformerBridge,
    dictionary: Dictionary,
    latent: int,
    tokens: Int[Tensor, "row"],
    windows: Sequence[Window],
) -> Run:
    """Run the model on the windows' blocks with the latent and without; logits are formed at the shown tokens alone."""
    device, places = next(model.parameters()).device, shown_places(windows)
    blocks = pad_blocks([Block(tokens[window.block : window.stop].long(), 0) for window in windows])
    names = {site: resolve_site(model, site) for site in dictionary.sites}
    seen: dict[str, Tensor] = {}

    def keep(site: str) -> Any:
        def hook(value: Tensor, hook: Any) -> None:
            seen[site] = value.clone()  # before anything downstream can write to it

        return hook

    def cut(value: Tensor, hook: Any) -> Tensor:
        where = places.clamp_min(0).to(value.device)
        return value.gather(1, where[:, :, None].expand(-1, -1, value.shape[2]))

    def log_probs(hooks: list[Any]) -> Tensor:
        logits = model.run_with_hooks(blocks.tokens.to(device), fwd_hooks=[*hooks, ("unembed.hook_in", cut)])
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    with_it = log_probs([(site, keep(site)) for site in dict.fromkeys(names.values())])
    values = latent_values(dictionary, latent, {name: seen[site] for name, site in names.items()}, blocks)

    def less(name: str, row: Tensor) -> list[Any]:
        y = seen[names[name]]
        taken = (values[:, :, None] * row).to(y).view_as(y)
        return [(site, lambda value, hook: value - taken) for site in changed_sites(model, names[name])]

    decoders = dictionary.decoders()
    written = {name: decoders[name][latent] for name in lasting(dictionary)}
    without = log_probs([hook for name, row in written.items() for hook in less(name, row)])
    fired = ((values > 0).cumsum(1) > 0).cpu()
    return Run(with_it, without, values.cpu(), fired.gather(1, places.clamp_min(0)) & (places >= 0))


def changed_sites(model: TransformerBridge, write: str) -> list[str]:
    """Where a change of `write` is made: hook_resid_mid is read by the MLP's norm alone, so it goes into the block's output too."""
    layer = layer_of(write)
    return (
        [write, resolve_site(model, f"blocks.{layer}.hook_resid_post")] if write.endswith("hook_resid_mid") else [write]
    )


def latent_values(
    dictionary: Dictionary, latent: int, sites: dict[str, Tensor], blocks: PaddedBlocks
) -> Float[Tensor, "batch seq"]:
    """The latent's value on every token, 0 on padding and where the dictionary does not answer."""
    device = dictionary.W_enc.device
    real = blocks.real
    rows = {site: value.flatten(2)[real.to(value.device)].to(device) for site, value in sites.items()}
    positions = torch.arange(real.shape[1]).expand(real.shape)[real].to(device)
    own = dictionary.encode(rows).of(torch.tensor([latent], device=device))[:, 0]
    values = torch.zeros(real.shape, dtype=own.dtype, device=device)
    kept = dictionary.kept(positions, rows, blocks.tokens[real])
    values[real.to(device)] = torch.where(kept, own, 0.0)
    return values
