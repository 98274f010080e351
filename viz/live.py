"""What a live host works with: the open things, and the model and dictionaries behind them, loaded when first needed."""

from __future__ import annotations

from typing import Any

from ..circuits import Graph
from ..saes import FeatureStore
from .answers.registry import nth
from .things import Things


class Live:
    """The open things, for actions."""

    def __init__(self, things: Things, model: Any = None):
        self.things, self.model = things, model

    def store(self, place: Any) -> FeatureStore:
        """The store at a place; KeyError where there is none."""
        return nth(list(self.things.stores.values()), place)

    def graph(self, place: Any) -> Graph:
        """The graph at a place; KeyError where there is none."""
        return nth(list(self.things.graphs.values()), place)

    def abilities(self) -> set[str]:
        """Names of the actions and streams that can be done here."""
        return {"label", "history", "search", "view", "map"}
