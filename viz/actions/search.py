"""Finding latents by label, example text, token, logit, or a text that they fire on; and what one does in its examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...saes.errors import UserError
from ..text import readable
from .registry import action

if TYPE_CHECKING:
    from ..live import Live

KINDS = ("any", "label", "text", "token", "logit")
MOST = 20_000  # latents that one answer names, best first
LONGEST = 400  # characters of a query


@action("search")
def search(live: Live, body: dict[str, Any]) -> dict[str, Any]:
    """The latents that a `query` of some `kind` finds, best first; `total` counts those left out too, `why` says how it looked.

    UserError for an unknown kind or a query that is no text or too long.
    """
    from ...saes.latents.find.search import search as find

    kind, query = body.get("kind", "any"), body.get("query")
    if kind not in KINDS:
        raise UserError(f"expected a kind of search ({', '.join(KINDS)}); got {readable(kind, 40)!r}; choose one")
    if not isinstance(query, str) or len(query) > LONGEST:
        raise UserError(f"expected a query of at most {LONGEST} characters; shorten it")
    found = find(live.store(body.get("store")), query, kind)
    return {"latents": found.latents[:MOST].tolist(), "total": int(found.total), "why": readable(found.why, 400)}


@action("fires")
def fires(live: Live, body: dict[str, Any]) -> Any:
    """The latents that fire on a `text`, strongest first: `latents`, `total`, `why`, as `search` answers."""
    return live.fires(body.get("store"), body.get("text"))


@action("effects")
def effects(live: Live, body: dict[str, Any]) -> Any:
    """What a `latent` does to the predictions in its examples (those at `rows`, or the strongest): see latents/effects.py."""
    return live.effects(body)
