"""Is the circuit enough, and is it needed? Keep it and remove everything else; remove it and keep everything else.

Rank a graph's features by |total attribution|; the circuit C_k is the best share k of them. With m the weighted targets,
N the whole model and 0 the model without any of the features (Mueller et al. 2025, MIB),

    f(C) = (m(C) - m(0)) / (m(N) - m(0))            1: C alone does what the model does; may exceed 1
    CMD  = integral of |1 - f(C_k)| over k          lower is better; the honest number
    CPR  = integral of f(C_k) over k                higher is better, but unbounded: two errors can cancel in it

Beside the circuits stand `controls` random ones of the same sizes from the same features, and the complements N - C_k: a
circuit is complete when its complement fails, that is when CMD of the complements is large.

"Removed" is set to 0, or to the feature's mean over the prompt's positions past the first, in the real model with everything
free to respond. What is never removed: anything at position 0, reconstruction errors, attention, and, unless
`others="remove"`, the features that the graph has no node for. With "keep" f(C_1) is 1 by construction; with "remove" every
other latent, and every other neuron of a block without a dictionary, goes too, and f(C_1) says what the graph's features
do alone (for graphs of few among very many features: little).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...saes.errors import UserError
from ..graph import Graph
from ..trace import prompt_tokens
from .edits import Catalogue
from .effects import Outcome
from .removal import Removal

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Faithfulness:
    """f of circuits, complements and random circuits at each size; `full` and `empty` are m(N) and m(0)."""

    sizes: tuple[int, ...]
    shares: tuple[float, ...]
    circuit: tuple[float, ...]
    complement: tuple[float, ...]
    random: tuple[tuple[float, ...], ...]
    """One curve per random control."""
    full: float
    empty: float
    cmd: float
    cpr: float
    cmd_random: tuple[float, ...]
    cpr_random: tuple[float, ...]
    cmd_complement: float
    others: str
    baseline: str

    def __str__(self) -> str:
        def mean(values: Sequence[float]) -> float:
            return sum(values) / max(1, len(values))

        curve = ", ".join(f"{size}: {f:.2f}" for size, f in zip(self.sizes, self.circuit, strict=True))
        return (
            f"faithfulness of the top features alone (others: {self.others}, removed to {self.baseline}): CMD {self.cmd:.3f}, "
            f"random {mean(self.cmd_random):.3f}, complement {self.cmd_complement:.3f}; "
            f"CPR {self.cpr:.2f}, random {mean(self.cpr_random):.2f}\n  f by size: {curve}"
        )


def faithfulness(
    graph: Graph,
    model: TransformerBridge,
    dictionaries: Any = None,
    *,
    shares: Sequence[float] = SHARES,
    others: str = "keep",
    baseline: str = "zero",
    controls: int = 3,
    seed: int = 0,
) -> Faithfulness:
    """Curves of the circuits that hold the best `shares` of the graph's features; see the module header.

    `others` keep or remove: the features that are no nodes; `baseline` zero or mean: what removed ones become.
    Costs about (2 + controls) x shares forward passes of the prompt, batched. Raises UserError for a graph without features.
    """
    catalogue = Catalogue(model, dictionaries)
    tokens = prompt_tokens(model, torch.tensor(graph.metadata["tokens"]))
    return curves(graph, catalogue, tokens, Outcome(graph, catalogue), shares, others, baseline, controls, seed)


def curves(
    graph: Graph,
    catalogue: Catalogue,
    tokens: Int[Tensor, "token"],
    outcome: Outcome,
    shares: Sequence[float] = SHARES,
    others: str = "keep",
    baseline: str = "zero",
    controls: int = 3,
    seed: int = 0,
) -> Faithfulness:
    """`faithfulness` with its ingredients at hand."""
    features = sorted(
        (i for i, node in enumerate(graph.nodes) if node.is_feature), key=lambda i: -abs(graph.nodes[i].attribution)
    )
    if not features or not shares or not all(0 < share <= 1 for share in shares):
        raise UserError(
            f"expected a graph with features and shares above 0 up to 1; got {len(features)} and {tuple(shares)}"
        )
    if others not in ("keep", "remove") or baseline not in ("zero", "mean"):
        raise UserError(f"expected others keep or remove and baseline zero or mean; got {others!r} and {baseline!r}")
    sizes = sorted({max(1, round(share * len(features))) for share in shares})
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(features), generator=generator) for _ in range(controls)]
    best = torch.arange(len(features))
    none = torch.zeros(len(features), dtype=torch.bool)
    kept = [none, *(best < size for size in sizes), *(best >= size for size in sizes)]
    kept += [none.scatter(0, order[:size], True) for order in orders for size in sizes]
    removal = Removal(catalogue, graph, tokens, features, others == "remove", baseline == "mean")
    full, values = removal.run(outcome, torch.stack(kept))
    empty, gap = float(values[0]), full - float(values[0])
    f = [(float(value) - empty) / gap if gap else 0.0 for value in values[1:]]
    lines = [tuple(f[i : i + len(sizes)]) for i in range(0, len(f), len(sizes))]
    x = [size / len(features) for size in sizes]
    cmd = [_area(x, [abs(1 - value) for value in line]) for line in lines]
    cpr = [_area(x, line) for line in lines]
    return Faithfulness(
        tuple(sizes), tuple(x), lines[0], lines[1], tuple(lines[2:]), full, empty,
        cmd[0], cpr[0], tuple(cmd[2:]), tuple(cpr[2:]), cmd[1], others, baseline,
    )  # fmt: skip


def _area(x: Sequence[float], y: Sequence[float]) -> float:
    """Trapezoids; below the smallest share the curve is taken as flat, so that the area is over 0 .. 1."""
    steps = zip(x, x[1:], y, y[1:], strict=False)
    return x[0] * y[0] + sum((right - left) * (low + high) / 2 for left, right, low, high in steps)
