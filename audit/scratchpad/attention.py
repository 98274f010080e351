"""Which sentence is read by which: attention to one sentence is taken away from all that follows, and what is said there changes.

For each sentence i, in every block, the pattern of all tokens after it is set to 0 on its positions and scaled to sum to 1 again
(Bogdan et al. 2025, "Thought Anchors"). `matrix[j][i]` is what that does to piece j: for a later sentence the mean KL a token of its
next-token distributions, for the answer (the last row) the KL of the answer; 0 where j does not come after i.

Control: as many positions drawn at random from the prompt and the other sentences, from the same place on. What attention carries by way
of pieces between is cut too, as all later tokens are blinded; a sentence that was already summed up in an earlier one is not missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...circuits.tracing.frozen import quiet
from .answers import Change, change
from .spans import Written

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class KnockOut:
    """KL of piece j (sentences, then the answer) without attention to sentence i; drops of P(answer); the control's, by sentence."""

    matrix: list[list[float]]
    drops: list[float]
    control: list[list[Change]]

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self) | {"control": [[each._asdict() for each in row] for row in self.control]}


def knock_out(model: TransformerBridge, run: Written, *, draws: int = 4, seed: int = 0) -> KnockOut:
    """Blind all that follows each sentence to it, in turn, with `draws` random sets of positions beside each."""
    generator = torch.Generator().manual_seed(seed)
    spans, count = run.spans, len(run.sentences)
    matrix = torch.zeros(count + 1, count, dtype=torch.float64)
    before = _logs(model, run, None)
    drops, control = [], []
    for i, span in enumerate(spans.sentences):
        seen = _logs(model, run, _mask(run, span.stop, list(span)))
        for j in range(i + 1, count):
            place = slice(spans.sentences[j].start - 1, spans.sentences[j].stop - 1)
            matrix[j, i] = _kl(before[place], seen[place]) / max(1, len(spans.sentences[j]))
        one = change(_answer(before, run), _answer(seen, run), run)
        matrix[count, i] = one.kl
        drops.append(one.drop)
        pool = torch.tensor([*range(1, span.start), *range(span.stop, run.scratchpad.stop)])
        picks = [pool[torch.randperm(len(pool), generator=generator)[: len(span)]].tolist() for _ in range(draws)]
        control.append(
            [
                change(_answer(before, run), _answer(_logs(model, run, _mask(run, span.stop, pick)), run), run)
                for pick in picks
            ]
        )
    return KnockOut(matrix.tolist(), drops, control)


def _mask(run: Written, start: int, hidden: list[int]) -> Bool[Tensor, "query key"]:
    """Which keys are hidden from which queries: from `start` on, all of `hidden` but a token itself."""
    size = len(run.tokens)
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[start:, hidden] = True
    return mask & ~torch.eye(size, dtype=torch.bool)


def _logs(
    model: TransformerBridge, run: Written, mask: Bool[Tensor, "query key"] | None
) -> Float[Tensor, "token vocab"]:
    """Log-probabilities at every token, without the attention that `mask` names."""
    device = next(model.parameters()).device
    fixed: dict[int, Tensor] = {}
    while True:
        blind = None if mask is None else Blind(mask.to(device), fixed)
        with torch.no_grad(), quiet():
            logits = model.run_with_hooks(run.tokens[None].to(device), fwd_hooks=blind.hooks(model) if blind else [])
        if blind is None or not blind.missing:
            return logits[0].double().cpu().log_softmax(1)
        lowest = min(blind.missing)  # everything below it was blinded, so its pattern is right
        fixed[lowest] = blind.patterns[lowest]


class Blind:
    """Hooks that take attention away, by mixing z anew: in some architectures a changed pattern is not what the model goes on with.

    Where a pattern is only shown after its z (OPT), the layer is `missing`, and has to be given as `fixed` in another run.
    """

    def __init__(self, mask: Bool[Tensor, "query key"], fixed: dict[int, Tensor]):
        self.mask, self.fixed = mask, fixed
        self.patterns: dict[int, Tensor] = {}
        self.missing: set[int] = set()
        self._values: dict[int, Tensor] = {}

    def hooks(self, model: TransformerBridge) -> list[Any]:
        """Three hooks a layer."""
        found: list[Any] = []
        for layer in range(model.cfg.n_layers):
            site = f"blocks.{layer}.attn"
            found.append((f"{site}.hook_v", self._keep(self._values, layer)))
            found.append((f"{site}.hook_pattern", self._keep(self.patterns, layer)))
            found.append((f"{site}.hook_z", self._mix(layer)))
        return found

    def _keep(self, store: dict[int, Tensor], layer: int) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            store[layer] = value

        return keep

    def _mix(self, layer: int) -> Callable[..., Tensor]:
        def again(z: Tensor, hook: Any) -> Tensor:
            pattern = self.fixed.get(layer, self.patterns.get(layer))
            if pattern is None:
                self.missing.add(layer)
                return z
            pattern = pattern.masked_fill(self.mask, 0)
            pattern = pattern / pattern.sum(-1, keepdim=True).clamp_min(1e-30)
            v = self._values[layer].reshape(*z.shape[:2], -1, z.flatten(2).shape[-1] // pattern.shape[1])
            spread = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
            mixed = torch.einsum("bhqk,bkhe->bqhe", pattern.to(v), spread).reshape(z.shape)
            touched = self.mask.any(1).view(1, -1, *[1] * (z.ndim - 2))
            return torch.where(touched, mixed, z)

        return again


def _answer(logs: Float[Tensor, "token vocab"], run: Written) -> Float[Tensor, "answer vocab"]:
    span = run.spans.answer
    return logs[span.start - 1 : span.stop - 1]


def _kl(logs: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.kl_div(other, logs, log_target=True, reduction="sum").clamp_min(0))
