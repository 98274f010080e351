"""Decode sparse codes: a weighted sum of dictionary rows for each token.

    out[t] = sum_j values[t, j] W_dec[indices[t, j]]

the same as `dense(codes) @ W_dec` without the `[token latent]` matrix. As torch sees it, this is an embedding bag with
per-sample weights; its backward is a gather-dot for the values and a scatter-add of rows for W_dec.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from .topk import at_least_float32


def decode(
    values: Float[Tensor, "token k"], indices: Int[Tensor, "token k"], W_dec: Float[Tensor, "latent d"]
) -> Float[Tensor, "token d"]:
    """Sum the chosen rows of `W_dec`, each weighted by its value.

    Accumulates in float32 (float64 for float64 input) and returns the dtype of `values`. A repeated index counts twice;
    value 0 adds nothing. Differentiable in `values` and `W_dec`. Raises ValueError if an index is outside [0, latent)
    (checked on the CPU only: a device check would synchronise). Gao et al. 2024, arXiv 2406.04093, section 2.3.
    """
    latents = W_dec.shape[0]
    if indices.device.type == "cpu" and indices.numel() and not (0 <= indices.min() and indices.max() < latents):
        raise ValueError(f"expected latent indices in [0, {latents}); got {int(indices.min())} to {int(indices.max())}")
    out = embedding_bag(indices, at_least_float32(W_dec), per_sample_weights=at_least_float32(values), mode="sum")
    return out.to(values.dtype)
