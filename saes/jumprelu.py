"""JumpReLU and the step function with pseudo-gradients for the threshold (Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 11 and 12).

    a = pre where pre > threshold, else 0        d a / d threshold = -(threshold / width) [|pre - threshold| < width / 2]
    s = 1 where pre > threshold, else 0          d s / d threshold = -(1 / width)         [|pre - threshold| < width / 2]

Both are flat or jump in the threshold, so the true gradient is 0 almost everywhere; these are kernel estimates of the gradient of
the expectation, with a rectangle of that width. `pre` gets the gradient of what passes, and none from the step.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.width = width
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.width / 2
        return grads[0] * (pre > threshold), -(grads[0] * near).sum(0) * threshold / ctx.width, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.width = width
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.width / 2
        return None, -(grads[0] * near).sum(0) / ctx.width, None


def jumprelu(
    pre: Float[Tensor, "token latent"], threshold: Float[Tensor, "latent"], width: float
) -> Float[Tensor, "token latent"]:
    """Pre-activations above their threshold; the threshold gets the pseudo-gradient above."""
    return _JumpReLU.apply(pre, threshold, width)  # type: ignore[no-any-return]


def step(
    pre: Float[Tensor, "token latent"], threshold: Float[Tensor, "latent"], width: float
) -> Float[Tensor, "token latent"]:
    """1 where a latent is active; its sum over latents is L0, whose pseudo-gradient moves the threshold."""
    return _Step.apply(pre, threshold, width)  # type: ignore[no-any-return]
