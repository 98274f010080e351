"""Sources: the active latents of a dictionary and the model's own neurons, as things written and as things read.

As *written*: a source of activation a adds the vector a * row at each station that it writes. As *read*, a target is
affine in what it reads; `Rows` holds cotangent, constant and the value from the unmodified forward pass, so that
cotangent . x + constant = value:

* latent: W_enc[j], b_enc[j], the pre-activation;                    * plain neuron: W_in[:, j], b_in[j], the pre-activation;
* gated neuron a = act(g) u: shares (s_g, s_u) of a are read through gate and up projection,
  s_g a / g W_gate[:, j] + s_u a / u W_in[:, j], whose row sums to the activation a itself. `half` takes ½ and ½
  (act(g)/g held), `gate` 0 and 1 (act(g) held), `rows` ½ and ½ with a row of their own for g and for u.

`pull` is the same maps chained: attribution that arrives at each source goes on to what it reads in proportion value / target
value (for a ReLU its derivative, for a GELU act(pre)/pre), so that total attribution is conserved on the way down.

A position 0 is nobody's: the attention sink's norms are hundreds of times the others', and dictionaries leave it out.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..parts import Part
from .frozen import Block, FrozenPass, Norm, weights
from .stations import Station

NEURON_WEIGHTS = ("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out")
NeuronRule = Literal["half", "gate", "rows", "none"]
Factor = Literal["whole", "gate", "up"]


class Rows(NamedTuple):
    """Targets read at one station: affine functionals of what stands there, and their values in the forward pass."""

    cotangent: Float[Tensor, "row d"]
    constant: Float[Tensor, "row"]
    value: Float[Tensor, "row"]


class Pull(NamedTuple):
    """Attribution sent on from sources to what they read."""

    cotangent: Float[Tensor, "token d"]
    constant: Float[Tensor, ""]


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 where the denominator is 0 (the source is then 0 as well)."""
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return torch.where(denominator == 0, torch.zeros_like(numerator), numerator / safe)


