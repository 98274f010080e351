"""When a graph is not to be trusted: what `validate` says beside its numbers.

A caution names what was seen and what it means. None of them is a proof, and none being raised is not one either.

The shortcut (Lange et al. 2026): a cross-layer transcoder may write a late result directly from early features, past the feature
that computes it in the model. The graph then gives the true middle step no part in the answer, while ablating it changes the
answer; or gives the shortcut a part that the model does not. Both show as a feature whose measured effect is large where
the predicted one is about zero, or the reverse, and are named.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..graph import Graph
from .faithful import Faithfulness
from .statistics import Agreement

LOW_REPLACEMENT = 0.2  # strict share of influence that reaches the tokens
HEAVY_LEAVES = 0.5  # share of influence that ends in first-position, error or rest leaves
LARGE, SMALL = 0.2, 0.1  # an effect is large against the largest; a prediction misses one of which it is this share
WILD = 3.0  # times the whole gap: a faithfulness that says that the gap is too small to measure by
NAMED = 5  # features named in one caution


def graph_cautions(graph: Graph) -> list[str]:
    """What the graph itself shows: a ledger that does not close, influence that ends in leaves that explain nothing."""
    found = []
    tolerance = 1e-8 if graph.metadata.get("settings", {}).get("dtype") == "float64" else 1e-4
    if graph.residual > tolerance:
        found.append(f"the ledger does not close: residual {graph.residual:.1e}")
    scores = graph.scores()
    if scores.replacement < LOW_REPLACEMENT:
        found.append(f"only {scores.replacement:.0%} of the influence reaches the tokens (strict replacement)")
    meaning = {
        "first": "the first position's MLP outputs",
        "error": "reconstruction errors",
        "rest": "features that are no nodes (raise max_features)",
    }
    for kind, words in meaning.items():
        share = scores.leaf_shares.get(kind, 0.0)
        if share > HEAVY_LEAVES:
            found.append(f"{share:.0%} of the influence ends in {words}")
    return found


def agreement_cautions(name: str, agreement: Agreement) -> list[str]:
    """Predictions that are ordered wrongly, or not distinguishably rightly."""
    low, high = agreement.spearman_interval
    if high < 0 or agreement.spearman < 0:
        return [
            f"{name}: predicted and measured effects are negatively correlated ({agreement.spearman:.2f} [{low:.2f}, {high:.2f}])"
        ]
    if low <= 0:
        return [f"{name}: no rank agreement beyond chance ({agreement.spearman:.2f} [{low:.2f}, {high:.2f}])"]
    return []


def control_cautions(name: str, measured: float, controls: Sequence[float]) -> list[str]:
    """A circuit that does no more than random ones of its size."""
    if controls and abs(measured) <= max(abs(value) for value in controls):
        return [f"{name}: ablating them does no more ({measured:+.2f}) than ablating matched random features"]
    return []


def curve_cautions(curve: Faithfulness) -> list[str]:
    """Circuits that are no better than random ones, complements that do the job as well, or a gap too small to share out."""
    largest = max(abs(value) for line in (curve.circuit, curve.complement, *curve.random) for value in line)
    if largest > WILD:
        return [
            f"removing all the graph's features changes the targets little ({curve.full - curve.empty:+.2f}), some of them much more: "
            "faithfulness, a share of that change, cannot be read"
        ]
    found = []
    chance = sum(curve.cmd_random) / max(1, len(curve.cmd_random))
    if curve.cmd_random and curve.cmd >= chance:
        found.append(
            f"the top features alone are no more faithful than random ones (CMD {curve.cmd:.2f}, random {chance:.2f})"
        )
    if curve.cmd_complement <= curve.cmd:
        found.append(
            f"what is left without the top features does as well as they do (CMD {curve.cmd_complement:.2f} and {curve.cmd:.2f}): "
            "the circuit is not complete"
        )
    return found


def shortcut_cautions(
    graph: Graph, nodes: Sequence[int], predicted: Sequence[float], measured: Sequence[float]
) -> list[str]:
    """Features whose ablation does much where the graph says nothing, or nothing where it says much, by name."""
    largest = max((abs(value) for value in (*predicted, *measured)), default=0.0)
    missed, claimed = [], []
    for i, says, does in zip(nodes, predicted, measured, strict=True):
        words = f"{graph.nodes[i].label} @ {graph.nodes[i].position} (predicted {says:+.2f}, measured {does:+.2f})"
        if abs(does) >= LARGE * largest and abs(says) <= SMALL * abs(does):
            missed.append((abs(does - says), words))
        elif abs(says) >= LARGE * largest and abs(does) <= SMALL * abs(says):
            claimed.append((abs(does - says), words))
    found = []
    if missed:
        found.append(
            f"features that matter more than the graph says, as when it takes a shortcut past them: {_named(missed)}"
        )
    if claimed:
        found.append(f"features that matter less than the graph says, as shortcuts do: {_named(claimed)}")
    return found


def _named(items: list[tuple[float, str]]) -> str:
    words = [text for _, text in sorted(items, reverse=True)]
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return "; ".join(words[:NAMED]) + more
