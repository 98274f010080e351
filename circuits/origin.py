"""Does a graph belong to this model and these dictionaries? Asked before anything is measured or traced again for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..saes.errors import UserError
from ..saes.models import model_info
from .graph import Graph
from .parts import Part

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NEEDED = ("tokens", "token_strings", "targets", "settings", "model")


def same_origin(graph: Graph, model: TransformerBridge, given: list[Part]) -> list[Part]:
    """Those of the given parts that the graph was traced with.

    UserError when one is missing, when the model has other weights, or when the graph does not say what it was traced with.
    """
    about, mine = graph.metadata, model_info(model)
    absent = [name for name in NEEDED if name not in about]
    if absent:
        raise UserError(
            f"expected a graph made by trace; this one's metadata lacks {' and '.join(absent)}; trace the prompt again"
        )
    if about["model"].get("fingerprint") != mine.fingerprint:
        raise UserError(
            f"expected the model that the graph was traced with ({about['model'].get('name')}); "
            f"got {mine.name} with other weights; load that one"
        )
    known = {reference["fingerprint"]: reference["site"] for reference in about.get("dictionaries", [])}
    missing = set(known) - {part.fingerprint for part in given}
    if missing:
        names = ", ".join(sorted(known[name] for name in missing))
        raise UserError(f"expected the dictionaries that the graph was traced with; none given for {names}; pass them")
    return [part for part in given if part.fingerprint in known]
