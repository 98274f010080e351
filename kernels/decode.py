"""Codes times matrix, and its two derivatives: three linear ops, each made of the other two.

    decode           out[t]    = sum_j values[t, j] W[indices[t, j]]                 d values: contract   d W: weight_gradient
    contract         out[t, j] = <rows[t], W[indices[t, j]]>                         d rows: decode       d W: weight_gradient
    weight_gradient  out[i]    = sum over (t, j) with indices[t, j] = i of values[t, j] rows[t]
                                                                                     d values: contract   d rows: decode

`decode` is a dictionary's decoder without the `[token latent]` matrix (Gao et al. 2024, arXiv 2406.04093, section 2.3);
`contract` is the gather-and-dot by which an attribution meets encoder or decoder rows; `weight_gradient` sums latent by
latent over a stable sort of the slots, so it repeats bit for bit. Nothing of size token * k * d or token * latent is
ever held. Derivation and costs: kernels/README.md.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .dispatch import path_of
from .reference import at_least_float32


def decode(
    values: Float[Tensor, "token k"], indices: Int[Tensor, "token k"], W_dec: Float[Tensor, "latent d"]
) -> Float[Tensor, "token d"]:
    """Sum the chosen rows of `W_dec`, each weighted by its value.

    Accumulates in float32 (float64 for float64 input) and returns the dtype of `values`. A repeated index counts twice;
    value 0 adds nothing, of a finite row. Differentiable in `values` and `W_dec`. Raises ValueError if an index is outside [0, latent)
    (checked on the CPU only: a device check would synchronise). Gao et al. 2024, arXiv 2406.04093, section 2.3.
    """
    return _decode(values, indices, W_dec)


def contract(
    rows: Float[Tensor, "token d"], indices: Int[Tensor, "token k"], W: Float[Tensor, "latent d"]
) -> Float[Tensor, "token k"]:
    """The chosen entries of `rows @ W.T`: each token's row times the rows of `W` that it names.

    Float32 (float64 for float64 input). Differentiable in `rows` and `W`. Raises ValueError if an index is outside
    [0, latent), on the CPU only.
    """
    return _contract(rows, indices, W)


def weight_gradient(
    values: Float[Tensor, "token k"], indices: Int[Tensor, "token k"], rows: Float[Tensor, "token d"], latents: int
) -> Float[Tensor, "latent d"]:
    """For each latent the sum of `values[t, j] rows[t]` over the slots that name it; zero where none does.

    Float32 (float64 for float64 input), the same bits every time. Differentiable in `values` and `rows`. Raises
    ValueError if an index is outside [0, latents), on the CPU only.
    """
    return _weight_gradient(values, indices, rows, latents)


def sae_gradient(
    g: Float[Tensor, "token d"],
    x: Float[Tensor, "token d_in"],
    values: Float[Tensor, "token k"],
    indices: Int[Tensor, "token k"],
    W_dec: Float[Tensor, "latent d"],
) -> tuple[Float[Tensor, "token k"], Float[Tensor, "latent d"], Float[Tensor, "latent d_in"], Float[Tensor, "latent"]]:
    """All gradients of `decode(encode(x, W_enc, b_enc), W_dec)` by its output's, `g`: one pass where there is a GPU.

    With d = contract(g, indices, W_dec) where `values` is not 0, and 0 where it is (empty, or cut by the ReLU), returns

        d,   weight_gradient(values, indices, g),   weight_gradient(d, indices, x),   weight_gradient(d, indices, ones)

    which belong to the kept pre-activations, W_dec, W_enc and b_enc. Float32 (float64 for float64 input); not itself
    differentiable. Raises ValueError if an index is outside [0, latent), on the CPU only.
    """
    return _sae_gradient(g, x, values, indices, W_dec)


@torch.library.custom_op(
    "unweave::decode", mutates_args=(), schema="(Tensor values, Tensor indices, Tensor W) -> Tensor"
)
def _decode(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    return path_of("decode", W)(values, indices, W)


@torch.library.custom_op(
    "unweave::contract", mutates_args=(), schema="(Tensor rows, Tensor indices, Tensor W) -> Tensor"
)
def _contract(rows: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    return path_of("contract", W)(rows, indices, W)


@torch.library.custom_op(
    "unweave::weight_gradient",
    mutates_args=(),
    schema="(Tensor values, Tensor indices, Tensor rows, int latents) -> Tensor",
)
def _weight_gradient(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    return path_of("weight_gradient", rows)(values, indices, rows, latents)


@torch.library.custom_op(
    "unweave::sae_gradient",
    mutates_args=(),
    schema="(Tensor g, Tensor x, Tensor values, Tensor indices, Tensor W_dec) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _sae_gradient(
    g: Tensor, x: Tensor, values: Tensor, indices: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return path_of("sae_gradient", W_dec)(g, x, values, indices, W_dec)


@_decode.register_fake
def _(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    return values.new_empty(len(values), W.shape[1])


@_contract.register_fake
def _(rows: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    return at_least_float32(rows.new_empty(0)).new_empty(indices.shape)


@_weight_gradient.register_fake
def _(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    return at_least_float32(rows.new_empty(0)).new_empty(latents, rows.shape[1])


@_sae_gradient.register_fake
def _(g: Tensor, x: Tensor, values: Tensor, indices: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = at_least_float32(W_dec.new_empty(0))
    shapes = (indices.shape, W_dec.shape, (len(W_dec), x.shape[1]), (len(W_dec),))
    return tuple(like.new_empty(shape) for shape in shapes)  # type: ignore[return-value]  # there are four


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])


def _decode_backward(ctx, g):
    values, indices, W = ctx.saved_tensors
    wants_values, _, wants_W = ctx.needs_input_grad
    return (
        _contract(g, indices, W).to(values.dtype) if wants_values else None,
        None,
        _weight_gradient(values, indices, g, len(W)).to(W.dtype) if wants_W else None,
    )


def _contract_backward(ctx, g):
    rows, indices, W = ctx.saved_tensors
    wants_rows, _, wants_W = ctx.needs_input_grad
    return (
        _decode(g, indices, W).to(rows.dtype) if wants_rows else None,
        None,
        _weight_gradient(g, indices, rows, len(W)).to(W.dtype) if wants_W else None,
    )


def _weight_gradient_backward(ctx, g):
    values, indices, rows = ctx.saved_tensors
    wants_values, _, wants_rows, _ = ctx.needs_input_grad
    return (
        _contract(rows, indices, g).to(values.dtype) if wants_values else None,
        None,
        _decode(at_least_float32(values), indices, g).to(rows.dtype) if wants_rows else None,
        None,
    )


_decode.register_autograd(_decode_backward, setup_context=_save)
_contract.register_autograd(_contract_backward, setup_context=_save)
_weight_gradient.register_autograd(_weight_gradient_backward, setup_context=_save)
