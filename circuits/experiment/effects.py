"""Effects: what a graph predicts that an ablation does, and what it does.

Predicted. Take source s away: its relative change is r_s = -1. What every other row loses follows the edges,

    change_t = sum_s A[t, s] r_s,      r_t = change_t / value_t,

leaves standing still (r = 0): the sum over all paths of the graph, every feature answering in proportion, as tracing assumes.
The direct edge alone predicts -A[t, s]. For the targets themselves -attribution says the same with the features that are no nodes
counted in.

Measured. The targets' weighted value of each edited run, and at every probed feature the value that its row explains
(pre-activation of a latent or plain neuron, activation of a gated neuron). A latent also has its activation, encoded anew: the
difference is what re-selection does, which a graph leaves out (it holds the support).

`estimates` is a third opinion, cheap for all features at once: one backward pass through the unmodified model, nothing
frozen, gives -a (gradient . W_dec), what an infinitesimal ablation extrapolates to (attribution patching). Where it contradicts
the graph, an ablation is worth doing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.sites import layer_of
from ..graph import Graph, Node
from .constrained import Held
from .edits import Catalogue, Edit, Key
from .interventions import run_edited

BATCH_TOKENS = 256  # tokens of one batch of edited prompts: bounds memory, the logits are [row token vocab]


class Measured(NamedTuple):
    """Changes against the first set (the empty one): of the weighted targets, of probed rows, of re-encoded activations.

    `replaced`: the share of the probed latent's token's support that others have taken (0 for neurons).
    """

    value: Float[Tensor, "set"]
    rows: Float[Tensor, "set probe"]
    activations: Float[Tensor, "set probe"]
    replaced: Float[Tensor, "set probe"]


def total_effects(graph: Graph, sources: Sequence[int]) -> Float[Tensor, "node source"]:
    """Predicted change of every node's row when a source is taken away, over all paths of the graph."""
    relative = torch.zeros(len(graph), len(sources), dtype=torch.float64)
    change = torch.zeros_like(relative)
    taken = {node: column for column, node in enumerate(sources)}
    for node, column in taken.items():
        relative[node, column] = -1
    targets, counts = graph.edges.target.long().unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    for target, start, end in zip(targets.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True):
        weight = graph.edges.weight[start:end].double()
        change[target] = weight @ relative[graph.edges.source[start:end].long()]
        value = float(graph.row_values[target])
        if value:
            relative[target] = change[target] / value
        if target in taken:
            relative[target, taken[target]] = -1
    return change


def direct_effects(graph: Graph, sources: Sequence[int]) -> Float[Tensor, "node source"]:
    """-A[t, s]: what the edges alone predict."""
    effect = torch.zeros(len(graph), len(sources), dtype=torch.float64)
    column = torch.full((len(graph),), -1, dtype=torch.int64)
    column[torch.tensor(sources, dtype=torch.int64)] = torch.arange(len(sources))
    mine = column[graph.edges.source.long()]
    kept = mine >= 0
    effect[graph.edges.target[kept].long(), mine[kept]] = -graph.edges.weight[kept].double()
    return effect


