"""Does this selection of features do what the graph says? Ablations in the real model, one at a time and together, beside controls.

The experiment of `validate` for features that somebody chose (on the circuit page, in a notebook) rather than the largest: each
feature is set to zero in a run of its own, then all of them at once, everything else free to answer. Beside each stand random others
of the same layer, position and about the same activation (experiments.py), so that only the choice differs. What is measured is the
change of the weighted targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...saes.errors import UserError
from ..experiment.cautions import agreement_cautions, control_cautions, graph_cautions, shortcut_cautions
from ..experiment.edits import Catalogue
from ..experiment.effects import Outcome, measure
from ..experiment.experiments import controls
from ..experiment.statistics import Agreement, agreement
from ..experiment.validation import _plain
from ..graph import Graph, Node
from ..origin import same_origin
from ..parts import parts
from ..trace import prompt_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

APART = 24  # features up to which each gets controls of its own: they cost five runs each


@dataclass(frozen=True)
class Selection:
    """Predicted and measured changes of the weighted targets when the chosen features are ablated (negative: the targets fall)."""

    nodes: tuple[int, ...]
    """Indices into graph.nodes."""
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    """Of each feature alone."""
    node_controls: tuple[tuple[float, ...], ...]
    """What matched others of each feature do alone; empty tuples where there are none, or for more than 24 features."""
    top_predicted: float
    top_measured: float
    """All of them together."""
    control_measured: tuple[float, ...]
    """Matched random selections, each together."""
    single: Agreement | None
    """Of predictions and measurements one at a time; None for fewer than 3 features."""
    warnings: tuple[str, ...]

    @property
    def spearman(self) -> float:
        """Rank correlation of predicted and measured; NaN for fewer than 3 features."""
        return self.single.spearman if self.single else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval over resampled features."""
        return self.single.spearman_interval if self.single else (float("nan"), float("nan"))

    def to_dict(self) -> dict[str, Any]:
        """JSON data with the names that `Validation.to_dict` has; numbers that are not finite become null."""
        return _plain(asdict(self) | {"spearman": self.spearman, "interval": self.interval})

    def __str__(self) -> str:
        random = ", ".join(f"{value:+.2f}" for value in self.control_measured) or "none"
        lines = [
            f"{len(self.nodes)} features together: predicted {self.top_predicted:+.2f}, measured {self.top_measured:+.2f}; "
            f"matched controls {random}"
        ]
        lines += [f"one at a time: {self.single}"] if self.single else []
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def validate_nodes(
    graph: Graph, model: TransformerBridge, nodes: Sequence[int], dictionaries: Any = None, *, seed: int = 0
) -> Selection:
    """Ablate the features `nodes` (indices into graph.nodes) of `graph` in `model` and compare with its predictions.

    Costs a run of the prompt per feature, 1 for all together and about 5 controls, and for up to 24 features 5 more of
    each, batched. Raises UserError when the model or a dictionary is not the graph's, or a node is no feature.
    """
    catalogue = Catalogue(model, same_origin(graph, model, parts(dictionaries or [])))
    chosen = list(dict.fromkeys(nodes))
    wrong = [i for i in chosen if not 0 <= i < len(graph.nodes) or not graph.nodes[i].is_feature]
    if wrong or not chosen:
        raise UserError(
            f"expected features of this graph; got {wrong[0] if wrong else 'none'}; choose latents or neurons"
        )
    tokens = prompt_tokens(model, torch.tensor(graph.metadata["tokens"]))
    generator = torch.Generator().manual_seed(seed)
    features = [graph.nodes[i] for i in chosen]
    together = controls(catalogue, tokens, features, generator)
    apart = _apart(features, together) if len(chosen) <= APART else [[] for _ in features]
    sets = [[], *([node] for node in features), features, *together, *([other] for some in apart for other in some)]
    change = measure(catalogue, tokens, Outcome(graph, catalogue), sets).value[1:].tolist()
    measured, rest = change[: len(chosen)], change[len(chosen) :]
    all_measured, random, rest = rest[0], rest[1 : 1 + len(together)], rest[1 + len(together) :]
    own = []
    for some in apart:
        own.append(tuple(rest[: len(some)]))
        rest = rest[len(some) :]
    predicted = [-node.attribution for node in features]
    single = None
    if len(chosen) >= 3:
        says, does = (torch.tensor(column, dtype=torch.float64) for column in (predicted, measured))
        single = agreement(says, does, generator)
    warnings = graph_cautions(graph) + (agreement_cautions("one at a time", single) if single else [])
    warnings += control_cautions(f"the {len(chosen)} chosen features", all_measured, random)
    warnings += shortcut_cautions(graph, tuple(chosen), tuple(predicted), tuple(measured))
    return Selection(
        tuple(chosen),
        tuple(predicted),
        tuple(measured),
        tuple(own),
        sum(predicted),
        all_measured,
        tuple(random),
        single,
        tuple(warnings),
    )


def _apart(features: list[Node], together: list[list[Node]]) -> list[list[Node]]:
    """For each feature its matched others: a control has them in the features' order, and leaves out those that have none."""
    found: list[list[Node]] = [[] for _ in features]
    for control in together:
        left = list(control)
        for place, node in enumerate(features):
            if left and (left[0].kind, left[0].layer, left[0].position, left[0].site) == (
                node.kind,
                node.layer,
                node.position,
                node.site,
            ):
                found[place].append(left.pop(0))
    return found
