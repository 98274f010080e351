"""Encoders: the matmul and the choice of what is active, in one op, so that `[token latent]` never exists in memory.

    pre[t, i] = <x[t], W_enc[i]> + b_enc[i]

    encode_topk        relu of the k largest of each token           Gao et al. 2024, arXiv 2406.04093, eq. 3
    encode_batch_topk  relu of the token * k largest of the batch    Bussmann et al. 2024, arXiv 2412.06410, section 3
    encode_jumprelu    pre where pre > threshold                     Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 3
    encode_relu        pre where pre > 0

All return codes: values and the latents they belong to, `[token k]`, value 0 in an empty slot, ready for `decode`. The
kept pre-activations pass their gradient to x, W_enc and b_enc; what the rule cut passes none (the threshold of a JumpReLU
gets its pseudo-gradient from a loss, not here).

W_enc may be `[stack latent d]` with b_enc `[stack latent]`: several dictionaries that share their input, in one launch;
codes are then `[stack token k]`. A view of one dictionary as `[group latent/group d]` gives a top k within each group.

Where the number kept varies from token to token, codes are as wide as the widest token needs, which costs one host
synchronisation on CUDA; with `capacity` they are that wide (or as wide as there are latents), nothing synchronises, and a token
that needs more comes out as NaN throughout, with indices that mean nothing: never cut in silence.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .decode import _decode, _weight_gradient
from .dispatch import path_of
from .reference import at_least_float32
from .topk import check_k

Codes = tuple[Float[Tensor, "*stack token k"], Int[Tensor, "*stack token k"]]


def encode_topk(
    x: Float[Tensor, "token d"], W_enc: Float[Tensor, "*stack latent d"], b_enc: Float[Tensor, "*stack latent"], k: int
) -> Codes:
    """The k largest pre-activations `x @ W_enc.T + b_enc` of each token, ReLU'd, with their latents.

    Values are float32 (float64 for float64 input), largest first, ties to the lowest latent; 0 marks an empty slot.
    Differentiable in x, W_enc and b_enc. Raises ValueError unless 1 <= k <= latent.
    """
    pre, indices = select_topk(x, W_enc, b_enc, k)
    return pre.relu(), indices


def select_topk(
    x: Float[Tensor, "token d"], W_enc: Float[Tensor, "*stack latent d"], b_enc: Float[Tensor, "*stack latent"], k: int
) -> Codes:
    """`encode_topk` without the ReLU: the k largest pre-activations themselves, whatever their sign."""
    check_k(k, W_enc.shape[-2])
    _check_shapes(x, W_enc, b_enc)
    return _unstack(_encode_topk(x, *_stack(W_enc, b_enc), k), W_enc)


def encode_batch_topk(
    x: Float[Tensor, "token d"],
    W_enc: Float[Tensor, "*stack latent d"],
    b_enc: Float[Tensor, "*stack latent"],
    k: int,
    *,
    capacity: int | None = None,
) -> Codes:
    """The token * k largest pre-activations of the whole batch, ReLU'd; latents ascend within a token.

    Ties go to the lower token, then the lower latent. `capacity`: see the head of this file. Differentiable in x, W_enc
    and b_enc. Raises ValueError unless 1 <= k <= latent.
    """
    check_k(k, W_enc.shape[-2])
    _check_shapes(x, W_enc, b_enc)
    slots = _slots(capacity, W_enc)
    pre, indices, _ = _encode_batch_topk(x, *_stack(W_enc, b_enc), k, slots)
    pre, indices = _unstack((pre, indices), W_enc)
    return pre.relu(), indices


def encode_jumprelu(
    x: Float[Tensor, "token d"],
    W_enc: Float[Tensor, "*stack latent d"],
    b_enc: Float[Tensor, "*stack latent"],
    threshold: Float[Tensor, "*stack latent"],
    *,
    capacity: int | None = None,
) -> Codes:
    """Pre-activations above their latent's threshold, as they are; latents ascend within a token.

    A pre-activation that equals the threshold is cut. `capacity`: see the head of this file. Differentiable in x, W_enc
    and b_enc. Raises ValueError if shapes do not fit.
    """
    _check_shapes(x, W_enc, b_enc)
    if threshold.shape != b_enc.shape:
        raise ValueError(f"expected a threshold of shape {list(b_enc.shape)}; got {list(threshold.shape)}")
    stacked = (*_stack(W_enc, b_enc), threshold if threshold.ndim == 2 else threshold.unsqueeze(0))
    pre, indices, _ = _encode_threshold(x, *stacked, _slots(capacity, W_enc))
    return _unstack((pre, indices), W_enc)


def encode_relu(
    x: Float[Tensor, "token d"],
    W_enc: Float[Tensor, "*stack latent d"],
    b_enc: Float[Tensor, "*stack latent"],
    *,
    capacity: int | None = None,
) -> Codes:
    """Pre-activations above zero; latents ascend within a token. Otherwise like `encode_jumprelu`."""
    return encode_jumprelu(x, W_enc, b_enc, torch.zeros_like(b_enc), capacity=capacity)


def _check_shapes(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> None:
    if x.ndim != 2 or W_enc.ndim not in (2, 3) or x.shape[1] != W_enc.shape[-1] or b_enc.shape != W_enc.shape[:-1]:
        raise ValueError(
            "expected x [token d], W_enc [latent d] or [stack latent d] and b_enc like its rows; "
            f"got {list(x.shape)}, {list(W_enc.shape)}, {list(b_enc.shape)}"
        )
    if len({tensor.dtype == torch.float64 for tensor in (x, W_enc, b_enc)}) > 1:
        raise ValueError(
            f"expected x, W_enc and b_enc all in float64, or none; got {x.dtype}, {W_enc.dtype}, {b_enc.dtype}; convert one"
        )


def _stack(W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor]:
    return (W_enc, b_enc) if W_enc.ndim == 3 else (W_enc.unsqueeze(0), b_enc.unsqueeze(0))


def _unstack(codes: tuple[Tensor, Tensor], W_enc: Tensor) -> tuple[Tensor, Tensor]:
    return codes if W_enc.ndim == 3 else (codes[0].squeeze(0), codes[1].squeeze(0))


def _slots(capacity: int | None, W_enc: Tensor) -> int:
    if capacity is not None and capacity < 1:
        raise ValueError(
            f"expected a capacity of at least 1 slot a token; got {capacity}; leave it out for what is needed"
        )
    return -1 if capacity is None else min(capacity, W_enc.shape[-2])


@torch.library.custom_op(
    "unweave::encode_topk", mutates_args=(), schema="(Tensor x, Tensor W_enc, Tensor b_enc, int k) -> (Tensor, Tensor)"
)
def _encode_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return path_of("encode_topk", W_enc, W_enc.shape[1], k)(x, W_enc, b_enc, k)


@torch.library.custom_op(
    "unweave::encode_batch_topk",
    mutates_args=(),
    schema="(Tensor x, Tensor W_enc, Tensor b_enc, int k, int capacity) -> (Tensor, Tensor, Tensor)",
)
def _encode_batch_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    return path_of("encode_batch_topk", W_enc, W_enc.shape[1], k)(x, W_enc, b_enc, k, capacity)


@torch.library.custom_op(
    "unweave::encode_threshold",
    mutates_args=(),
    schema="(Tensor x, Tensor W_enc, Tensor b_enc, Tensor threshold, int capacity) -> (Tensor, Tensor, Tensor)",
)
def _encode_threshold(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    run = path_of("encode_threshold", W_enc, W_enc.shape[1], max(capacity, 0))
    return run(x, W_enc, b_enc, threshold, capacity)


@_encode_topk.register_fake
def _(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return _empty_codes(x, W_enc, k)


def _fake_padded(x: Tensor, W_enc: Tensor, b_enc: Tensor, rule: int | Tensor, capacity: int):
    slots = torch.library.get_ctx().new_dynamic_size() if capacity < 0 else capacity
    return *_empty_codes(x, W_enc, slots), x.new_empty(len(W_enc), len(x), dtype=torch.int32)


def _empty_codes(x: Tensor, W_enc: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    shape = (len(W_enc), len(x), slots)
    return at_least_float32(W_enc.new_empty(0)).new_empty(shape), x.new_empty(shape, dtype=torch.int64)


_encode_batch_topk.register_fake(_fake_padded)
_encode_threshold.register_fake(_fake_padded)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _backward(ctx, d_pre, *_):
    """Gradients of x, W_enc and b_enc by those of the kept pre-activations; empty slots pass none."""
    x, W_enc, b_enc, indices, *count = ctx.saved_tensors
    if count:
        d_pre = torch.where(torch.arange(indices.shape[2], device=x.device) < count[0][:, :, None], d_pre, 0)
    wants_x, wants_W, wants_b, *rest = ctx.needs_input_grad
    stack = range(len(W_enc))
    d_x = d_W = d_b = None
    if wants_x:
        d_x = torch.stack([_decode(d_pre[s], indices[s], W_enc[s]) for s in stack]).sum(0).to(x.dtype)
    if wants_W:
        d_W = torch.stack([_weight_gradient(d_pre[s], indices[s], x, W_enc.shape[1]) for s in stack]).to(W_enc.dtype)
    if wants_b:
        ones = d_pre.new_ones(len(x), 1)
        d_b = [_weight_gradient(d_pre[s], indices[s], ones, W_enc.shape[1]) for s in stack]
        d_b = torch.stack(d_b).squeeze(2).to(b_enc.dtype)
    return d_x, d_W, d_b, *(None for _ in rest)


for _op in (_encode_topk, _encode_batch_topk, _encode_threshold):
    _op.register_autograd(_backward, setup_context=_save)
