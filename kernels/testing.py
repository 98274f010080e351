"""How the tests and the benchmarks' gate judge a kernel: it may be as wrong as plain torch, and not more.

Three runs of one computation: the truth in float64, plain torch in the working precision, and ours in the same. Guessed
tolerances are not needed, because the middle one shows what the precision costs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def assert_as_accurate_as(ours: Tensor, plain: Tensor, truth: Tensor, name: str, slack: float = 1.25) -> None:
    """AssertionError unless `ours` is as near the truth as `plain` is, in the mean square and in its worst element.

    Each may be `slack` times that of `plain`, plus what rounding the truth to the type of `ours` may cost; a number that
    the truth has is never NaN or infinite in ours.
    """
    assert ours.shape == truth.shape, f"{name}: expected the shape {list(truth.shape)}; got {list(ours.shape)}"
    if not truth.numel():
        return
    wide = ours.double().to(truth.device)
    finite = truth.isfinite()
    broken = finite & ~wide.isfinite()
    assert not broken.any(), f"{name}: {int(broken.sum())} of {broken.numel()} elements are not finite and should be"
    error, allowed = ((part.double().to(truth.device) - truth)[finite] for part in (wide, plain))
    rounding = torch.finfo(ours.dtype).eps * truth[finite].square().mean().sqrt()
    for what, size, most in (
        ("root mean square", _rms(error), _rms(allowed)),
        ("largest", error.abs().max(), allowed.abs().max()),
    ):
        # The largest of rounding errors is several times their mean.
        limit = slack * most + rounding * (1 if what == "root mean square" else 4)
        worst = int(error.abs().argmax())
        assert size <= limit, (
            f"{name}: {what} error {size:.3g}, more than {limit:.3g} (plain torch: {most:.3g}); worst element: "
            f"{wide[finite][worst]:.9g}, plain {plain.double()[finite][worst]:.9g}, truth {truth[finite][worst]:.9g}"
        )


def _rms(error: Tensor) -> Tensor:
    return error.square().mean().sqrt()
