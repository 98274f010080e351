"""Plain tensors in, plain tensors out: the arithmetic of sparse dictionaries.

Each operation is defined in a few lines of plain torch (reference.py) and differentiable; which code runs it is chosen
by device (`which`), and `UNWEAVE_KERNELS=reference|cpu|triton` forces it. Lower precisions are computed in float32. See
kernels/README.md.
"""

from .cpu.lists import list_by_latent
from .decode import contract, decode, sae_gradient, weight_gradient
from .dispatch import which
from .encode import encode_batch_topk, encode_jumprelu, encode_relu, encode_topk, select_topk
from .segment import Segment, segment
from .topk import topk

__all__ = [
    "Segment",
    "contract",
    "decode",
    "encode_batch_topk",
    "encode_jumprelu",
    "encode_relu",
    "encode_topk",
    "list_by_latent",
    "sae_gradient",
    "segment",
    "select_topk",
    "topk",
    "weight_gradient",
    "which",
]
