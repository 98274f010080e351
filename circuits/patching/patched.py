"""Path patching: a forward pass in which each reader may see another run's output of chosen writers.

For every removed edge (writer u, reader v) the stream that v reads becomes

    stream + z_u(other) - z_u(now)

with z_u(now) what u writes in this very pass, in which earlier removals act already (Conmy et al. 2023; Goldowsky-Dill et al.
2023). All edges removed, every reader sees the other run's stream, and the output is the other run's; none removed, the pass is
untouched. A batch has one set of removed edges per row. Queries, keys and values are computed from each reader's stream
and written before rotary and q/k norms, MLP inputs at mlp.hook_in, so that no flag of TransformerLens is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .components import CHANNELS, BlockWiring, Wiring, fire, head_outputs, project, through


class Outcome(NamedTuple):
    """What one pass computed. `channels`: per layer, q, k and v [row token head e] before rotary."""

    outputs: Float[Tensor, "sender row token d"]
    channels: list[dict[str, Tensor]]
    unembed: Float[Tensor, "row vocab"]  # the last position's logits before any soft-cap
    logits: Float[Tensor, "row vocab"]  # and as the model returns them


def run(
    wiring: Wiring,
    tokens: Int[Tensor, "token"],
    removed: Bool[Tensor, "row receiver sender position"] | None = None,
    other: Float[Tensor, "sender token d"] | None = None,
) -> Outcome:
    """Run the model on one prompt, a row for each set of `removed` edges, whose writers are replaced by their `other` outputs.

    `position` is 1 (an edge means all positions) or the length of the prompt (the position of writing and reading).
    """
    state = _Pass(wiring, removed, other)
    rows = 1 if removed is None else len(removed)
    with torch.no_grad():
        logits = fire(wiring, tokens.expand(rows, -1), state.hooks())
    return Outcome(state.outputs, state.channels, state.unembed, logits[:, -1])


class _Pass:
    """The hooks of one pass and what they note on the way.

    `known`: how many writers have written; `pre`, `mid`: the current block's stream before and after attention; `scale`:
    the denominator of its ln1_post.
    """

    def __init__(self, wiring: Wiring, removed: Tensor | None, other: Tensor | None):
        self.wiring, self.removed, self.other = wiring, removed, other
        self.channels: list[dict[str, Tensor]] = [{} for _ in wiring.blocks]
        self.known = 0
        self.pre = self.mid = self.scale = torch.empty(0)

    def hooks(self) -> list[Any]:
        """Hook names and functions, in the order in which they fire."""
        pairs: list[tuple[str, Callable[[Tensor], Tensor | None]]] = []
        for block in self.wiring.blocks:
            prefix = f"blocks.{block.layer}."
            pairs.append((prefix + "hook_resid_pre", self.enter))
            pairs += [(f"{prefix}attn.hook_{channel}", self.channel(block, channel)) for channel in CHANNELS]
            pairs.append((prefix + "attn.hook_z", self.note_z))
            if block.attn_post is not None:
                pairs.append((prefix + "ln1_post.hook_scale", self.note_scale))
            pairs.append((prefix + "hook_attn_out", self.heads(block)))
            if block.has_mlp:
                pairs += [(prefix + "mlp.hook_in", self.mlp_in(block)), (prefix + "hook_mlp_out", self.write)]
        pairs += [
            (f"blocks.{len(self.wiring.blocks) - 1}.hook_resid_post", self.leave),
            ("hook_unembed", self.note_end),
        ]
        return [(name, lambda value, hook, act=act: act(value)) for name, act in pairs]

    def enter(self, stream: Tensor) -> None:
        if self.known == 0:
            self.outputs = stream.new_zeros(len(self.wiring.senders), *stream.shape)
            self.write(stream)
        self.pre = stream

    def write(self, out: Float[Tensor, "row token d"]) -> None:
        self.outputs[self.known] = out
        self.known += 1

    def note_z(self, z: Tensor) -> None:
        self.z = z

    def note_scale(self, scale: Tensor) -> None:
        self.scale = scale

    def note_end(self, logits: Tensor) -> None:
        self.unembed = logits[:, -1]

    def heads(self, block: BlockWiring) -> Callable[[Tensor], None]:
        def act(out: Tensor) -> None:
            self.mid = self.pre + out
            z = self.z.reshape(*out.shape[:2], block.heads, -1)
            self.outputs[self.known : self.known + block.heads] = head_outputs(
                block, z, self.scale if block.attn_post is not None else None
            )
            self.known += block.heads

        return act

    def channel(self, block: BlockWiring, channel: str) -> Callable[[Tensor], Tensor | None]:
        readers = self.wiring.rows(block.layer, channel)

        def act(value: Tensor) -> Tensor | None:
            correction = self.correction(readers)
            if correction is not None:
                value = project(block, channel, self.pre[:, None] + correction).reshape(value.shape)
            self.channels[block.layer][channel] = value.reshape(*value.shape[:2], readers.stop - readers.start, -1)
            return None if correction is None else value

        return act

    def mlp_in(self, block: BlockWiring) -> Callable[[Tensor], Tensor | None]:
        reader = self.wiring.rows(block.layer, "mlp")

        def act(value: Tensor) -> Tensor | None:
            correction = self.correction(reader)
            if correction is None:
                return None
            stream = (self.pre if block.is_parallel else self.mid) + correction[:, 0]
            return through(block.mlp_norm, stream).reshape(value.shape)

        return act

    def leave(self, stream: Tensor) -> Tensor | None:
        correction = self.correction(slice(len(self.wiring.receivers) - 1, len(self.wiring.receivers)))
        return None if correction is None else stream + correction[:, 0]

    def correction(self, readers: slice) -> Float[Tensor, "row receiver token d"] | None:
        """What the removed edges change in the streams of these readers; None when none is removed."""
        if self.removed is None or self.other is None:
            return None
        mask = self.removed[:, readers, : self.known]
        if not mask.any():
            return None
        change = self.other[: self.known, None] - self.outputs[: self.known]
        mask = mask.to(change).expand(-1, -1, -1, change.shape[2])
        return einsum(mask, change, "row receiver sender token, sender row token d -> row receiver token d")