class Probes:
    """Features whose rows are watched in edited runs; the first row of the first run must be the unmodified one.

    `rule`: how gated neurons were traced. In a frozen model their row is the linear form that the tracer took it for,
    s_g a / g g_now + s_u a / u u_now with a, g and u of the unmodified run (`half`: ½ and ½, `gate`: 0 and 1); "" in a free
    one, where their row is the activation itself.
    """

    def __init__(self, catalogue: Catalogue, nodes: Sequence[Node], rule: str = ""):
        self.catalogue, self.nodes = catalogue, list(nodes)
        self.keys = [catalogue.key(node) for node in nodes]
        self.shares = {"half": (0.5, 0.5), "gate": (0.0, 1.0)}.get(rule)
        found = [key.site for key in self.keys]
        for key, node in zip(self.keys, self.nodes, strict=True):
            if key.kind == "neuron" and not is_gated(catalogue, node.layer):
                found.append(f"blocks.{node.layer}.mlp.hook_pre")
            elif key.kind == "neuron" and self.shares:
                found += [f"blocks.{node.layer}.mlp.hook_pre", f"blocks.{node.layer}.mlp.hook_pre_linear"]
        self.sites = list(dict.fromkeys(found))
        self._support: dict[tuple[str, int], Tensor] = {}
        self._clean: dict[tuple[int, str], Tensor] = {}

    def rows(self, seen: dict[str, Tensor]) -> Float[Tensor, "row probe"]:
        """The value that each probe's row explains."""
        return _columns(self._row(seen, i) for i in range(len(self.nodes)))

    def _row(self, seen: dict[str, Tensor], i: int) -> Float[Tensor, "row"]:
        node, key = self.nodes[i], self.keys[i]
        if key.kind == "latent":
            part, x = self.catalogue.parts[key.site], seen[key.site].flatten(2)[:, node.position]
            return (x @ part.W_enc[node.index].to(x)).double() + float(part.b_enc[node.index])
        if not is_gated(self.catalogue, node.layer):
            return self._neuron(seen, i, "hook_pre")
        if self.shares is None:
            return self._neuron(seen, i, "hook_post")
        value = torch.zeros(1, dtype=torch.float64)
        for share, name in zip(self.shares, ("hook_pre", "hook_pre_linear"), strict=True):
            now, clean = self._neuron(seen, i, name), self._unmodified(seen, i, name)
            value = value.to(now) + (share * self._unmodified(seen, i, "hook_post") / clean * now if clean else 0)
        return value

    def _neuron(self, seen: dict[str, Tensor], i: int, name: str) -> Float[Tensor, "row"]:
        node = self.nodes[i]
        return seen[f"blocks.{node.layer}.mlp.{name}"][:, node.position, node.index].double()

    def _unmodified(self, seen: dict[str, Tensor], i: int, name: str) -> Float[Tensor, ""]:
        return self._clean.setdefault((i, name), self._neuron(seen, i, name)[0])

    def activations(self, seen: dict[str, Tensor]) -> tuple[Float[Tensor, "row probe"], Float[Tensor, "row probe"]]:
        """Activations, latents encoded anew; and the share of the support of a latent's token that was replaced."""
        values, replaced = [], []
        for node, key in zip(self.nodes, self.keys, strict=True):
            x = seen[key.site].flatten(2)[:, node.position]
            if key.kind == "neuron":
                values.append(x[:, node.index].double())
                replaced.append(torch.zeros_like(values[-1]))
                continue
            part = self.catalogue.parts[key.site]
            codes = part.encode(x.to(part.W_enc.dtype))
            active = codes.indices.masked_fill(codes.values == 0, -1)
            clean = self._support.setdefault((key.site, node.position), active[0][active[0] >= 0])
            stayed = (active[:, :, None] == clean).any(1).sum(1)
            values.append((codes.values * (codes.indices == node.index)).sum(1).double())
            replaced.append(1 - stayed.double() / max(1, len(clean)))
        return _columns(values), _columns(replaced)


def _columns(columns: Any) -> Float[Tensor, "row probe"]:
    found = list(columns)
    return torch.stack([column.cpu() for column in found], 1) if found else torch.zeros(0, 0, dtype=torch.float64)


def is_gated(catalogue: Catalogue, layer: int) -> bool:
    """True where a block's neurons are act(gate) * up."""
    return getattr(catalogue.model.blocks[layer].mlp, "W_gate", None) is not None


class Outcome:
    """The weighted sum of a graph's targets, as a number of a run: logits before any soft-cap, features, directions."""

    def __init__(self, graph: Graph, catalogue: Catalogue, rule: str = ""):
        self.targets = graph.metadata["targets"]
        self.is_centred = graph.metadata.get("settings", {}).get("centred", True)
        length = len(graph.metadata["tokens"])
        features = [target["feature"] for target in self.targets if "feature" in target]
        self.probes = Probes(
            catalogue, [_feature(site, index, position % length) for site, index, position in features]
        )
        self.directions = [target["direction"] for target in self.targets if "direction" in target]
        self.sites = [*self.probes.sites, *(catalogue.site(direction["site"]) for direction in self.directions)]
        self._site = catalogue.site

    def __call__(self, final: Float[Tensor, "row vocab"], seen: dict[str, Tensor]) -> Float[Tensor, "row"]:
        """Per row; `final` are the last position's logits."""
        logits = final.double()
        if self.is_centred:
            logits = logits - logits.mean(1, keepdim=True)
        features = iter(self.probes.rows(seen).T if self.probes.nodes else ())
        value = torch.zeros(len(final), dtype=torch.float64, device=final.device)
        for target in self.targets:
            if "feature" in target:
                value = value + target["weight"] * next(features).to(value)
            elif "direction" in target:
                value = value + target["weight"] * self._along(target["direction"], seen)
            for token, sign in zip(target["ids"], (1, -1), strict=False):
                value = value + target["weight"] * sign * logits[:, token]
        return value

    def _along(self, direction: dict[str, Any], seen: dict[str, Tensor]) -> Float[Tensor, "row"]:
        x = seen[self._site(direction["site"])].flatten(2)[:, direction["position"]]
        return (x @ torch.tensor(direction["vector"]).to(x)).double() + direction["bias"]


