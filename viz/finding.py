"""Which dictionary and model a store or graph was made with, and where they are.

A dictionary is known by its fingerprint. It is looked for among those that were given, then in the folder that the manifest
names (as it stands, or relative to the store), then in the opened runs, then where `unweave demo` puts it (dictionaries/NAME
beside features/NAME). What is found counts only if its weights have the fingerprint; a folder of other weights is passed by.
A manifest can come from anybody: it is asked for a path and a name, and nothing that it leads to is ever executed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..circuits import Graph, open_dictionaries, parts
from ..saes import Dictionary, FeatureStore
from ..saes.errors import UserError
from .text import readable
from .things import Things


def reference_of(store: FeatureStore) -> dict[str, Any]:
    """What a store's manifest says of its dictionary, an empty dict where it says nothing."""
    about = store.manifest.get("dictionary")
    return about if isinstance(about, dict) else {}


def places_of(things: Things, store: FeatureStore) -> list[Path]:
    """Folders in which the dictionary of a store may be, in the order in which they are tried."""
    about = reference_of(store)
    found = list(_named(about.get("folder"), store.folder))
    found += [*_runs(things), store.folder.parent.parent / "dictionaries" / store.folder.name]
    return [folder for folder in dict.fromkeys(found) if os.path.isfile(folder / "cfg.json")]


def _named(folder: Any, beside: Path) -> Iterator[Path]:
    if isinstance(folder, str) and folder:
        yield Path(folder)
        yield beside / folder


def _runs(things: Things) -> list[Path]:
    return [run.folder for run in things.runs.values() if run.folder is not None]


def open_dictionary(things: Things, store: FeatureStore) -> Dictionary:
    """The dictionary of a store; UserError with the remedy when it is in none of the places, or of other weights there."""
    wanted, tried = reference_of(store).get("fingerprint"), []
    for folder in places_of(things, store):
        try:
            dictionary = Dictionary.load(folder)
        except UserError as error:
            tried.append(f"{folder} ({error})")
            continue
        if wanted == dictionary.fingerprint:
            return dictionary
        tried.append(f"{folder} (other weights)")
    raise UserError(
        f"expected the dictionary of the store {store.folder.name}; found it nowhere"
        + (f" ({readable('; '.join(tried), 300)})" if tried else "")
        + "; open its folder too: unweave show STORE DICTIONARY_FOLDER, or show(store, dictionary_folder)"
    )


def references_of(graph: Graph) -> list[dict[str, Any]]:
    """What a graph's metadata say of the dictionaries that it was traced with."""
    found = graph.metadata.get("dictionaries")
    return [about for about in found if isinstance(about, dict)] if isinstance(found, list) else []


def folders_of(things: Things, graph: Graph) -> list[Path]:
    """Folders in which the dictionaries of a graph may be."""
    beside = [Path(path).parent for path in getattr(things, "files", {}).values()] or [Path()]
    named = [about.get("folder") for about in references_of(graph)]
    found = [
        place
        for folder in dict.fromkeys(map(str, filter(None, named)))
        for each in beside
        for place in _named(folder, each)
    ]
    # os.path answers no where Path would raise: for names too long, unreadable or with a NUL.
    return [folder for folder in dict.fromkeys([*found, *_runs(things)]) if os.path.isdir(folder)]


def open_parts(things: Things, graph: Graph, given: list[Any]) -> list[Any]:
    """The dictionaries that a graph was traced with; UserError naming the sites of those that are nowhere."""
    wanted = {str(about.get("fingerprint")): about.get("site") for about in references_of(graph)}
    found: dict[str, Any] = {}

    def take(dictionaries: Any) -> None:
        for part in parts(dictionaries):
            if part.fingerprint in wanted:
                found.setdefault(part.fingerprint, part)

    take(given)
    for folder in folders_of(things, graph):
        if len(found) < len(wanted):
            try:
                take(open_dictionaries(folder))
            except UserError:
                continue
    missing = sorted(str(site) for fingerprint, site in wanted.items() if fingerprint not in found)
    if missing:
        raise UserError(
            f"expected the dictionaries that the graph was traced with; found none for {readable(', '.join(missing), 200)}; "
            "open their folders too: unweave show FILE.graph DICTIONARY_FOLDER …"
        )
    return list(found.values())


def model_name(metadata: Any) -> str | None:
    """The name of the model in a manifest or a graph's metadata, None where there is none."""
    about = metadata.get("model") if isinstance(metadata, dict) else None
    name = about.get("name") if isinstance(about, dict) else None
    return name if isinstance(name, str) and 0 < len(name) <= 400 and "\0" not in name else None


def check_weights(metadata: Any, info: Any) -> None:
    """UserError unless a model is the one that a manifest or graph names by its weights (one that names none is accepted)."""
    about = metadata.get("model")
    known = about.get("fingerprint") if isinstance(about, dict) else None
    if known is not None and known != info.fingerprint:
        raise UserError(
            f"expected the model {readable(about.get('name'), 80)} (weights {readable(known, 8)}); got {info.name} (weights "
            f"{info.fingerprint[:8]}); give the model that it was made with: show(…, model=model)"
        )
