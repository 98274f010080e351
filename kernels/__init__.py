"""Plain tensors in, plain tensors out: the arithmetic of sparse dictionaries.

Each operation is defined here in plain torch, differentiable, in float32 or float64 (lower precisions are computed in
float32); that definition is also what tests compare against. See kernels/README.md.
"""

from .decode import decode
from .topk import encode_topk, topk

__all__ = ["decode", "encode_topk", "topk"]
