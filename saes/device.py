"""What a CUDA device adds to training: batches that travel while the last step runs, and the step as one graph.

Both leave the arithmetic alone: on other devices `stepper` gives the step itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import plain, step
from .rows import Pair
from .state import TrainState, take_step

AHEAD = 2  # steps
WARM_UP = 3  # steps before the capture, in which kernels are compiled and workspaces made


def on_device(pairs: Iterable[Pair], device: torch.device) -> Generator[Pair, None, None]:
    """The pairs on `device`; to CUDA from pinned memory on a stream of their own, so that the copy overlaps the last step."""
    if device.type != "cuda":
        yield from (Pair(pair.x.to(device), pair.y.to(device)) for pair in pairs)
        return
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    used: deque[Any] = deque()  # events
    for pair in pairs:
        if pair.x.device.type == "cuda":
            yield Pair(pair.x.to(device), pair.y.to(device))
            continue
        with torch.cuda.stream(stream):
            x = pair.x.pin_memory().to(device, non_blocking=True)
            y = x if pair.y is pair.x else pair.y.pin_memory().to(device, non_blocking=True)
        current.wait_stream(stream)
        for tensor in (x, y):
            tensor.record_stream(current)
        yield Pair(x, y)
        # The host stays at most AHEAD steps before the device, so that batches do not pile up.
        used.append(current.record_event())
        if len(used) > AHEAD:
            used.popleft().synchronize()


def stepper(state: TrainState) -> Callable[[Pair], Float[Tensor, "metric"]]:
    """A training step bound to the state: the fast one where it applies (on CUDA captured as a graph), else the plain one."""
    if not step.applies(state):
        return partial(take_step, state, plain.update)
    is_graphed = state.lr.device.type == "cuda" and state.ranks.size == 1
    return GraphedStep(state) if is_graphed else partial(take_step, state, step.update)


class GraphedStep:
    """A training step that is launched once, as a graph, instead of kernel by kernel.

    The first few steps, and batches of another size than the captured one (the last of a stream), run as they are.
    """

    def __init__(self, state: TrainState):
        self.state, self.graph = state, None
        self.steps = 0

    def __call__(self, pair: Pair) -> Float[Tensor, "metric"]:
        """One step; the numbers named in METRICS, on the device."""
        self.steps += 1
        if self.steps <= WARM_UP or len(pair.x) != self.state.config.batch:
            return take_step(self.state, step.update, pair)
        if self.graph is None:
            self._capture(pair)
        assert self.graph is not None
        self.pair.x.copy_(pair.x)
        if self.pair.y is not self.pair.x:
            self.pair.y.copy_(pair.y)
        self.state.set_rate()
        self.graph.replay()
        self.state.settle()
        self.state.step += 1
        return self.metrics.clone()

    def _capture(self, pair: Pair) -> None:
        """Record the step on buffers that every later batch is copied into; nothing is computed yet."""
        x = pair.x.clone()
        self.pair = Pair(x, x if pair.y is pair.x else pair.y.clone())
        self.graph = torch.cuda.CUDAGraph()
        # Other threads (a checkpoint's, a stream's) go on with what this one must not do while it records.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.metrics = step.update(self.state, self.pair)
