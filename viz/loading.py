"""What several commands need: the positional text argument, and a model on a device."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from ..saes.errors import UserError

Text = Annotated[str, tyro.conf.Positional]


def load(name: str, dtype: str, device: str | None) -> Any:
    """Load a model for a command; dtype auto measures which is faster on the device."""
    import torch

    from ..saes.models import faster_dtype, load_model

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"expected a device that is here; got {device} ({str(error).splitlines()[0]}); try cpu"
        ) from error
    return load_model(name, device, faster_dtype(device) if dtype == "auto" else getattr(torch, dtype))
