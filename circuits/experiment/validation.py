"""What `validate` reports: numbers, intervals, controls and warnings, as a frozen dataclass, text or JSON data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .faithful import Faithfulness
from .statistics import Agreement, Interval


@dataclass(frozen=True)
class Pairs:
    """Feature -> feature effects of single ablations: nodes, the direct edge's and all paths' predictions, what was measured."""

    sources: tuple[int, ...]
    targets: tuple[int, ...]
    direct: tuple[float, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    agreement: Agreement
    """Of all paths' predictions with the measurements."""
    direct_agreement: Agreement


@dataclass(frozen=True)
class Reselection:
    """What freezing the selected latents left out, over (run, latent) pairs; `error`: |dactivation - dpre|^2 / |dpre|^2."""

    count: int
    dropped: float
    """Share of the latents that fell out of the support."""
    replaced: float
    """Mean share of a token's support that others took over."""
    error: float


@dataclass(frozen=True)
class Validation:
    """Predicted and measured changes of the weighted targets under ablation (negative: the targets fall)."""

    nodes: tuple[int, ...]
    """Indices into graph.nodes of the features ablated one at a time."""
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    single: Agreement
    top: int
    """How many features were ablated together."""
    top_predicted: float
    top_measured: float
    control_measured: tuple[float, ...]
    """The same for each random control matched in layer, position and size of activation."""
    path_nodes: tuple[int, ...]
    """Features of the strongest paths, ablated together."""
    path_predicted: float
    path_measured: float
    path_control_measured: tuple[float, ...]
    pairs: Pairs | None
    reselection: Reselection | None
    suspects: tuple[int, ...]
    suspect_predicted: tuple[float, ...]
    suspect_measured: tuple[float, ...]
    frozen: float
    """Worst |measured - edge| / largest |edge| with everything held: 0 but for rounding."""
    curve: Faithfulness | None
    constrained: int | None
    warnings: tuple[str, ...]

    @property
    def spearman(self) -> float:
        """Rank correlation of the single ablations."""
        return self.single.spearman

    @property
    def interval(self) -> Interval:
        """Its 95 % interval over resampled features."""
        return self.single.spearman_interval

    def to_dict(self) -> dict[str, Any]:
        """JSON data; numbers that are not finite become null."""
        return _plain(asdict(self) | {"spearman": self.spearman, "interval": self.interval})

    def __str__(self) -> str:
        lines = [f"one at a time ({len(self.nodes)} features): {self.single}"]
        if self.pairs:
            lines.append(f"feature → feature ({len(self.pairs.sources)} pairs): {self.pairs.agreement}")
        lines.append(_together(f"top {self.top}", self.top_predicted, self.top_measured, self.control_measured))
        if self.path_nodes:
            name = f"the {len(self.path_nodes)} features of the strongest paths"
            lines.append(_together(name, self.path_predicted, self.path_measured, self.path_control_measured))
        if self.curve:
            lines.append(str(self.curve))
        if self.reselection:
            lines.append(
                f"re-selection ({self.reselection.count} latents): {self.reselection.dropped:.0%} dropped out, "
                f"{self.reselection.replaced:.0%} of the support replaced, error {self.reselection.error:.2f}"
            )
        lines.append(f"check of the code, everything frozen: off by {self.frozen:.1e}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def _together(name: str, predicted: float, measured: float, controls: Sequence[float]) -> str:
    random = ", ".join(f"{value:+.2f}" for value in controls) or "none (no other active features to match)"
    return f"{name} together: predicted {predicted:+.2f}, measured {measured:+.2f}; matched controls {random}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
