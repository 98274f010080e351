"""Edits: what is changed in the model, as data, before any hook.

An `Edit` names features, an action and places. Every action is an affine map of the activation a that the feature has in
the run that is being edited, a' = scale a + shift:

    ablate  0            scale  c a            set  v            steer  a + v  (v in units of activation)
    swap    v, another activation of the unmodified model: two features exchange theirs, or each takes its own of another prompt

so that edits of one feature compose, and repeating an ablation does nothing. Places are the nodes' own positions, or
`positions`: ints (negative: from the prompt's end) or slices; `slice(p, None)` is "from p on" and goes on in generated text.

`Catalogue` knows the features of one model: neurons by block, latents by the site that their dictionary reads (a graph's
node carries it as `site`; nodes of older graphs read mlp.hook_in). Only neurons and latents can be changed; leaves are refused.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ...saes.models import model_info
from ...saes.sites import resolve_site
from ..graph import Graph, Node
from ..parts import Part, parts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ACTIONS = ("ablate", "scale", "set", "steer", "swap")
FOREVER = sys.maxsize


class Edit(NamedTuple):
    """Change `nodes` (one node or several) by `action`; `value` is a number, or one per node, or for swap a prompt or None.

    `positions` None means each node's own; otherwise an int, a slice, or a list of ints.
    """

    nodes: Any
    action: str = "ablate"
    value: Any = None
    positions: Any = None


class Key(NamedTuple):
    """Where a feature's activation is made: ("neuron", blocks.L.mlp.hook_post) or ("latent", the site its part reads)."""

    kind: str
    site: str


class Change(NamedTuple):
    """One feature in one row of a batch: a' = scale a + shift at the positions in `spans`."""

    row: int
    key: Key
    index: int
    scale: float
    shift: float
    spans: tuple[range, ...]


class Columns(NamedTuple):
    """All changes of one key in one pass, every (row, position, index) once; positions count from the pass's first token."""

    row: Int[Tensor, "change"]
    position: Int[Tensor, "change"]
    index: Int[Tensor, "change"]
    scale: Float[Tensor, "change"]
    shift: Float[Tensor, "change"]

    def new(self, activation: Float[Tensor, "change"]) -> Float[Tensor, "change"]:
        """The edited activation."""
        return self.scale.to(activation) * activation + self.shift.to(activation)

    def delta(self, activation: Float[Tensor, "change"]) -> Float[Tensor, "change"]:
        """The edited activation minus the given one."""
        return (self.scale - 1).to(activation) * activation + self.shift.to(activation)


class Plan:
    """The changes of a batch of `rows` rows."""

    def __init__(self, rows: int, changes: Sequence[Change]):
        self.rows, self.changes = rows, tuple(changes)
        self.keys = tuple(dict.fromkeys(change.key for change in self.changes))

    def at(self, key: Key, start: int, stop: int, device: torch.device) -> Columns:
        """The changes of `key` at the tokens start .. stop - 1; edits of one place are composed in their order."""
        maps: dict[tuple[int, int, int], tuple[float, float]] = {}
        for change in self.changes:
            if change.key == key:
                for span in change.spans:
                    for position in range(max(span.start, start), min(span.stop, stop)):
                        place = (change.row, position - start, change.index)
                        scale, shift = maps.get(place, (1.0, 0.0))
                        maps[place] = (change.scale * scale, change.scale * shift + change.shift)
        places = torch.tensor(list(maps), dtype=torch.int64, device=device).reshape(-1, 3).unbind(1)
        amounts = torch.tensor(list(maps.values()), dtype=torch.float64, device=device).reshape(-1, 2).unbind(1)
        return Columns(*places, *amounts)


