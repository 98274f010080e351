"""The CPU path: the ops of reference.py from torch operations that need little memory and mostly stay in the cache."""

from .encode import encode_batch_topk, encode_threshold, encode_topk, topk
from .latents import segment
from .linear import contract, decode, sae_gradient, weight_gradient

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