class Neurons:
    """The model's own MLP neurons; slot j of a position is neuron j."""

    kind = "neuron"

    def __init__(self, block: Block, read: Station, write: Station, site: str, rule: NeuronRule):
        seen, own = block.seen, weights(block.mlp, *NEURON_WEIGHTS)
        self.read, self.norm, self.site, self.writes, self.rule = read, block.mlp_norm, site, (write,), rule
        self.W_in, self.W_gate, self.W_out = own["W_in"], own.get("W_gate"), own["W_out"]
        self.b_in, self.b_gate, self.b_out = own.get("b_in"), own.get("b_gate"), own.get("b_out")
        self.values = seen["post"].clone()
        self.values[0] = 0
        self.post, self.pre, self.up = seen["post"], seen["pre"], seen.get("pre_linear")

    @property
    def is_gated(self) -> bool:
        """True when an activation is the product of a gate and an up projection."""
        return self.W_gate is not None and self.up is not None

    @property
    def is_split(self) -> bool:
        """True when a neuron's gate and up projection have rows of their own."""
        return self.rule == "rows" and self.is_gated

    @property
    def label(self) -> str:
        """What nodes are called, before their index."""
        return f"L{self.read.layer} neuron"

    def latent(self, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """Which feature sits in each slot."""
        return slots

    def vectors(
        self, station: Station, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"]
    ) -> Float[Tensor, "row d"]:
        """value * row: what each chosen source writes."""
        return self.values[positions, slots, None] * self.W_out[slots]

    def write(self, station: Station, values: Float[Tensor, "token slot"]) -> Float[Tensor, "token d"]:
        """The sum of all sources with `values` in their slots."""
        return values @ self.W_out

    def constant(self, station: Station) -> Float[Tensor, "token d"]:
        """What is added whatever is active."""
        out = self.values.new_zeros(len(self.values), self.W_out.shape[1])
        return out if self.b_out is None else out + self.b_out

    def attribution(self, station: Station, g: Float[Tensor, "token d"]) -> Float[Tensor, "token slot"]:
        """value * (g . row) of every source, for one cotangent g at the station."""
        return self.values * (g @ self.W_out.T)

    def targets(self, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"], factor: Factor = "whole") -> Rows:
        """The chosen neurons as targets, or one factor of them."""
        if not self.is_gated or factor == "up":
            value = self.up if self.is_gated and self.up is not None else self.pre
            return _row(self.W_in, self.b_in, value, positions, slots)
        if factor == "gate":
            assert self.W_gate is not None
            return _row(self.W_gate, self.b_gate, self.pre, positions, slots)
        gate, up = (self.targets(positions, slots, part) for part in ("gate", "up"))
        value = self.post[positions, slots]
        shares = [share * _ratio(value, rows.value) for share, rows in zip(self._shares, (gate, up), strict=True)]
        cotangent = shares[0][:, None] * gate.cotangent + shares[1][:, None] * up.cotangent
        return Rows(cotangent, shares[0] * gate.constant + shares[1] * up.constant, value)

    @property
    def _shares(self) -> tuple[float, float]:
        return (0.0, 1.0) if self.rule == "gate" else (0.5, 0.5)

    def pull(self, attribution: Float[Tensor, "token slot"]) -> Pull:
        """Where the sources' attributions come from: a cotangent at what they read, and what their constants hold."""
        if self.W_gate is None or self.up is None:
            parts = [(_ratio(attribution, self.pre), self.W_in, self.b_in)]
        else:
            factors = ((self.pre, self.W_gate, self.b_gate), (self.up, self.W_in, self.b_in))
            parts = [
                (share * _ratio(attribution, value), weight, bias)
                for share, (value, weight, bias) in zip(self._shares, factors, strict=True)
                if share
            ]
        cotangent = torch.stack([share @ weight.T for share, weight, _ in parts]).sum(0)
        constants = [(share @ bias).sum() for share, _, bias in parts if bias is not None]
        return Pull(cotangent, torch.stack(constants).sum() if constants else attribution.new_zeros(()))


def _row(weight: Tensor, bias: Tensor | None, values: Tensor, positions: Tensor, slots: Tensor) -> Rows:
    value = values[positions, slots]
    return Rows(weight.T[slots], torch.zeros_like(value) if bias is None else bias[slots], value)


class Latents:
    """The active latents of a Part; slot s of a position is the s-th latent that its codes name."""

    kind = "latent"

    def __init__(self, part: Part, frozen: FrozenPass, read: Station, norm: Norm | None, writes: dict[Station, str]):
        x = frozen.at[part.read]
        self.part, self.read, self.norm, self.site, self.writes = part, read, norm, part.read, tuple(writes)
        self.W_enc, self.b_enc = part.W_enc.detach().to(x), part.b_enc.detach().to(x)
        self.W_dec = {station: part.W_dec[site].detach().to(x) for station, site in writes.items()}
        self.b_dec = {
            station: part.b_dec[site].detach().to(x) for station, site in writes.items() if site in part.b_dec
        }
        self.W_skip = None if part.W_skip is None else part.W_skip.detach().to(x)
        self.live = live_positions(part, frozen)
        codes = part.encode(x.to(part.W_enc.dtype))
        self.indices = codes.indices.to(x.device)
        self.values = codes.values.detach().to(x) * self.live[:, None]
        self.pre = self._rows(self.W_enc, x) + self.b_enc[self.indices]
        self.x = x

    @property
    def label(self) -> str:
        """What nodes are called, before their index."""
        suffix = self.site.split(".", 2)[-1].removeprefix("hook_").replace(".hook_", " ")
        return f"L{self.part.layer} latent" if suffix == "mlp in" else f"L{self.part.layer} {suffix} latent"

    def _rows(self, weight: Float[Tensor, "latent d"], x: Float[Tensor, "token d"]) -> Float[Tensor, "token slot"]:
        """x . weight[index] of every slot, a token at a time: no [token slot d]."""
        return torch.stack([weight[index] @ row for index, row in zip(self.indices, x, strict=True)])

    def latent(self, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """Which latent sits in each slot."""
        return self.indices[positions, slots]

    def vectors(
        self, station: Station, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"]
    ) -> Float[Tensor, "row d"]:
        """value * row of W_dec: what each chosen source writes at the station."""
        return self.values[positions, slots, None] * self.W_dec[station][self.latent(positions, slots)]

    def write(self, station: Station, values: Float[Tensor, "token slot"]) -> Float[Tensor, "token d"]:
        """The sum of all sources with `values` in their slots."""
        W_dec = self.W_dec[station]
        return torch.stack([value @ W_dec[index] for value, index in zip(values, self.indices, strict=True)])

    def constant(self, station: Station) -> Float[Tensor, "token d"]:
        """What is added whatever is active: b_dec, and the read norm's bias through the skip path."""
        out = self.values.new_zeros(len(self.values), self.W_dec[station].shape[1])
        if station in self.b_dec:
            out = out + self.live[:, None] * self.b_dec[station]
        if self.W_skip is not None and station == self.skip_station and self.norm and self.norm.bias is not None:
            out = out + self.live[:, None] * (self.W_skip @ self.norm.bias)
        return out

    @property
    def skip_station(self) -> Station | None:
        """Where the skip path is added: the first station written; None without one."""
        return None if self.W_skip is None else min(self.writes)

    def reconstruction(self, station: Station) -> Float[Tensor, "token d"]:
        """What the whole part says stands there: latents, b_dec and the skip path."""
        out = self.write(station, self.values)
        if station in self.b_dec:
            out = out + self.live[:, None] * self.b_dec[station]
        if self.W_skip is not None and station == self.skip_station:
            out = out + self.live[:, None] * (self.x @ self.W_skip.T)
        return out

    def skip_adjoint(self, g: Float[Tensor, "*batch token d"]) -> Float[Tensor, "*batch token d_in"]:
        """Cotangent of the skip path's input, where the part reconstructs."""
        assert self.W_skip is not None
        return (g @ self.W_skip) * self.live[: g.shape[-2], None]

    def attribution(self, station: Station, g: Float[Tensor, "token d"]) -> Float[Tensor, "token slot"]:
        """value * (g . row) of every source, for one cotangent g at the station."""
        return self.values * self._rows(self.W_dec[station], g)

    def targets(self, positions: Int[Tensor, "row"], slots: Int[Tensor, "row"], factor: Factor = "whole") -> Rows:
        """The chosen latents as targets."""
        latent = self.latent(positions, slots)
        return Rows(self.W_enc[latent], self.b_enc[latent], self.pre[positions, slots])

    def pull(self, attribution: Float[Tensor, "token slot"]) -> Pull:
        """Where the sources' attributions come from: a cotangent at what they read, and what their constants hold."""
        shares = _ratio(attribution, self.pre)
        cotangent = torch.stack([share @ self.W_enc[index] for share, index in zip(shares, self.indices, strict=True)])
        return Pull(cotangent, (shares * self.b_enc[self.indices]).sum())


Source = Neurons | Latents


def live_positions(part: Part, frozen: FrozenPass) -> Bool[Tensor, "token"]:
    """Positions at which a part speaks: its training rule keeps them, and never position 0."""
    positions = torch.arange(len(frozen.tokens), device=frozen.embed.device)
    known = {site: frozen.at[site] for site in (part.read, *part.W_dec)}
    return part.kept(positions, known, frozen.tokens) & (positions > 0)


def is_sum_of_neurons(block: Block) -> bool:
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
