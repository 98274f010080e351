"""The shard under way: its columns in memory as they will be stored, and the checks that a row must pass.

A row's Euclidean norm is kept beside it (the exclusion rule needs it), and it is the check too: a finite norm is that of a
finite row, and a row fits a dtype whose largest number its norm does not exceed. Only where that says no is every element
looked at. Buffers are kept from shard to shard, so that memory is touched once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..errors import UserError
from ..keep import row_norms
from .quantise import quantised


class Columns:
    """Named columns of equal length that grow by parts."""

    def __init__(self) -> None:
        self.rows = 0
        self._buffers: dict[str, Tensor] = {}

    def append(self, part: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
        """Copy the rows of a part behind those that are here, in the dtype that is named for the column, else its own."""
        count = len(next(iter(part.values())))
        for name, rows in part.items():
            self._room(name, rows, count, dtypes.get(name, rows.dtype))[self.rows : self.rows + count].copy_(rows)
        self.rows += count

    def _room(self, name: str, rows: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < self.rows + count:
            larger = torch.empty(max(2 * self.rows, self.rows + count), *rows.shape[1:], dtype=dtype)
            if buffer is not None:
                larger[: self.rows] = buffer[: self.rows]
            buffer = self._buffers[name] = larger
        return buffer

    def tensors(self) -> dict[str, Shaped[Tensor, "row ..."]]:
        """The columns, which the next `append` after `clear` overwrites."""
        return {name: buffer[: self.rows] for name, buffer in self._buffers.items()}

    def clear(self) -> None:
        """Begin anew."""
        self.rows = 0


def encoded(site: str, rows: Float[Tensor, "row d"], dtype: torch.dtype, norm_column: str | None) -> dict[str, Tensor]:
    """The columns of a site: its rows, still to be copied as `dtype` (int8: quantised, with `.scale`), and their norms.

    UserError for a row that is not finite, or does not fit `dtype`.
    """
    norms = row_norms(rows)
    limit = torch.finfo(dtype).max if dtype.is_floating_point else torch.finfo(torch.float32).max
    if not norms.max() <= limit:  # also where there is a NaN
        norms = _checked(site, rows, dtype, limit)
    columns = {norm_column: norms.float()} if norm_column else {}
    if dtype != torch.int8:
        return {site: rows} | columns
    values, scale = quantised(rows)
    return {site: values, f"{site}.scale": scale} | columns


def _checked(site: str, rows: Tensor, dtype: torch.dtype, limit: float) -> Float[Tensor, "row"]:
    """The norms in float64, if every element is finite and fits."""
    if not torch.isfinite(rows).all():
        raise UserError(f"expected finite activations at {site}; got NaN or infinity; load the model in float32")
    most = float(rows.abs().max())
    if most > limit or not torch.isfinite(rows.abs().max().to(dtype if dtype.is_floating_point else torch.float32)):
        stored = str(dtype).removeprefix("torch.")
        raise UserError(f"expected activations that fit {stored}; got {most:.3g} at {site}; store bfloat16 or float32")
    return rows.double().norm(dim=1)