def _feature(site: str, index: int, position: int) -> Node:
    layer = layer_of(site)
    kind = "neuron" if site.endswith("mlp.hook_post") else "latent"
    return Node(kind, -1 if layer is None else layer, position, index, 0.0, f"{site} {index}", site=site)


def measure(
    catalogue: Catalogue,
    tokens: Int[Tensor, "token"],
    outcome: Outcome,
    sets: Sequence[Sequence[Node]],
    probes: Sequence[Node] = (),
    *,
    held: Held | None = None,
    rule: str = "",
    scale: float = 0.0,
) -> Measured:
    """Ablate each set of nodes in a run of its own, in batches of at most BATCH_TOKENS tokens; the first set must be empty.

    `held`: what stays at the unmodified run's values; `rule`: see `Probes`; `scale`: another factor than 0.
    """
    watched = Probes(catalogue, probes, rule)
    read = [*watched.sites, *outcome.sites]
    batch = max(1, BATCH_TOKENS // len(tokens))
    found: list[list[Tensor]] = [[] for _ in Measured._fields]
    for i in range(0, len(sets), batch):
        edits = [[Edit(list(nodes), "scale", scale)] if nodes else [] for nodes in sets[i : i + batch]]
        ran = run_edited(catalogue, tokens, edits, held=held, read=read)
        columns = [outcome(ran.final, ran.seen).cpu()]
        if watched.nodes:
            columns += [watched.rows(ran.seen), *watched.activations(ran.seen)]
        for store, column in zip(found, columns, strict=False):
            store.append(column)
    empty = torch.zeros(len(sets), 0, dtype=torch.float64)
    value, rows, activations, replaced = (torch.cat(column) if column else empty for column in found)
    return Measured(value - value[0], rows - rows[0], activations - activations[0], replaced)


def estimates(
    catalogue: Catalogue, tokens: Int[Tensor, "token"], outcome: Outcome, nodes: Sequence[Node]
) -> Float[Tensor, "feature"]:
    """First-order effect of ablating each feature of a graph on the weighted targets, nothing frozen, by one backward pass.

    The activations are those of the nodes.
    """
    keys = [catalogue.key(node) for node in nodes]
    written = {key: _written(catalogue, key) for key in dict.fromkeys(keys)}
    sites = [site for decoders in written.values() for site in decoders]
    kept: dict[str, Tensor] = {}
    final: list[Tensor] = []

    def keep(value: Tensor, hook: Any, site: str) -> Tensor:
        # Returned, because what a hook is shown may be a reshaped view that the model does not go on with (OPT).
        value.retain_grad()
        kept[site] = value
        return value

    watched = dict.fromkeys([*sites, *outcome.sites])
    hooks: list[Any] = [("hook_embed", lambda value, hook: value.detach().clone().requires_grad_())]
    hooks += [(site, lambda value, hook, site=site: keep(value, hook, site)) for site in watched]
    hooks.append(("hook_unembed", lambda value, hook: final.append(value[:, -1])))
    with torch.enable_grad():
        catalogue.model.run_with_hooks(tokens[None], fwd_hooks=hooks)
        outcome(final[0], kept).sum().backward()
    found = []
    for node, key in zip(nodes, keys, strict=True):
        effect = 0.0
        for site, decoder in written[key].items():
            gradient = kept[site].grad
            if gradient is not None:
                g = gradient.flatten(2)[0, node.position]
                effect += float(g[node.index] if decoder is None else g @ decoder[node.index].to(g))
        found.append(-node.value * effect)
    return torch.tensor(found, dtype=torch.float64)


def _written(catalogue: Catalogue, key: Key) -> dict[str, Tensor | None]:
    """Sites whose gradients a feature acts through, and its decoder there (None: the neuron itself).

    The stream at hook_resid_mid has the gradient of what attention adds to it.
    """
    if key.kind == "neuron":
        return {key.site: None}
    decoders = catalogue.written(catalogue.parts[key.site])
    return {catalogue.site(site.replace("hook_resid_mid", "hook_attn_out")): W_dec for site, W_dec in decoders.items()}
