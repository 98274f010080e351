"""Rows in 8 bits: each row has a scale of its own.

    scale = max |row| / 127, cut to 17 significant bits;   int8 = round(row / scale);   restored = int8 * scale

A product of 7 and 17 bits fits the 24 of float32, so `restored` is exact in float32 and the contract holds exactly:
|row - restored| <= scale / 2 for every entry. The quotient decides it rightly: the middle between two steps is a product of
8 and 17 bits, and no float32 beside it is so close that its quotient would be rounded to the very middle. A row of zeros
has scale 0. A scale below the least normal float32 is raised to it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

LOW_BITS = 0x7F  # of a float32: 24 significant bits without these are 17


def quantised(rows: Float[Tensor, "row d"]) -> tuple[Int8[Tensor, "row d"], Float32[Tensor, "row"]]:
    """Integers from -127 to 127 and the scale of each row; rows must be finite, and below the largest float32."""
    most = rows.abs().amax(1).float()
    scale = (most / 127).clamp_min(torch.finfo(torch.float32).tiny)
    scale = (scale.view(torch.int32) & ~LOW_BITS).view(torch.float32)
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return (wide / scale[:, None]).round_().to(torch.int8), scale.where(most > 0, 0)


def restored(integers: Int8[Tensor, "row d"], scale: Float32[Tensor, "row"]) -> Float32[Tensor, "row d"]:
    """The rows that the integers stand for, exactly."""
    return integers * scale[:, None]
