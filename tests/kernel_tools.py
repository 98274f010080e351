"""What the kernels' tests share: data, exact comparison, and memory in which an element that was never written shows."""

import os

import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GUARD = 64  # elements before and after each tensor
COMPILER = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def integers(*shape, seed=0, low=-3, high=4):
    """Small integers, whose sums are exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).float().to(DEVICE)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def exactly(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def poison_memory(monkeypatch):
    """From here on torch's uninitialised tensors hold NaN, or a number that is no index; so does the memory around them.

    Returns a function that asserts that nothing was written around them.
    """
    plain, guards = torch.empty, []

    def poison(dtype):
        return torch.nan if dtype.is_floating_point else min(0x5A5A5A5A, torch.iinfo(dtype).max)

    def poisoned(make):
        def empty(*args, **kwargs):
            out = make(*args, **kwargs)
            if type(out) is not torch.Tensor or not out.is_contiguous():
                return out
            size = out.numel()
            memory = plain(size + 2 * GUARD, dtype=out.dtype, device=out.device).fill_(poison(out.dtype))
            guards.extend([memory[:GUARD], memory[GUARD + size :]])
            return memory[GUARD : GUARD + size].view(out.shape)

        return empty

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))

    def check():
        for guard in guards:
            assert_close(guard, torch.full_like(guard, poison(guard.dtype)), rtol=0, atol=0, equal_nan=True)

    return check


def inside_nan(x):
    """The same values as a view of a larger tensor of NaN, so that what is read beside it shows; rows stay contiguous."""
    wide = x.new_full((2 * len(x) + 1, x.shape[1] + 5), torch.nan)
    view = wide[1::2, 2:-3]
    return view.copy_(x)


READS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "_unique2", "equal", "is_nonzero"}


class NoSync(TorchDispatchMode):
    """AssertionError for an operation that would synchronise."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen.add(name)
        assert name not in READS, f"{name} makes the host wait"
        if name in ("index", "index_put", "index_put_"):
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), "a mask as an index"
        if name == "repeat_interleave":
            assert not isinstance(args[-1], torch.Tensor), "repeats on the device"
        return func(*args, **(kwargs or {}))
