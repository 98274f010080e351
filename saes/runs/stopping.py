"""SIGTERM and Ctrl-C during training: the step under way is finished and a checkpoint written, then the process may end.

    with Stopping() as stopping:
        for pair in pairs:
            take a step
            if stopping.signal:
                write a checkpoint
                stopping.leave()

A second Ctrl-C ends at once. Only the main thread can hear signals; elsewhere, and for a signal that is ignored, nothing changes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
HEARD = b"\nstopping after this step; Ctrl-C (again) ends at once\n"


class Stopping:
    """Within the block, the two signals are kept in `signal` instead of ending the process; the old handlers come back after it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in NAMES:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # None: a handler that is not Python's could not be put back
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        with contextlib.suppress(OSError):
            os.write(2, HEARD)  # not print, which this handler may have interrupted

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if kind is None:
            self.leave()

    def leave(self) -> None:
        """End as the signal asks, if there was one: KeyboardInterrupt for Ctrl-C (exit code 130), exit code 143 for SIGTERM."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
