"""Adam, applied to rows of a matrix as soon as their gradient is there.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

(Kingma and Ba 2015, algorithm 1.) torch's fused operation does the arithmetic; what is here is that a matrix may be given in
parts, so that a gradient of [latent d] need never exist whole, and that a step can be skipped by a flag on the device.
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
