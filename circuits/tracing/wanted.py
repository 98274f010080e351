"""From asked-for targets to rows: where each is read, its cotangent, constant and value in the unmodified forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...saes.errors import UserError
from ...saes.sites import layer_of, resolve_site
from ..graph import Node
from ..targets import Direction, FeatureAt, Target, default_targets, given_targets, logit_rows
from .frozen import Norm
from .machine import Machine, read_norm
from .record import Targets
from .sources import Latents, Neurons, Rows
from .stations import NORMED, Place, Station, locate
from .sweep import Seed

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

READABLE = (Place.STREAM, Place.MIDDLE, *NORMED)


def direction_sites(model: TransformerBridge, targets: Sequence[Any] | None) -> list[str]:
    """Sites whose activations the asked-for directions need."""
    given = targets if isinstance(targets, Sequence) else ()
    return [resolve_site(model, target.site) for target in given if isinstance(target, Direction)]


def resolve(model: TransformerBridge, machine: Machine, targets: Sequence[Any] | None) -> list[Target]:
    """What was asked for, or the likeliest next tokens; sites and positions in their one spelling."""
    frozen = machine.frozen
    chosen = default_targets(model, frozen) if targets is None else given_targets(model, frozen, targets)
    return [_placed(model, machine, target) for target in chosen]


def _placed(model: TransformerBridge, machine: Machine, target: Target) -> Target:
    wish, tokens = target.wish, len(machine.frozen.tokens)
    if wish is None:
        return target
    position = wish.position + tokens if wish.position < 0 else wish.position
    if not 0 <= position < tokens:
        raise UserError(
            f"expected a position from {-tokens} to {tokens - 1}; got {wish.position}; the prompt is shorter"
        )
    return target._replace(wish=wish._replace(site=resolve_site(model, wish.site), position=position))


def seeds(
    model: TransformerBridge, machine: Machine, wanted: list[Target], centred: bool
) -> list[tuple[Seed, Targets]]:
    """Per station that is read: the weighted sum for the total sweep, and the rows for the recording pass."""
    groups = []
    logits = [index for index, target in enumerate(wanted) if target.ids]
    if logits:
        rows = Rows(*logit_rows(machine.frozen, [wanted[index] for index in logits], centred))
        last = len(machine.frozen.tokens) - 1
        station = Station(len(machine.frozen.blocks), Place.LOGITS)
        groups.append(_group(machine, wanted, logits, [last] * len(logits), station, machine.frozen.final, rows))
    for index, target in enumerate(wanted):
        if target.wish is not None:
            rows, station, norm = (
                _feature(machine, target.wish)
                if isinstance(target.wish, FeatureAt)
                else _direction(model, machine, target.wish)
            )
            groups.append(_group(machine, wanted, [index], [target.wish.position], station, norm, rows))
    return groups


def _group(
    machine: Machine,
    wanted: list[Target],
    indices: list[int],
    positions: list[int],
    station: Station,
    norm: Norm | None,
    rows: Rows,
) -> tuple[Seed, Targets]:
    weights = torch.tensor([wanted[index].weight for index in indices], dtype=torch.float64).to(rows.cotangent)
    cotangent = rows.cotangent.new_zeros(len(machine.frozen.tokens), rows.cotangent.shape[1])
    cotangent.index_add_(0, torch.tensor(positions, device=cotangent.device), weights[:, None] * rows.cotangent)

    def build(chosen: Tensor) -> Rows:
        return Rows(*(field[chosen.to(field.device)] for field in rows))

    seed = Seed(station, norm, cotangent, float(weights @ rows.constant))
    return seed, Targets(station, norm, torch.tensor(positions), build, torch.tensor(indices))


def _feature(machine: Machine, wish: FeatureAt) -> tuple[Rows, Station, Norm | None]:
    source = next((source for source in machine.sources if source.site == wish.site), None)
    width = 0 if source is None else len(source.W_enc if isinstance(source, Latents) else source.W_out)
    if source is None or not 0 <= wish.index < width:
        known = ", ".join(dict.fromkeys(source.site for source in machine.sources)) or "none"
        raise UserError(
            f"expected a feature of a traced dictionary or MLP (sites {known}); got {wish.index} of {wish.site}"
            f"{f', which has {width}' if width else ''}; pass its dictionary too"
        )
    position, index = torch.tensor([wish.position]), torch.tensor([wish.index])
    if isinstance(source, Neurons):
        return source.targets(position, index), source.read, source.norm
    row, bias = source.W_enc[index], source.b_enc[index]
    return Rows(row, bias, (row * source.x[position]).sum(1) + bias), source.read, source.norm


def _direction(model: TransformerBridge, machine: Machine, wish: Direction) -> tuple[Rows, Station, Norm | None]:
    frozen = machine.frozen
    _, station = locate(model, frozen.blocks, wish.site)
    vector, x = torch.as_tensor(wish.vector, dtype=frozen.embed.dtype).to(frozen.embed), frozen.at[wish.site]
    if station.place not in READABLE or vector.shape != x.shape[1:]:
        raise UserError(
            f"expected a direction [{x.shape[1]}] at a site of the residual stream or an MLP's input; got {list(vector.shape)} "
            f"at {wish.site}; choose another site"
        )
    if not (vector.isfinite().all() and math.isfinite(wish.bias)):
        raise UserError(f"expected a direction of finite numbers; got NaN or infinity in {wish.label!r}; check it")
    norm = read_norm(frozen, wish.site, station)
    bias = vector.new_tensor([wish.bias])
    return Rows(vector[None], bias, (x[wish.position] @ vector)[None] + bias), station, norm


def target_nodes(machine: Machine, wanted: list[Target], values: list[float]) -> list[Node]:
    """The nodes of the targets, last in causal order."""
    layers, last = len(machine.frozen.blocks), len(machine.frozen.tokens) - 1
    nodes = []
    for target, value in zip(wanted, values, strict=True):
        wish, total = target.wish, target.weight * value
        if wish is None:
            nodes.append(Node("logit", layers, last, target.ids[0], value, target.label, total, target.weight))
        else:
            layer, index = layer_of(wish.site) or 0, wish.index if isinstance(wish, FeatureAt) else -1
            nodes.append(
                Node("direction", layer, wish.position, index, value, target.label, total, target.weight, wish.site)
            )
    return nodes
