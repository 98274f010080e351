"""What one MLP writes, as a sum of sources, and what each source reads.

A layer's MLP output is taken apart at `mlp.hook_out` into vectors that add up to it exactly:

    mlp_out[p] = sum_slots value * row  +  W_skip mlp_in[p]  +  constant  +  error[p]  (+ first[0])

* `Neurons` (no dictionary given): the model's own neurons; value a_j, row W_out[j], constant b_out, no error.
* `Latents` (a transcoder given): active latents; value, row W_dec[j], constant b_dec, optionally a linear skip path, and
  the reconstruction error. Positions that the dictionary's training rule excluded carry the whole output as error.

At position 0 (the attention sink, whose norms are hundreds of times the others') the whole output is the leaf `first`.

As a *target* a source is affine in mlp_in; `Rows` holds cotangent, constant and the value from the unmodified forward pass,
so that cotangent . mlp_in + constant = value:

* latent: W_enc[j], b_enc[j], the pre-activation;                    * plain neuron: W_in[:, j], b_in[j], the pre-activation;
* gated neuron a = act(g) u, with act(g)/g held: the half rule ½ act(g)/g (u W_gate[:, j] + g W_in[:, j])
  = ½ a (W_gate[:, j] / g + W_in[:, j] / u), whose row sums to the activation a itself.

`pull` is the same maps chained: attribution that arrives at each source goes on to mlp_in in proportion value / target
value (for a ReLU its derivative, for a GELU act(pre)/pre), so that total attribution is conserved on the way down.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..saes.errors import UserError
from .frozen import Block, weights

NEURON_WEIGHTS = ("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out")


class Rows(NamedTuple):
    """Targets of one layer: affine functionals of mlp_in at their positions, and their values in the forward pass."""

    cotangent: Float[Tensor, "row d"]
    constant: Float[Tensor, "row"]
    value: Float[Tensor, "row"]


class Leaves(NamedTuple):
    """What a layer writes beside its sources, as vectors at mlp.hook_out; None where there is nothing."""

    first: Float[Tensor, "token d"]
    error: Float[Tensor, "token d"] | None
    constant: Float[Tensor, "token d"]


class Pull(NamedTuple):
    """Attribution sent on from a layer's sources to what they read."""

    cotangent: Float[Tensor, "token d"]
    constant: Float[Tensor, ""]


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 where the denominator is 0 (the source is then 0 as well)."""
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return torch.where(denominator == 0, torch.zeros_like(numerator), numerator / safe)


def _first(block: Block) -> Float[Tensor, "token d"]:
    first = torch.zeros_like(block.seen["mlp_out"])
    first[0] = block.seen["mlp_out"][0]
    return first


class Neurons:
    """The model's own MLP neurons; slot j of a position is neuron j."""

    kind = "neuron"

    def __init__(self, block: Block):
        seen, own = block.seen, weights(block.mlp, *NEURON_WEIGHTS)
        self.W_in, self.W_gate, self.W_out = own["W_in"], own.get("W_gate"), own["W_out"]
        self.b_in, self.b_gate, self.b_out = own.get("b_in"), own.get("b_gate"), own.get("b_out")
        self.values = seen["post"].clone()
        self.values[0] = 0
        self.post, self.pre, self.up = seen["post"], seen["pre"], seen.get("pre_linear")
        constant = torch.zeros_like(seen["mlp_out"])
        if self.b_out is not None:
            constant[1:] = self.b_out
        self.leaves = Leaves(_first(block), None, constant)

    def latent(self, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """Which feature sits in each slot."""
        return slots

    def sources(self, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"]) -> Float[Tensor, "row d"]:
        """value * row of W_out: what each chosen source writes at mlp.hook_out."""
        return self.values[positions, slots, None] * self.W_out[slots]

    def write(self, values: Float[Tensor, "token slot"]) -> Float[Tensor, "token d"]:
        """The sum of all sources with `values` in their slots."""
        return values @ self.W_out

    def attribution(self, g: Float[Tensor, "token d"]) -> Float[Tensor, "token slot"]:
        """value * (g . row) of every source, for one cotangent g at mlp.hook_out."""
        return self.values * (g @ self.W_out.T)

    def rows(self, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"]) -> Rows:
        """The chosen neurons as targets."""
        if self.W_gate is None or self.up is None:
            pre = self.pre[positions, slots]
            constant = torch.zeros_like(pre) if self.b_in is None else self.b_in[slots]
            return Rows(self.W_in.T[slots], constant, pre)
        value = self.post[positions, slots]
        gate = _ratio(value, self.pre[positions, slots]) / 2
        up = _ratio(value, self.up[positions, slots]) / 2
        constant = torch.zeros_like(value)
        for share, bias in ((gate, self.b_gate), (up, self.b_in)):
            constant = constant if bias is None else constant + share * bias[slots]
        return Rows(gate[:, None] * self.W_gate.T[slots] + up[:, None] * self.W_in.T[slots], constant, value)

    def pull(self, attribution: Float[Tensor, "token slot"]) -> Pull:
        """Where the sources' attributions come from: a cotangent at mlp_in, and what their constants hold."""
        if self.W_gate is None or self.up is None:
            parts = [(_ratio(attribution, self.pre), self.W_in, self.b_in)]
        else:
            parts = [
                (_ratio(attribution, self.pre) / 2, self.W_gate, self.b_gate),
                (_ratio(attribution, self.up) / 2, self.W_in, self.b_in),
            ]
        cotangent = torch.stack([share @ weight.T for share, weight, _ in parts]).sum(0)
        constants = [(share @ bias).sum() for share, _, bias in parts if bias is not None]
        return Pull(cotangent, torch.stack(constants).sum() if constants else attribution.new_zeros(()))

    def skip_adjoint(self, g: Float[Tensor, "*batch token d"]) -> None:
        """Neurons have no path around them."""


class Latents:
    """The active latents of a transcoder; slot s of a position is the s-th latent that its codes name."""

    kind = "latent"

    def __init__(self, block: Block, dictionary: Any):
        x, y = block.seen["mlp_in"], block.seen["mlp_out"]
        self.W_enc, self.b_enc, self.W_dec = (
            w.detach().to(x) for w in (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec)
        )
        self.W_skip = None if dictionary.W_skip is None else dictionary.W_skip.detach().to(x)
        b_dec = dictionary.b_dec.detach().to(x)
        self.live = live_positions(dictionary, block)
        codes = dictionary.encode(x.to(dictionary.W_enc.dtype))
        self.indices = codes.indices.to(x.device)
        self.values = codes.values.detach().to(x) * self.live[:, None]
        self.pre = (
            torch.stack([self.W_enc[index] @ row for index, row in zip(self.indices, x, strict=True)])
            + self.b_enc[self.indices]
        )
        constant = self.live[:, None] * b_dec
        if self.W_skip is not None and block.mlp_norm is not None and block.mlp_norm.bias is not None:
            constant = constant + self.live[:, None] * (self.W_skip @ block.mlp_norm.bias)
        reconstruction = self.write(self.values) + self.live[:, None] * b_dec
        if self.W_skip is not None:
            reconstruction = reconstruction + self.live[:, None] * (x @ self.W_skip.T)
        error = y - reconstruction
        error[0] = 0
        self.leaves = Leaves(_first(block), error, constant)

    def latent(self, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """Which latent sits in each slot."""
        return self.indices[positions, slots]

    def sources(self, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"]) -> Float[Tensor, "row d"]:
        """value * row of W_dec: what each chosen source writes at mlp.hook_out."""
        return self.values[positions, slots, None] * self.W_dec[self.latent(positions, slots)]

    def write(self, values: Float[Tensor, "token slot"]) -> Float[Tensor, "token d"]:
        """The sum of all sources with `values` in their slots."""
        return torch.stack([value @ self.W_dec[index] for value, index in zip(values, self.indices, strict=True)])

    def attribution(self, g: Float[Tensor, "token d"]) -> Float[Tensor, "token slot"]:
        """value * (g . row) of every source, for one cotangent g at mlp.hook_out."""
        return self.values * torch.stack([self.W_dec[index] @ row for index, row in zip(self.indices, g, strict=True)])

    def rows(self, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"]) -> Rows:
        """The chosen latents as targets."""
        latent = self.latent(positions, slots)
        return Rows(self.W_enc[latent], self.b_enc[latent], self.pre[positions, slots])

    def pull(self, attribution: Float[Tensor, "token slot"]) -> Pull:
        """Where the sources' attributions come from: a cotangent at mlp_in, and what their constants hold."""
        shares = _ratio(attribution, self.pre)
        cotangent = torch.stack([share @ self.W_enc[index] for share, index in zip(shares, self.indices, strict=True)])
        return Pull(cotangent, (shares * self.b_enc[self.indices]).sum())

    def skip_adjoint(self, g: Float[Tensor, "*batch token d"]) -> Float[Tensor, "*batch token d"] | None:
        """Cotangent at mlp_in of the skip path, at the positions that the dictionary reconstructs; None without one."""
        return None if self.W_skip is None else (g @ self.W_skip) * self.live[: g.shape[-2], None]


Source = Neurons | Latents


def live_positions(dictionary: Any, block: Block) -> Bool[Tensor, "token"]:
    """Positions at which the dictionary speaks for the MLP: its training rule keeps them, and never position 0."""
    x, y = block.seen["mlp_in"], block.seen["mlp_out"]
    positions = torch.arange(len(x), device=x.device)
    kept = dictionary.kept(positions, {dictionary.read: x, dictionary.write: y})
    return kept & (positions > 0)


def build_source(block: Block, dictionary: Any | None, layer: int) -> Source | None:
    """The layer's source: None without an MLP. UserError when no dictionary is given and the MLP is no sum of neurons."""
    if block.mlp is None:
        return None
    if dictionary is not None:
        return Latents(block, dictionary)
    if not _is_sum_of_neurons(block):
        raise UserError(
            f"expected an MLP whose output is a sum of neurons in block {layer}; got {type(block.mlp).__name__}, which is not; "
            f"give a transcoder that reads blocks.{layer}.mlp.hook_in and writes blocks.{layer}.mlp.hook_out"
        )
    return Neurons(block)


def _is_sum_of_neurons(block: Block) -> bool:
    """Do the accessors give the neurons: W_out rows that add up to the output, W_in and W_gate that give their inputs?"""
    seen, own = block.seen, weights(block.mlp, *NEURON_WEIGHTS)
    if not {"W_in", "W_out"} <= own.keys() or not {"pre", "post"} <= seen.keys():
        return False
    maps = [("post", "W_out", "b_out", "mlp_out")]
    if "W_gate" in own:
        maps += [("mlp_in", "W_gate", "b_gate", "pre"), ("mlp_in", "W_in", "b_in", "pre_linear")]
    else:
        maps += [("mlp_in", "W_in", "b_in", "pre")]
    tolerance = 1e-9 if seen["mlp_out"].dtype == torch.float64 else 1e-4
    for read, weight, bias, written in maps:
        x, truth = seen[read], seen.get(written)
        if truth is None or (x.shape[-1], truth.shape[-1]) != own[weight].shape:
            return False
        ours = x @ own[weight] + own.get(bias, torch.zeros_like(truth[0]))
        if not (ours - truth).norm() <= tolerance * truth.norm():
            return False
    return True
