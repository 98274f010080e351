"""Graph: why one prompt gave one output, with a ledger that closes.

Nodes stand in causal order (every edge goes from a lower to a higher index): leaves, then features by layer, then the
logit targets. An edge's weight is what its source contributes to its target, so that the weights into a target sum to
the target's value in the unmodified forward pass: the centred logit before any soft-cap, a latent's or plain neuron's
pre-activation, a gated neuron's activation. `residual` is the worst |value - sum| / sum |weights| over all rows.

| kind | what | value |
|---|---|---|
| token, position | the token's embedding; the learned positional embedding | norm of the vector |
| bias | constants of one layer met on the way (norm biases, b_V, b_O, b_out, b_dec, b_enc, b_U), summed over positions | 0 |
| first | the MLP's output at position 0, the attention sink | norm |
| error | a transcoder's reconstruction error at a position, or the whole output where it is not to be trusted | norm |
| rest | all sources of a layer and position that did not become nodes (layer -1: what pruning folded together, by sign) | norm, or 0 |
| latent, neuron | a transcoder latent; a neuron of the model's own MLP | activation |
| gate, up | the two factors' rows of a gated neuron, where it is traced in two | gate pre-activation; up projection |
| head, mlp | components in the graphs of patching baselines, whose weights are no ledger | 0 |
| logit | a target | its value |
| direction | a target inside the model: a feature, a probe, a direction of the stream | its value |

On disk a graph is one safetensors file (tensors below, exact) with JSON in its header, so that opening a stranger's
graph runs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..saes.drawn import drawn

KINDS = (
    "token",
    "position",
    "bias",
    "first",
    "error",
    "rest",
    "neuron",
    "latent",
    "logit",
    "gate",
    "up",
    "head",
    "mlp",
    "direction",
)
FEATURES = ("neuron", "latent")
FACTORS = ("gate", "up")
TARGETS = ("logit", "direction")


class Node(NamedTuple):
    """One node. `layer` is -1 for embeddings and n_layers for logits; -1 in `position` or `index` means "none"."""

    kind: str
    layer: int
    position: int
    index: int  # latent, neuron or token id
    value: float
    label: str
    attribution: float = 0.0  # signed total attribution to the weighted targets, through every path
    weight: float = 0.0  # of a logit: its weight among the targets
    site: str = ""  # what a latent's dictionary reads; where another leaf of a layer is written; "" without a layer

    @property
    def is_feature(self) -> bool:
        """True for what has incoming edges of its own and can be intervened on: neurons and latents."""
        return self.kind in FEATURES


class Edges(NamedTuple):
    """Sparse edges, ordered by target and then source; indices of 32 bits halve the memory of a large graph."""

    target: Int[Tensor, "edge"]
    source: Int[Tensor, "edge"]
    weight: Float[Tensor, "edge"]


class Graph:
    """`nodes`, `edges`, `row_values` (value of every node's row, NaN for leaves) and `metadata` (JSON data)."""

    def __init__(self, nodes: list[Node], edges: Edges, row_values: Float[Tensor, "node"], metadata: dict[str, Any]):
        self.nodes, self.edges, self.row_values, self.metadata = tuple(nodes), edges, row_values, metadata

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def residual(self) -> float:
        """Worst |value - sum of incoming edges| / sum |incoming edges| over all rows: 0 when the ledger closes.

        NaN where there is no ledger (patching baselines, others' graphs), or where a target's value is not a number.
        """
        rows = ~self.row_values.isnan()
        if self.row_values[self.targets].isnan().any() or (len(self.edges.weight) and not rows.any()):
            return float("nan")
        return float(self.row_residuals()[rows].max()) if rows.any() else 0.0

    @property
    def closure(self) -> str:
        """`residual` in words, and which dictionaries cut the stream completely."""
        residual = self.residual
        said = "no ledger" if residual != residual else f"residual {residual:.1e}"
        cuts = self.metadata.get("complete_cuts")
        return said + (f"; complete cut at {', '.join(map(str, cuts))}" if isinstance(cuts, list) and cuts else "")

    def row_residuals(self) -> Float[Tensor, "node"]:
        """The same for every node; NaN for leaves, which have no row."""
        total = self._into(self.edges.weight)
        mass = self._into(self.edges.weight.abs())
        return (self.row_values.double() - total).abs() / mass.clamp_min(torch.finfo(torch.float64).tiny)

    def _into(self, weight: Float[Tensor, "edge"]) -> Float[Tensor, "node"]:
        return torch.zeros(len(self), dtype=torch.float64).index_add_(0, self.edges.target, weight.double())

    def is_kind(self, *kinds: str) -> Bool[Tensor, "node"]:
        """For every node, whether it is of one of these kinds."""
        return torch.tensor([node.kind in kinds for node in self.nodes], dtype=torch.bool)

    def of_kind(self, *kinds: str) -> Int[Tensor, "wanted"]:
        """Indices of the nodes of these kinds."""
        return self.is_kind(*kinds).nonzero()[:, 0]

    @property
    def targets(self) -> list[int]:
        """Indices of what the graph explains: logits, and targets inside the model."""
        return self.of_kind(*TARGETS).tolist()

    def column(self, field: str) -> Tensor:
        """One numeric field of all nodes (`layer`, `position`, `index`, `value`, `attribution`, `weight`) as a tensor."""
        dtype = torch.int64 if field in ("layer", "position", "index") else torch.float64
        return torch.tensor([getattr(node, field) for node in self.nodes], dtype=dtype)

    def incoming(self, target: int) -> list[tuple[Node, float]]:
        """The sources of one node and their weights, largest |weight| first."""
        mine = self.edges.target == target
        pairs = zip(self.edges.source[mine].tolist(), self.edges.weight[mine].tolist(), strict=True)
        return sorted(((self.nodes[source], weight) for source, weight in pairs), key=lambda pair: -abs(pair[1]))

    def scores(self, pinned: Sequence[int] | None = None) -> Any:
        """Replacement and completeness, strict and as circuit-tracer defines them; of a chosen subgraph with `pinned`."""
        from .simplify.scores import scores

        return scores(self, pinned)

    def prune(self, nodes: float = 0.8, edges: float = 0.98, *, compatible: bool = False) -> Graph:
        """The part that carries these shares of influence; what goes is folded into two rest leaves. See `prune.prune`."""
        from .simplify.prune import prune

        return prune(self, nodes, edges, compatible=compatible)

    def paths(self, n: int = 5, target: int | None = None) -> list[Any]:
        """The n strongest paths from token embeddings to a target (an index into `nodes`; default: the heaviest logit)."""
        from .simplify.paths import paths

        return paths(self, n, target)

    def to_neuronpedia(self, **options: Any) -> dict[str, Any]:
        """The graph as a JSON object that Neuronpedia and circuit-tracer's viewer read; see `neuronpedia.to_neuronpedia`."""
        from .exchange.neuronpedia import to_neuronpedia

        return to_neuronpedia(self, **options)

    @staticmethod
    def from_neuronpedia(data: dict[str, Any]) -> Graph:
        """The graph in such an object, also of other tools; see `neuronpedia_read.from_neuronpedia`."""
        from .exchange.neuronpedia_read import from_neuronpedia

        return from_neuronpedia(data)

    def alternatives(self, n: int = 3, target: int | None = None) -> list[Any]:
        """Routes to a target that share no feature, strongest first, and what remains without each. See `paths.alternatives`."""
        from .simplify.paths import alternatives

        return alternatives(self, target, n)

    def supernodes(self, n: int | None = None) -> list[Any]:
        """Groups of features with like inputs and outputs, found; `group` them, then `collapse`."""
        from .simplify.grouping import supernodes

        return supernodes(self, n)

    def group(self, groups: Any) -> Graph:
        """The graph with supernodes: {label: [node indices]}, or what `supernodes` found."""
        from .simplify.supernodes import group

        return group(self, groups)

    def collapse(self) -> Graph:
        """One node for every supernode; rows still sum. See `supernodes.collapse`."""
        from .simplify.supernodes import collapse

        return collapse(self)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, atomically; `Graph.load` gives back equal tensors and metadata."""
        from .graph_file import write

        return write(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Graph:
        """Read a graph file; UserError when it is missing, truncated, of another kind, or inconsistent."""
        from .graph_file import read

        return read(Path(path))

    _repr_html_ = drawn

    def __repr__(self) -> str:
        count = Counter(node.kind for node in self.nodes)
        kinds = ", ".join(f"{count[kind]:,} {kind}" for kind in KINDS if count[kind])
        head = f"Graph({self.metadata.get('prompt', '')!r}: {kinds}; {len(self.edges.weight):,} edges; {self.closure})"
        return "\n".join(
            [
                head,
                *(
                    f"  target {node.label!r}: {node.value:.3f} (weight {node.weight:.3f})"
                    for node in (self.nodes[target] for target in self.targets)
                ),
            ]
        )

    def table(self, n: int = 20) -> str:
        """The n features of largest total attribution as text: place, label, activation, signed attribution."""
        features = sorted((node for node in self.nodes if node.is_feature), key=lambda node: -abs(node.attribution))[:n]
        tokens = self.metadata.get("token_strings", [])
        lines = [f"{'layer':>5} {'position':<18} {'feature':<16} {'value':>9} {'attribution':>12}"]
        for node in features:
            place = f"{node.position} {tokens[node.position]!r}" if node.position < len(tokens) else str(node.position)
            lines.append(
                f"{node.layer:>5} {place:<18.18} {node.kind + ' ' + str(node.index):<16} {node.value:>9.3f} {node.attribution:>+12.4f}"
            )
        return "\n".join(lines)
