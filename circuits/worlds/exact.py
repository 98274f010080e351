"""World 1: identities on random models with exact neuron features.

The models are random in every weight. What the graph says is compared with the real model under hooks, run forwards with
every attention pattern, norm scale and MLP output held at what this prompt gave (`Held`); no code of the tracer takes part.

    I1  exact neurons leave no error, and rows have the values that the hooks show          I7  leaves receive all influence
    I2  every row sums to its value                                                         I9  so do error leaves alone
    I3  a source pushed forwards moves each target by its edge, and others not at all       I10 folding keeps every row
    I4  an activation scaled by c moves them by c - 1 edges, for any c
    I5  an edge is the sum of its parts through the heads of a layer and past them
    I6  a head's score is the sum over all pairs of nodes
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attention.heads import split_heads
from ..attention.qk import qk_table
from ..graph import Graph, Node
from ..simplify.scores import influence, normalised, target_weights
from ..trace import trace
from ..tracing.frozen import quiet
from .tools import Key, Row, at_most, blank, edges_of, key_of, neurons_as_part, noisy, randomise, wrap

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LAYERS, WIDTH, HEADS, VOCAB, TOKENS, NEURONS = 3, 32, 4, 40, 7, 48
EVERYTHING = 10**6
TIGHT = 1e-10
KINDS_OF_MODEL: dict[str, dict[str, Any]] = {
    "LayerNorm, learned positions, ReLU": {"norm": "LN"},
    "RMSNorm, rotary positions, gated": {"norm": "RMS", "positions": "rotary", "gated": True},
}


def random_world(seed: int, **kind: Any) -> tuple[TransformerBridge, Int[Tensor, "token"]]:
    """A random model and a prompt for it."""
    model = blank(LAYERS, WIDTH, VOCAB, 16, heads=HEADS, d_mlp=NEURONS, eps=1e-5, **kind)
    generator = torch.Generator().manual_seed(seed)
    return wrap(randomise(model, seed)), torch.randint(VOCAB, (TOKENS,), generator=generator)


class Held:
    """A model on one prompt with patterns, norm scales and MLP outputs held; vectors may be added where sources are written."""

    def __init__(self, model: TransformerBridge, tokens: Int[Tensor, "token"]):
        self.model, self.tokens, self.kept = model, tokens, {}
        names = ("hook_pattern", "hook_scale", "mlp.hook_out")
        self.held = [name for name in model.hook_dict if name.endswith(names)]
        self.read = [name for name in model.hook_dict if name.endswith("mlp.hook_pre")] + ["hook_unembed"]
        self.kept = self._run(
            [(name, lambda value, hook: value.clone()) for name in self.held], (*self.held, *self.read)
        )

    def _run(self, hooks: list[Any], read: tuple[str, ...]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            return lambda value, hook: seen.__setitem__(name, value.detach().clone())

        with torch.no_grad(), quiet():
            self.model.run_with_hooks(self.tokens[None], fwd_hooks=[*hooks, *((name, keep(name)) for name in read)])
        return seen

    def pushed(self, site: str, position: int, vector: Float[Tensor, "d"]) -> dict[str, Tensor]:
        """What is read when `vector` is added at a position of `site` (an embedding's hook or an mlp.hook_out)."""

        def add(value: Tensor, base: Tensor | None) -> Tensor:
            moved = value.clone() if base is None else base.clone()
            moved[0, position] += vector
            return moved

        hooks: list[Any] = [
            (name, lambda value, hook, name=name: self.kept[name].clone()) for name in self.held if name != site
        ]
        hooks.append((site, lambda value, hook: add(value, self.kept.get(site))))
        return self._run(hooks, tuple(self.read))

    def values(self, nodes: list[Node], seen: dict[str, Tensor]) -> Float[Tensor, "node"]:
        """What the rows of plain neurons and logits are the values of: pre-activations and centred logits."""
        logits = seen["hook_unembed"][0, -1] - seen["hook_unembed"][0, -1].mean()
        pre = [seen[name][0] for name in self.read[:-1]]
        rows = [logits[n.index] if n.kind == "logit" else pre[n.layer][n.position, n.index] for n in nodes]
        return torch.stack(rows)

    def vector(self, node: Node) -> tuple[str, Float[Tensor, "d"]]:
        """Where a token's, position's or neuron's vector is added, and the vector."""
        if node.kind == "token":
            return "hook_embed", self.model.embed.W_E[node.index]
        if node.kind == "position":
            return "hook_pos_embed", self.model.pos_embed.W_pos[node.position]
        return f"blocks.{node.layer}.mlp.hook_out", node.value * self.model.blocks[node.layer].mlp.W_out[node.index]


def identities(seed: int = 0, sources: int = 24) -> list[Row]:
    """I1 to I10 on random models; `sources`: how many sources are pushed forwards one at a time."""
    rows = []
    for name, kind in KINDS_OF_MODEL.items():
        model, tokens = random_world(seed, **kind)
        graph = trace(model, tokens, max_features=EVERYTHING)
        rows.append(at_most("I2 ledger", f"worst residual of a row; {name}", graph.residual, TIGHT))
        rows.append(at_most("I7 conservation", f"|Σ leaf influence − Σ weights|; {name}", _conservation(graph), TIGHT))
    model, tokens = random_world(seed, norm="LN")
    exact = [neurons_as_part(model, layer) for layer in range(LAYERS)]
    graph = trace(model, tokens, exact, max_features=EVERYTHING)
    held = Held(model, tokens)
    neurons = trace(model, tokens, max_features=EVERYTHING)
    pushed = "edge against the pushed source's effect, worst"
    conserved = "|Σ (I + w) Ahat[t, error] − I[error]| with noisy transcoders"
    return rows + [
        at_most("I1 exact replacement", "norm of an error leaf of exact neuron transcoders", _error(graph), TIGHT),
        at_most("I1 values", "row value against the hook's, worst", _values(held, neurons), TIGHT),
        at_most("I1 neurons = transcoder", "edge of one graph against the other's, worst", _twins(neurons, graph), TIGHT),
        at_most("I3 adjoint = forward push", pushed, _columns(held, neurons, 2.0, sources, seed), TIGHT),
        at_most("I4 intervention", "the same at activations × −3", _columns(held, neurons, -3.0, sources, seed), TIGHT),
        at_most("I5 head split", "|Σ heads + bypass − edge|, worst", _heads(neurons, model), TIGHT),
        at_most("I6 QK table", "Σ pairs against q · k / √e of the hooks, worst of 12", _scores(model, tokens), TIGHT),
        at_most("I9 error influence", conserved, _errors_conserved(model, tokens, seed), TIGHT),
        at_most("I10 folding", "worst residual after pruning to 50 %", neurons.prune(0.5, 0.9).residual, TIGHT),
    ]  # fmt: skip


def _error(graph: Graph) -> float:
    return max((node.value for node in graph.nodes if node.kind == "error"), default=0.0)


def _values(held: Held, graph: Graph) -> float:
    rows = [i for i, node in enumerate(graph.nodes) if node.kind in ("neuron", "logit")]
    shown = held.values([graph.nodes[i] for i in rows], held.kept)
    return float((graph.row_values[rows] - shown).abs().max())


def _twins(neurons: Graph, latents: Graph) -> float:
    def named(key: Key) -> Key:
        return ("neuron", *key[1:]) if key[0] == "latent" else key

    one = {(s, t): weight for (s, t), weight in edges_of(neurons).items() if s[0] not in ("rest", "error")}
    other = {(named(s), named(t)): weight for (s, t), weight in edges_of(latents).items()}
    return max(abs(weight - other.get(edge, 0.0)) for edge, weight in one.items())


def _columns(held: Held, graph: Graph, c: float, count: int, seed: int) -> float:
    """Worst |measured - (c - 1) edge| over all targets, for sources spread over tokens, positions and neurons."""
    kinds = ("token", "position", "neuron")
    sources = [i for i, node in enumerate(graph.nodes) if node.kind in kinds and node.layer < LAYERS - 1]
    order = torch.randperm(len(sources), generator=torch.Generator().manual_seed(seed)).tolist()
    targets = [node for node in graph.nodes if node.kind in ("neuron", "logit")]
    keys, edges, before, worst = (
        [key_of(node) for node in targets],
        edges_of(graph),
        held.values(targets, held.kept),
        0.0,
    )
    for node in [graph.nodes[sources[i]] for i in order[:count]]:
        site, vector = held.vector(node)
        moved = held.values(targets, held.pushed(site, node.position, (c - 1) * vector)) - before
        expected = torch.tensor([(c - 1) * edges.get((key_of(node), key), 0.0) for key in keys], dtype=torch.float64)
        worst = max(worst, float((moved - expected).abs().max()))
    return worst


def _heads(graph: Graph, model: TransformerBridge) -> float:
    targets = [i for i, node in enumerate(graph.nodes) if node.weight] + graph.of_kind("neuron")[-2:].tolist()
    split = split_heads(graph, model, targets=targets, layers=range(LAYERS - 1))
    total, edges, worst = split.weights.sum(2) + split.bypass, edges_of(graph), 0.0
    for row, target in enumerate(targets):
        expected = [
            edges.get((key_of(graph.nodes[s]), key_of(graph.nodes[target])), 0.0) for s in split.source.tolist()
        ]
        worst = max(worst, float((total[row] - torch.tensor(expected, dtype=torch.float64)).abs().max()))
    return worst


def _scores(model: TransformerBridge, tokens: Int[Tensor, "token"]) -> float:
    _, cache = model.run_with_cache(tokens[None])
    worst = 0.0
    for layer, head, query, key in product(range(1, LAYERS), (0, 3), (TOKENS - 1,), (0, 2, TOKENS - 1)):
        q, k = (cache[f"blocks.{layer}.attn.hook_{side}"].reshape(TOKENS, HEADS, -1) for side in "qk")
        shown = float(q[query, head] @ k[key, head]) / (WIDTH / HEADS) ** 0.5
        worst = max(worst, abs(qk_table(model, tokens, layer, head, query, key).sum() - shown))
    return worst


def _conservation(graph: Graph) -> float:
    arriving = influence(graph.edges, normalised(graph.edges, len(graph)), target_weights(graph))
    return abs(float(arriving[graph.row_values.isnan()].sum() - target_weights(graph).sum()))


def _errors_conserved(model: TransformerBridge, tokens: Int[Tensor, "token"], seed: int) -> float:
    graph = trace(model, tokens, [noisy(neurons_as_part(model, layer), 0.5, seed) for layer in range(LAYERS)])
    shares, weights = normalised(graph.edges, len(graph)), target_weights(graph)
    arriving, is_error = influence(graph.edges, shares, weights), graph.is_kind("error")
    through = (arriving + weights)[graph.edges.target.long()]
    return abs(float((through * shares * is_error[graph.edges.source.long()]).sum() - arriving[is_error].sum()))
