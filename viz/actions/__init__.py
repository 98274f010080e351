"""What a live host does when the page asks: labels, searches, prompts, experiments."""

from .registry import ACTIONS, STREAMS, act

__all__ = ["ACTIONS", "STREAMS", "act"]
