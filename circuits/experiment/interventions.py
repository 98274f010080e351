"""Change named features in the real model and let everything else respond, or hold parts of it.

`intervene` runs a prompt with `Edit`s: features ablated, scaled, set, steered or swapped (edits.py). With a, the activation
that the feature has in this very run, and a' the edited one,

    neuron       mlp.hook_post[p, j] = a'
    transcoder   y[p] += (a' - a) W_dec[j]      at the site it writes; a cross-layer transcoder at all sites it writes
    SAE          x[p] += (a' - a) W_dec[j]      at its own site

Attention patterns, norms and MLPs are free unless they are held (constrained.py); in blocks whose outputs are held a is the
unmodified run's. A latent is encoded and written wherever the edit says, also at tokens that its training rule left out.
An inactive latent has a = 0, so that ablating it changes nothing and setting it to v adds v W_dec[j].

`ablate` and `steer` are the two common cases. `run_edited` is the batched engine: one row per set of edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ..graph import Node
from ..parts import Part
from ..trace import prompt_tokens
from ..tracing.frozen import quiet
from .constrained import Freeze, Held, Hook, freezing, hold, hold_hooks, read_sites, with_stream
from .edits import Catalogue, Columns, Edit, Key, Plan, changes, edit_list, nodes_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Intervened(NamedTuple):
    """Logits of an edited run and what it left at the sites that were asked for (`part.encode` makes latents of them)."""

    logits: Float[Tensor, "token vocab"]
    activations: dict[str, Tensor]


class Ran(NamedTuple):
    """A batch of edited runs: the model's logits, the last position's before any soft-cap, tensors at the read sites."""

    logits: Float[Tensor, "row token vocab"]
    final: Float[Tensor, "row vocab"]
    seen: dict[str, Tensor]


def intervene(
    model: TransformerBridge,
    prompt: str | Tensor,
    edits: Edit | Iterable[Edit],
    dictionaries: Any = None,
    *,
    freeze_attention: bool = False,
    freeze_norms: bool = False,
    freeze_mlps: bool | Iterable[int] = False,
    constrained: Iterable[int] | None = None,
    read: Sequence[str] = (),
) -> Intervened:
    """Run `prompt` with `edits`; what is frozen keeps the value of the unmodified run.

    `freeze_mlps`: all blocks, or these; `constrained`: blocks whose MLP and attention outputs are clamped to their own values
    plus what the edits write (constrained patching; give range(l, l_end + 1)). Attention, norms and MLPs all frozen
    give direct effects. `read`: sites whose activations [token width] come back. Raises UserError for edits that do not
    fit the prompt, the model or the dictionaries.
    """
    catalogue = Catalogue(model, dictionaries)
    tokens = prompt_tokens(model, prompt)
    freeze = freezing(model, freeze_attention, freeze_norms, freeze_mlps, constrained)
    held = hold(catalogue, tokens, freeze) if freeze else None
    ran = run_edited(catalogue, tokens, [edit_list(edits)], held=held, read=[catalogue.site(site) for site in read])
    found = {site: ran.seen[catalogue.site(site)][0].flatten(1) for site in read}
    return Intervened(ran.logits[0], found)


def ablate(
    model: TransformerBridge, prompt: str | Tensor, nodes: Node | Iterable[Node], dictionaries: Any = None
) -> Float[Tensor, "token vocab"]:
    """Logits of `prompt` with the features `nodes` set to zero at their positions, all else free to respond."""
    return intervene(model, prompt, Edit(_nodes(nodes)), dictionaries).logits


def steer(
    model: TransformerBridge, prompt: str | Tensor, nodes: Node | Iterable[Node], scale: float, dictionaries: Any = None
) -> Float[Tensor, "token vocab"]:
    """Logits of `prompt` with the activations of `nodes` multiplied by `scale` (0 ablates, -1 negates, 1 changes nothing).

    `dictionaries`: those that the latents among `nodes` belong to. Raises UserError for nodes that are no features of
    this model or lie outside the prompt.
    """
    return intervene(model, prompt, Edit(_nodes(nodes), "scale", scale), dictionaries).logits


def _nodes(nodes: Node | Iterable[Node]) -> list[Node]:
    return [nodes] if isinstance(nodes, Node) else list(nodes)


def run_edited(
    catalogue: Catalogue,
    tokens: Int[Tensor, "token"],
    sets: Sequence[Sequence[Edit]],
    *,
    held: Held | None = None,
    read: Sequence[str] = (),
) -> Ran:
    """One batch, a row per set of edits; `read` are canonical sites whose tensors [row token ...] are kept."""
    plan = resolve(catalogue, tokens, sets)
    final: list[Tensor] = []
    seen: dict[str, Tensor] = {}

    def reader(site: str) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            seen[site] = value

        return keep

    hooks: list[Any] = [("hook_unembed", lambda tensor, hook: final.append(tensor[:, -1]))]
    hooks += Editing(catalogue, plan, held).hooks() + [(site, reader(site)) for site in dict.fromkeys(read)]
    with torch.no_grad(), quiet():
        logits = catalogue.model.run_with_hooks(tokens.repeat(len(sets), 1), fwd_hooks=hooks)
    return Ran(logits, final[0], seen)


def resolve(catalogue: Catalogue, tokens: Int[Tensor, "token"], sets: Sequence[Sequence[Edit]]) -> Plan:
    """The plan of a batch; swaps look their activations up in unmodified runs."""
    found = []
    for row, edits in enumerate(sets):
        for edit in edits:
            swapped = _swapped(catalogue, tokens, edit) if edit.action == "swap" else ()
            found += changes(catalogue, edit, row, len(tokens), swapped)
    return Plan(len(sets), found)


def _swapped(catalogue: Catalogue, tokens: Int[Tensor, "token"], edit: Edit) -> list[float]:
    nodes = nodes_of(edit)
    if edit.value is None:
        if len(nodes) != 2:
            raise UserError(
                f"expected two nodes to swap, or another prompt as value; got {len(nodes)} nodes and no prompt"
            )
        return activations_of(catalogue, tokens, nodes[::-1])
    other = prompt_tokens(catalogue.model, edit.value)
    if max(node.position for node in nodes) >= len(other):
        raise UserError(
            f"expected another prompt that reaches the nodes' positions; got one of {len(other)} tokens; lengthen it"
        )
    return activations_of(catalogue, other, nodes)


def activations_of(catalogue: Catalogue, tokens: Int[Tensor, "token"], nodes: Sequence[Node]) -> list[float]:
    """The activations of features in the unmodified run of `tokens`."""
    keys = [catalogue.key(node) for node in nodes]
    seen = read_sites(catalogue.model, tokens, [key.site for key in keys])
    values = []
    for key, node in zip(keys, nodes, strict=True):
        x = seen[key.site].flatten(1)[node.position]
        index = torch.tensor([node.index], device=x.device)
        values.append(
            float(x[node.index] if key.kind == "neuron" else encoded(catalogue.parts[key.site], x[None], index))
        )
    return values


def encoded(part: Part, x: Float[Tensor, "row d"], index: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
    """The activation of one latent per row of `x`."""
    if x.shape[1] != part.W_enc.shape[1]:
        raise UserError(
            f"expected a dictionary of width {x.shape[1]} at {part.read}; got one of {part.W_enc.shape[1]}; is it another model's?"
        )
    if not len(x):
        return x.new_zeros(0)
    codes = part.encode(x.to(part.W_enc.dtype))
    return (codes.values * (codes.indices == index[:, None].to(codes.indices))).sum(1).to(x.device)


class Editing:
    """The hooks of a plan. `start` is the position of the first token of the coming pass: 0, or in generation what is cached."""

    def __init__(self, catalogue: Catalogue, plan: Plan, held: Held | None = None):
        self.catalogue, self.plan, self.held = catalogue, plan, held
        self.freeze = held.freeze if held else Freeze()
        self.start = 0
        self._deltas: dict[Key, tuple[Columns, Tensor]] = {}

    def hooks(self) -> list[Hook]:
        """Holding first, then what neurons and transcoders write, SAEs (which read what those wrote), and readers last."""
        own = hold_hooks(self.catalogue, self.held) if self.held else []
        saes: list[Hook] = []
        readers: list[Hook] = []
        for key in self.plan.keys:
            part = self.catalogue.parts.get(key.site) if key.kind == "latent" else None
            if part is None:
                own += self._neuron_hooks(key)
            elif part.is_sae:
                saes += with_stream(self.catalogue, key.site, self._sae(key, part))
            else:
                readers.append((key.site, self._reader(key, part)))
                own += self._writers(key, part)
        return own + saes + readers

    def _at(self, key: Key, tensor: Tensor) -> Columns:
        return self.plan.at(key, self.start, self.start + tensor.shape[1], tensor.device)

    def _is_clamped(self, part: Part) -> bool:
        return part.layer in self.freeze.mlps

    def _neuron_hooks(self, key: Key) -> list[Hook]:
        layer = int(key.site.split(".")[1])
        if layer not in self.freeze.mlps:
            return [(key.site, self._neurons(key))]
        return [(f"blocks.{layer}.mlp.hook_out", self._clamped_neurons(key))]

    def _neurons(self, key: Key) -> Callable[..., Tensor]:
        def edit(post: Tensor, hook: Any) -> Tensor:
            at = self._at(key, post)
            edited = post.clone()
            edited[at.row, at.position, at.index] = at.new(post[at.row, at.position, at.index])
            return edited

        return edit

    def _clamped_neurons(self, key: Key) -> Callable[..., Tensor]:
        W_out = self.catalogue.W_out(key)

        def edit(out: Tensor, hook: Any) -> Tensor:
            assert self.held is not None
            at = self._at(key, out)
            delta = at.delta(self.held.seen[key.site][at.position, at.index])
            return _added(out, at, delta, W_out)

        return edit

    def _sae(self, key: Key, part: Part) -> Callable[[Tensor], Tensor]:
        (W_dec,) = part.W_dec.values()

        def change(x: Tensor) -> Tensor:
            at = self._at(key, x)
            return _added(x, at, at.delta(self._activation(key, part, x, at)), W_dec)

        return change

    def _reader(self, key: Key, part: Part) -> Callable[..., None]:
        def read(x: Tensor, hook: Any) -> None:
            at = self._at(key, x)
            self._deltas[key] = at, at.delta(self._activation(key, part, x, at))

        return read

    def _activation(self, key: Key, part: Part, x: Tensor, at: Columns) -> Float[Tensor, "change"]:
        """The latents' activations in this run, or in the unmodified one where their block is clamped."""
        if self.held is not None and self._is_clamped(part):
            return encoded(part, self.held.seen[key.site].flatten(1)[at.position], at.index)
        return encoded(part, x.flatten(2)[at.row, at.position], at.index)

    def _writers(self, key: Key, part: Part) -> list[Hook]:
        """At every site it writes; a part of a clamped block only at clamped ones, beyond which the MLPs answer themselves."""
        hooks: list[Hook] = []
        for site, W_dec in self.catalogue.written(part).items():
            if not self._is_clamped(part) or int(site.split(".")[1]) in self.freeze.mlps:
                hooks += with_stream(self.catalogue, site, self._writer(key, W_dec))
        return hooks

    def _writer(self, key: Key, W_dec: Float[Tensor, "latent d"]) -> Callable[[Tensor], Tensor]:
        def change(out: Tensor) -> Tensor:
            at, delta = self._deltas[key]
            return _added(out, at, delta, W_dec)

        return change


def _added(out: Tensor, at: Columns, delta: Float[Tensor, "change"], rows: Float[Tensor, "feature d"]) -> Tensor:
    """`out` with delta times the features' rows added at their places."""
    added = delta[:, None] * rows.detach()[at.index.to(rows.device)].to(out)
    flat = out.flatten(2).index_put((at.row, at.position), added.to(out), accumulate=True)
    return flat.view(out.shape)
