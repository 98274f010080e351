"""Numbers that leave the device without making it wait.

`send` starts a copy of a tensor to the host and `arrived` gives those copies that are there, in order; on a CPU that is at once.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Letter(NamedTuple):
    """A tensor on its way, what the sender wrote on it, and the event that tells it has arrived."""

    about: Any
    numbers: Tensor
    event: torch.cuda.Event | None


class Reports:
    """Copies under way from a device to the host."""

    def __init__(self) -> None:
        self._letters: deque[Letter] = deque()

    def send(self, about: Any, numbers: Tensor) -> None:
        """Start to copy; `numbers` must not be overwritten before the copy, which is ordered on the current stream."""
        if numbers.device.type != "cuda":
            self._letters.append(Letter(about, numbers.cpu(), None))
            return
        event = torch.cuda.Event()
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        event.record(torch.cuda.current_stream(numbers.device))
        self._letters.append(Letter(about, host, event))

    def arrived(self, wait: bool = False) -> list[tuple[Any, list[Any]]]:
        """What has arrived since the last call, oldest first; with `wait`, all that was sent."""
        out = []
        while self._letters:
            about, numbers, event = self._letters[0]
            if event is not None and not event.query():
                if not wait:
                    break
                event.synchronize()
            self._letters.popleft()
            out.append((about, numbers.tolist()))
        return out