class Catalogue:
    """The features of a model: its neurons, and the latents of `dictionaries`; canonical site names.

    Raises UserError for a dictionary of another model, of a site that this model lacks, or two that read one site.
    """

    def __init__(self, model: TransformerBridge, dictionaries: Any = None):
        self.model, self._sites = model, dict[str, str]()
        self.parts: dict[str, Part] = {}
        mine = model_info(model)
        for part in parts(dictionaries or []):
            known = (part.model or {}).get("fingerprint")
            if known is not None and known != mine.fingerprint:
                raise UserError(
                    f"expected dictionaries of {mine.name} (weights {mine.fingerprint[:8]}); got one trained on "
                    f"{(part.model or {}).get('name')} (weights {known[:8]}); train or load one for this model"
                )
            read = self.site(part.read)
            if read in self.parts:
                raise UserError(f"expected one dictionary per site that is read; got two for {read}; leave one out")
            self.parts[read] = part

    def site(self, name: str) -> str:
        """The canonical spelling of a site."""
        if name not in self._sites:
            self._sites[name] = resolve_site(self.model, name)
        return self._sites[name]

    def written(self, part: Part) -> dict[str, Float[Tensor, "latent d"]]:
        """Canonical written site -> decoder of a part."""
        return {self.site(name): W_dec for name, W_dec in part.W_dec.items()}

    def key(self, node: Node) -> Key:
        """Where a feature is made; UserError for a node that is no feature of this model and these dictionaries."""
        if not node.is_feature:
            raise UserError(
                f"expected neurons or latents to change; got the {node.kind} node ({node.label}); pick nodes with is_feature"
            )
        if not 0 <= node.layer < self.model.cfg.n_layers or node.position < 0:
            raise UserError(
                f"expected features inside the prompt and the model; got {node.label} at position {node.position}; "
                "is it another prompt's?"
            )
        key = Key(node.kind, f"blocks.{node.layer}.mlp.hook_post")
        if node.kind == "latent":
            key = Key("latent", self.site(node.site or f"blocks.{node.layer}.mlp.hook_in"))
            if key.site not in self.parts:
                raise UserError(
                    f"expected the dictionary of block {node.layer} that reads {key.site} for {node.label}; got none; "
                    "pass it in dictionaries"
                )
        width = self.width(key)
        if node.index < 0:
            raise UserError(
                f"expected one feature; got {node.label!r}, a supernode; change its members in the graph before collapse()"
            )
        if not 0 <= node.index < width:
            raise UserError(
                f"expected a {node.kind} index below {width} in block {node.layer}; got {node.index}; is it another model's?"
            )
        return key

    def width(self, key: Key) -> int:
        """How many features are made there."""
        return self.parts[key.site].latents if key.kind == "latent" else len(self.W_out(key))

    def W_out(self, key: Key) -> Float[Tensor, "neuron d"]:
        """What the neurons of a key write at their block's mlp.hook_out."""
        W_out = getattr(self.model.blocks[int(key.site.split(".")[1])].mlp, "W_out", None)
        if W_out is None:
            raise UserError(
                f"expected an MLP made of neurons at {key.site}; got one without W_out; give a dictionary for it"
            )
        return W_out.detach()


def supernode(graph: Graph, label: str) -> list[Node]:
    """The nodes of the group of that label in graph.metadata["supernodes"]; UserError when there is none."""
    groups = {group[0]: group[1:] for group in graph.metadata.get("supernodes", [])}
    if label not in groups:
        raise UserError(
            f"expected one of the graph's supernodes ({', '.join(groups) or 'it has none'}); got {label!r}; group nodes first"
        )
    return [graph.nodes[int(i)] for i in groups[label]]


def edit_list(edits: Edit | Iterable[Edit]) -> list[Edit]:
    """One edit or several, checked."""
    edits = [edits] if isinstance(edits, Edit) else list(edits)
    for edit in edits:
        if not isinstance(edit, Edit) or edit.action not in ACTIONS:
            raise UserError(
                f"expected edits Edit(nodes, action, value) with an action of {', '.join(ACTIONS)}; got {edit!r}"
            )
    return edits


def nodes_of(edit: Edit) -> list[Node]:
    """The nodes of an edit as a list (a Node is itself a tuple)."""
    return [edit.nodes] if isinstance(edit.nodes, Node) else list(edit.nodes)


def changes(catalogue: Catalogue, edit: Edit, row: int, length: int, swapped: Sequence[float] = ()) -> list[Change]:
    """One edit as changes of one row, for a prompt of `length` tokens; `swapped`: the activations that a swap puts in."""
    found = []
    nodes = nodes_of(edit)
    for node, (scale, shift) in zip(nodes, _maps(edit, nodes, swapped), strict=True):
        key = catalogue.key(node)
        if node.position >= length and edit.positions is None:
            raise UserError(
                f"expected features inside the prompt and the model; got {node.label} at position {node.position} of "
                f"{length}; is it another prompt's?"
            )
        places = node.position if edit.positions is None else edit.positions
        found.append(Change(row, key, node.index, scale, shift, _spans(places, length)))
    return found


def _maps(edit: Edit, nodes: list[Node], swapped: Sequence[float]) -> list[tuple[float, float]]:
    if edit.action == "ablate":
        return [(0.0, 0.0)] * len(nodes)
    value = list(swapped) if edit.action == "swap" else edit.value
    values = (
        list(value) if isinstance(value, Sequence | Tensor) and not isinstance(value, str) else [value] * len(nodes)
    )
    if len(values) != len(nodes) or not all(_is_number(v) for v in values):
        raise UserError(
            f"expected a finite number as value of {edit.action!r}, or one per node; got {edit.value!r} for {len(nodes)} nodes"
        )
    if edit.action == "scale":
        return [(float(v), 0.0) for v in values]
    return [(1.0 if edit.action == "steer" else 0.0, float(v)) for v in values]


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _spans(positions: Any, length: int) -> tuple[range, ...]:
    """Ranges of absolute positions; an open slice never ends."""
    if isinstance(positions, slice):
        if positions.step not in (None, 1):
            raise UserError(f"expected positions in steps of 1; got {positions}; give a list of positions")
        start = _absolute(positions.start or 0, length)
        stop = FOREVER if positions.stop is None else _absolute(positions.stop, length)
        return (range(start, max(start, stop)),)
    several = [positions] if isinstance(positions, int) else list(positions)
    inside = [_absolute(position, length) for position in several]
    if not inside or max(inside) >= length or min(inside) < 0:
        raise UserError(
            f"expected positions of a prompt of {length} tokens; got {positions!r}; give slice(p, None) for all from p on"
        )
    return tuple(range(position, position + 1) for position in inside)


def _absolute(position: int, length: int) -> int:
    return position + length if position < 0 else position
