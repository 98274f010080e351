"""Adam, applied to rows of a matrix as soon as their gradient is there.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

(Kingma and Ba 2015, algorithm 1.) torch's fused operation does the arithmetic; what is here is that a matrix may be given in
parts, so that a gradient of [latent d] need never exist whole, and that a step can be skipped by a flag on the device.

`Factored` keeps less of a matrix: m in bfloat16, and of v its means over rows and over columns, whose outer product over their mean
stands for it (Shazeer and Stern 2018, arXiv 1804.04235, algorithm 2): 2 bytes an entry instead of 8.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Adam:
    """Moments of named tensors; `moments[name]` is the pair (m, v), `steps []` how many steps were not skipped.

    `is_skipped []` is 1 from the `begin` of a step that is to change nothing until the next one.
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        device = next(iter(weights.values())).device
        self.moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights.items()}
        self.steps = torch.zeros((), device=device)
        self.is_skipped = torch.zeros((), device=device)

    def begin(self, is_skipped: Float[Tensor, ""]) -> None:
        """Begin a step; with `is_skipped` 1 it changes nothing, neither weights nor moments."""
        self.steps += 1 - is_skipped
        self.is_skipped = is_skipped

    def update(
        self, name: str, weight: Tensor, gradient: Tensor, lr: Float[Tensor, ""], rows: slice | None = None
    ) -> None:
        """Apply the gradient of these rows (None: all) to `weight`."""
        tensors = (weight, *self.moments[name])
        weight, m, v = tensors if rows is None else (tensor[rows] for tensor in tensors)
        torch._fused_adam_(  # type: ignore[attr-defined]  # what torch.optim.Adam calls, for whole tensors only
            [weight], [gradient], [m], [v], [], [self.steps], lr=lr, beta1=BETA1, beta2=BETA2,
            weight_decay=0.0, eps=EPS, amsgrad=False, maximize=False, found_inf=self.is_skipped,
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs, by name; loading copies into these."""
        named = {
            f"{name}.{part}": tensor
            for name, pair in self.moments.items()
            for part, tensor in zip("mv", pair, strict=True)
        }
        return {**named, "steps": self.steps}


class Factored:
    """Adam with a bfloat16 first moment and a factored second one; the interface of Adam, for whole tensors."""

    def __init__(self, weights: Mapping[str, Tensor]):
        device = next(iter(weights.values())).device
        self.first = {name: torch.zeros_like(w, dtype=torch.bfloat16) for name, w in weights.items()}
        self.second = {name: [w.new_zeros(shape) for shape in factors(w)] for name, w in weights.items()}
        self.steps = torch.zeros((), device=device)
        self.is_skipped = torch.zeros((), device=device)

    def begin(self, is_skipped: Float[Tensor, ""]) -> None:
        """Begin a step; with `is_skipped` 1 it changes nothing."""
        self.steps += 1 - is_skipped
        self.is_skipped = is_skipped

    def update(self, name: str, weight: Tensor, gradient: Tensor, lr: Float[Tensor, ""]) -> None:
        """Apply the gradient to `weight`."""
        share = 1 - self.is_skipped  # 0 leaves all as it is
        g = torch.where(self.is_skipped > 0, 0, gradient)
        m = self.first[name].to(g).lerp(g, (1 - BETA1) * share)
        self.first[name].copy_(m)
        squares = g.square()
        kept = [squares] if g.ndim < 2 else [squares.mean(1), squares.mean(0)]
        for old, new in zip(self.second[name], kept, strict=True):
            old.lerp_(new, (1 - BETA2) * share)
        steps = self.steps.clamp_min(1)
        v = spread(self.second[name]) / (1 - BETA2**steps)
        weight.sub_(share * lr * (m / (1 - BETA1**steps)) / (v.sqrt() + EPS))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs, by name."""
        named = {f"{name}.m": m for name, m in self.first.items()}
        named |= {f"{name}.v{number}": v for name, parts in self.second.items() for number, v in enumerate(parts)}
        return {**named, "steps": self.steps}


def factors(weight: Tensor) -> list[tuple[int, ...]]:
    """Shapes of what is kept of the second moment: of a matrix a number a row and a number a column."""
    return [tuple(weight.shape)] if weight.ndim < 2 else [(weight.shape[0],), (weight.shape[1],)]


def spread(parts: list[Tensor]) -> Tensor:
    """The second moment that the kept means stand for."""
    if len(parts) == 1:
        return parts[0]
    rows, columns = parts
    return torch.outer(rows, columns) / rows.mean().clamp_min(1e-30)
