"""What people say of latents: saved with history, undone, looked back at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...saes import FeatureStore
from ...saes.errors import UserError
from ..answers.cards import mark_payload
from ..text import readable
from .registry import action

if TYPE_CHECKING:
    from ..live import Live

FIELDS = {"label": "label", "note": "note", "tags": "tags", "star": "is_starred"}  # of the body → of Labels.set
MOST_CHANGES = 200


@action("label")
def label(live: Live, body: dict[str, Any]) -> dict[str, Any]:
    """Change what is given of `label`, `note`, `tags`, `star`, or with `undo` take the latest change back.

    Answers with what stands then; `undone` says which fields an undo brought back (none where there was nothing to undo).
    UserError for a latent that is not there, a text that is too long, or labels that cannot be written.
    """
    store, latent = _asked(live, body)
    labels = store.labels
    if body.get("undo"):
        change = labels.undo(latent)
        undone = [] if change is None else [_name(field) for field in change.after]
        return {"mark": mark_payload(labels.get(latent)), "undone": undone}
    given = {FIELDS[name]: _checked(name, body[name]) for name in FIELDS if name in body}
    if not given:
        raise UserError(f"expected any of {', '.join(FIELDS)} or undo; got none of them; give what shall change")
    return {"mark": mark_payload(labels.set(latent, **given))}


@action("history")
def history(live: Live, body: dict[str, Any]) -> dict[str, Any]:
    """The changes of one latent, the latest first: when, by whom, and each field before and after."""
    store, latent = _asked(live, body)
    changes = store.labels.history(latent)
    gone = {change.undoes for change in changes}
    return {
        "total": len(changes),
        "changes": [
            {
                "time": readable(change.time),
                "author": readable(change.author),
                "is_undo": change.undoes is not None,
                "is_undone": change.number in gone,
                "fields": [
                    {
                        "name": _name(field),
                        "before": _shown(change.before.get(field)),
                        "after": _shown(change.after.get(field)),
                    }
                    for field in change.after
                ],
            }
            for change in changes[:MOST_CHANGES]
        ],
    }


def _asked(live: Live, body: dict[str, Any]) -> tuple[FeatureStore, int]:
    """The store and the latent of a body; UserError unless the body names a latent that is there."""
    store, latent = live.store(body.get("store")), body.get("latent")
    if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < len(store):
        raise UserError(
            f"expected a latent in [0, {len(store)}); got {readable(latent, 40)!r}; choose one of the store"
        )
    return store, latent


def _checked(name: str, value: Any) -> Any:
    """A value of the kind that the field has; what else is asked of it, Labels checks."""
    is_right = {
        "label": value is None or isinstance(value, str),
        "note": value is None or isinstance(value, str),
        "tags": isinstance(value, list) and all(isinstance(tag, str) for tag in value),
        "star": isinstance(value, bool),
    }
    if not is_right[name]:
        kind = {"tags": "a list of texts", "star": "true or false"}.get(name, "text")
        raise UserError(f"expected {kind} as {name}; got {type(value).__name__}; give that")
    return value


def _name(field: str) -> str:
    return next((name for name, inner in FIELDS.items() if inner == field), readable(field, 40))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(readable(item, 80) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{readable(key, 40)} {readable(inner, 40)}" for key, inner in value.items())
    return "" if value is None else readable(value, 400)
