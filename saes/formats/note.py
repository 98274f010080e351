"""What other libraries' files have no place for, kept in their JSON under `unweave`: their readers leave out keys they do not know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dictionary_config import DictionaryConfig
from ..errors import UserError
from .saelens_read import checked
from .shape import from_json, to_json

if TYPE_CHECKING:
    from ..dictionary import Dictionary


def note_of(dictionary: Dictionary) -> dict[str, Any]:
    """The config and metadata of a dictionary."""
    return {"config": to_json(dictionary.config, dictionary.layout), "metadata": dictionary.metadata}


def read_note(data: dict[str, Any], path: Path) -> tuple[DictionaryConfig | None, dict[str, Any]]:
    """What `note_of` wrote, (None, {}) where there is no note; UserError for one that is malformed."""
    note = data.get("unweave")
    if note is None:
        return None, {}
    if not isinstance(note, dict) or not isinstance(note.get("metadata", {}), dict):
        raise UserError(f"expected config and metadata under unweave in {path}; got {str(note)[:60]}; remove the key")
    try:
        return from_json(note.get("config"), str(path))[0], checked(note.get("metadata", {}))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"expected config and metadata under unweave in {path}; got {error}; remove the key") from error


def agreed(dictionary: Dictionary, config: DictionaryConfig | None, path: Path) -> Dictionary:
    """The dictionary, after comparing its config with the note's."""
    if config is not None and dictionary.config != config:
        raise UserError(
            f"expected the config under unweave in {path} to be that of its weights ({dictionary.config}); got {config}; the "
            "files were changed: remove the key"
        )
    return dictionary


def refuse(reasons: dict[str, bool], form: str) -> None:
    """UserError with the first reason that holds: why a form cannot hold a dictionary."""
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"{form} cannot hold this dictionary: {reason}; save it in our own form")
