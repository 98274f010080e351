"""A buffer that stays: scratch memory of the CPU path, one for each thread, at most `LIMIT` bytes.

An allocation of tens of megabytes is returned to the system when it is freed, and touching its pages anew the next time
costs as much as the arithmetic on it. Whoever borrows the buffer must be done with it before the next one borrows.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

LIMIT = 64 * 2**20

_kept = threading.local()


def borrow(*shape: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor of this shape in the thread's buffer (a new one where it would not fit)."""
    size = math.prod(shape) * dtype.itemsize
    if size > LIMIT:
        return torch.empty(shape, dtype=dtype, device="cpu")
    kept = getattr(_kept, "bytes", None)
    if kept is None or len(kept) < size:
        kept = _kept.bytes = torch.empty(size, dtype=torch.uint8, device="cpu")
    return kept[:size].view(dtype).view(shape)
