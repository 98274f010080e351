"""The definitions: every op in plain torch, as short as it can be said. Slow and dense; tests and benchmarks compare with it.

    decode           out[t]    = sum_j values[t, j] W[indices[t, j]]
    contract         out[t, j] = <rows[t], W[indices[t, j]]>
    weight_gradient  out[i]    = sum over slots (t, j) with indices[t, j] = i of values[t, j] rows[t]
    sae_gradient     the gradients of both sides of a dictionary, made of these
    topk             of each row the k pairs (pre, latent) that come first by value descending, then latent ascending
    encode_*         pre[s, t, i] = <x[t], W_enc[s, i]> + b_enc[s, i], of which are kept
      topk             the k first of each token, largest first
      threshold        what is not <= the latent's threshold, latents ascending
      batch_topk       the token * k first of the batch (ties: lower token, then lower latent), latents ascending
    segment          of each latent's slots with a value: how many, how many in each bin, and the largest values' tokens

The first three are each other's derivatives. NaN counts as the largest value, and is above any threshold, so it shows.
Sums are in float32, or float64 for float64 input. `s` runs over dictionaries that share their input. Where the number
kept per token varies, codes are padded with (0, latent 0) to `capacity` slots, or if that is -1 to as many as are needed;
a token that needs more comes out as NaN throughout, never cut, and `count` tells how many it needs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or untouched if it is float32 or float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def check_indices(indices: Tensor, latents: int) -> None:
    """ValueError unless every index names a latent; on the CPU only, since on a device it would synchronise."""
    if indices.device.type == "cpu" and indices.numel() and not (0 <= indices.min() and indices.max() < latents):
        raise ValueError(f"expected latent indices in [0, {latents}); got {int(indices.min())} to {int(indices.max())}")


def decode(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """Codes times matrix: `[token d]`."""
    W = at_least_float32(W)
    return (dense(at_least_float32(values), indices, len(W)).to(W.dtype) @ W).to(values.dtype)


def contract(rows: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """Chosen entries of `rows @ W.T`: `[token k]`."""
    check_indices(indices, len(W))
    rows, W = at_least_float32(rows), at_least_float32(W)
    return (rows @ W.T).gather(1, indices.long())


def weight_gradient(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    """Transposed codes times rows: `[latent d]`."""
    rows = at_least_float32(rows)
    return dense(at_least_float32(values), indices, latents).to(rows.dtype).T @ rows


def sae_gradient(
    g: Tensor, x: Tensor, values: Tensor, indices: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`[token k]`, `[latent d]`, `[latent d_in]` and `[latent]`."""
    d_pre = contract(g, indices, W_dec) * (values != 0)
    ones = d_pre.new_ones(len(x), 1)
    of_W_dec, of_W_enc, of_b_enc = (
        weight_gradient(weights, indices, rows, len(W_dec))
        for weights, rows in ((values, g), (d_pre, x), (d_pre, ones))
    )
    return d_pre, of_W_dec, of_W_enc, of_b_enc.squeeze(1)


def dense(values: Tensor, indices: Tensor, latents: int) -> Tensor:
    """Codes as a `[token latent]` matrix; a repeated index counts twice."""
    check_indices(indices, latents)
    return values.new_zeros(len(values), latents).scatter_add(1, indices.long(), values)


def topk(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, sorted."""
    values, indices = pre.sort(dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()


def encode_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`[s token k]` pre-activations and latents."""
    kept = [topk(pre, k) for pre in preactivations(x, W_enc, b_enc)]
    return torch.stack([values for values, _ in kept]), torch.stack([indices for _, indices in kept])


def encode_threshold(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`[s token capacity]` pre-activations and latents, and how many `[s token]`."""
    pre = preactivations(x, W_enc, b_enc)
    return compact(pre, ~(pre <= threshold[:, None]), capacity)


def encode_batch_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """`[s token capacity]` pre-activations and latents, and how many `[s token]`."""
    pre = preactivations(x, W_enc, b_enc)
    order = pre.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, : len(x) * k]
    keep = torch.zeros_like(pre, dtype=torch.bool).flatten(1).scatter(1, order, True).view_as(pre)
    return compact(pre, keep, capacity)


def preactivations(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """`[s token latent]`."""
    x, W_enc, b_enc = at_least_float32(x), at_least_float32(W_enc), at_least_float32(b_enc)
    return torch.stack([torch.addmm(b, x, W.T) for W, b in zip(W_enc, b_enc, strict=True)])


def compact(pre: Tensor, keep: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is kept, moved to the left in order; `[... token capacity]` twice and the counts."""
    count = keep.sum(-1)
    widest = int(count.max()) if capacity < 0 and count.numel() else capacity
    slots = min(max(widest, 1), pre.shape[-1])
    indices = (~keep).sort(dim=-1, stable=True).indices[..., :slots]
    is_kept = keep.gather(-1, indices)
    values = torch.where(is_kept, pre.gather(-1, indices), 0)
    values = torch.where((count > slots)[..., None], torch.nan, values)
    return values, torch.where(is_kept, indices, 0), count.int()


def segment(
    values: Tensor, indices: Tensor, latents: int, edges: Tensor, examples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Counts `[latent]`, histogram `[latent bin]`, values and tokens of the top examples `[latent example]`."""
    check_indices(indices, latents)
    bins = len(edges) - 1
    token, slot = (values != 0).nonzero(as_tuple=True)
    value, latent = values[token, slot], indices[token, slot]
    place = (~(value[:, None] < edges[1:-1])).sum(1)
    counts = torch.bincount(latent, minlength=latents)
    histogram = torch.bincount(latent * bins + place, minlength=latents * bins).view(latents, bins).int()
    order = value.sort(descending=True, stable=True).indices
    order = order[latent[order].sort(stable=True).indices]
    latent = latent[order]
    rank = torch.arange(len(order), device=values.device) - (counts.cumsum(0) - counts)[latent]
    best = rank < examples
    top_values = values.new_zeros(latents, examples)
    top_tokens = indices.new_full((latents, examples), -1, dtype=torch.int64)
    top_values[latent[best], rank[best]] = value[order][best]
    top_tokens[latent[best], rank[best]] = token[order][best]
    return counts, histogram, top_values, top_tokens
