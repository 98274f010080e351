"""The Triton path: the ops of reference.py as fused kernels, exact and repeatable. Importing this imports triton."""

from .batch import encode_batch_topk
from .encode import encode_threshold, encode_topk, topk
from .gradient import sae_gradient, weight_gradient
from .latents import segment
from .rows import contract, decode

__all__ = [
    "contract",
    "decode",
    "encode_batch_topk",
    "encode_threshold",
    "encode_topk",
    "sae_gradient",
    "segment",
    "topk",
    "weight_gradient",
]
