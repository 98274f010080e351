"""Which latents of a token are active: the five activation rules, token by token, as a finished dictionary applies them.

    pre        = W_enc x + b_enc
    topk         relu of the k largest                              Gao et al. 2024, arXiv 2406.04093, eq. 3
    batch_topk   pre where pre > threshold, one for all latents     Bussmann et al. 2024, arXiv 2412.06410, section 3
    jumprelu     pre where pre > its latent's threshold             Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 3
    relu         pre where pre > 0
    gated        where pre > 0: relu(exp(r_mag) (W_enc x) + b_mag)  Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 6 and 7

(In training batch_topk takes the k n largest of a batch of n tokens instead; the threshold is a running mean of the smallest that
were taken.) None holds a [token latent] matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import encode_jumprelu, encode_relu, encode_topk
from .dictionary_config import DictionaryConfig

EXTRA = {"topk": (), "relu": (), "batch_topk": ("threshold",), "jumprelu": ("threshold",), "gated": ("r_mag", "b_mag")}
"""The tensors `[latent]` that a rule has besides W_enc and b_enc (which is the gate's bias in a gated dictionary)."""


def encode(
    config: DictionaryConfig,
    x: Float[Tensor, "token d"],
    W_enc: Float[Tensor, "latent d"],
    b_enc: Float[Tensor, "latent"],
    extra: Mapping[str, Float[Tensor, "latent"]],
) -> tuple[Float[Tensor, "token width"], Int[Tensor, "token width"]]:
    """Values and latents of each token under the rule of `config`; value 0 is an empty slot."""
    if config.activation == "topk":
        return encode_topk(x, W_enc, b_enc, config.k)
    if config.activation == "relu":
        return encode_relu(x, W_enc, b_enc)
    if config.activation == "gated":
        pre, indices = encode_relu(x, W_enc, b_enc)
        return torch.where(pre > 0, magnitude(pre, b_enc, extra, indices), 0), indices
    return encode_jumprelu(x, W_enc, b_enc, extra["threshold"].expand_as(b_enc))


def magnitude(
    pre: Float[Tensor, "token slot"],
    b_enc: Float[Tensor, "latent"],
    extra: Mapping[str, Float[Tensor, "latent"]],
    indices: Int[Tensor, "token slot"] | None = None,
) -> Float[Tensor, "token slot"]:
    """How strong a gated latent is where its gate is open: exp(r_mag) (pre - b_enc) + b_mag, ReLU'd."""
    chosen = slice(None) if indices is None else indices
    return (extra["r_mag"].exp()[chosen] * (pre - b_enc[chosen]) + extra["b_mag"][chosen]).relu()
