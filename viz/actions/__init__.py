"""What a live host does when the page asks: labels, searches, prompts, experiments."""

from . import graphs, labels, maps, prompts, search  # noqa: F401  (each registers its actions)
from .registry import ACTIONS, STREAMS, abilities, act, run_stream

__all__ = ["ACTIONS", "STREAMS", "abilities", "act", "run_stream"]
