"""A workspace from folders, told apart by what is in them.

| folder with | is |
|---|---|
| `features.safetensors` | a FeatureStore |
| `diff.safetensors` | a Diff |
| `cfg.json` | a dictionary (and any other form that `Dictionary.load` reads) |
| `dictionaries/`, `features/`, `diffs/` | a folder of such folders, as `unweave demo` leaves |

The dictionary of a store is looked for among what was given, in the folder that the store names, and beside it; it counts only if its
weights have the fingerprint that the store says. Only what whoever starts the session names is opened here; tools open nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...saes import Dictionary, FeatureStore, UserError, load_model, read_documents
from ..diffing import Diff

if TYPE_CHECKING:
    from .workspace import Workspace

FOLDERS = ("dictionaries", "features", "diffs")


def open_workspace(
    paths: Sequence[str | Path],
    model: Any = None,
    base: Any = None,
    text: str | Path | Sequence[str | Path] = (),
    device: str | None = None,
    **more: Any,
) -> Workspace:
    """Open everything; `model` and `base` are bridges or names, left out: the model that the first dictionary or store names.

    `text`: files or folders of documents, or "bundled". UserError for what is of no known kind, or a model that nothing names.
    """
    from .workspace import Workspace

    found = Found()
    for path in paths:
        found.add(Path(path))
    found.dictionaries_of_stores()
    named = model if model is not None else found.model_name()
    models = {"target": _model(named, device)} | ({} if base is None else {"base": _model(base, device)})
    corpus = list(read_documents(text)) if text else []
    return Workspace(models, found.dictionaries, found.stores, found.diffs, corpus, **more)


def _model(given: Any, device: str | None) -> Any:
    return load_model(str(given), device) if isinstance(given, str | Path) else given


class Found:
    """What the folders hold, by names."""

    def __init__(self) -> None:
        self.dictionaries: dict[str, Dictionary] = {}
        self.stores: dict[str, FeatureStore] = {}
        self.diffs: dict[str, Diff] = {}

    def add(self, path: Path) -> None:
        """One folder; UserError for what is none of the kinds."""
        if not path.is_dir():
            raise UserError(
                f"expected a folder of a dictionary, a FeatureStore or a Diff; {path} is none; check the path"
            )
        if any((path / name).exists() for name in ("features.safetensors", "unfinished.json")):
            put(self.stores, path.resolve().name, FeatureStore.open(path))
        elif (path / "diff.safetensors").exists():
            put(self.diffs, path.resolve().name, Diff.open(path))
        elif any((path / name).is_dir() for name in FOLDERS) and not (path / "cfg.json").exists():
            for child in sorted(item for name in FOLDERS for item in path.glob(f"{name}/*") if item.is_dir()):
                if not child.name.startswith("."):
                    self.add(child)
        else:
            put(self.dictionaries, path.resolve().name, Dictionary.load(path))

    def dictionaries_of_stores(self) -> None:
        """Add the dictionaries that stores were collected with, where they are found."""
        for name, store in self.stores.items():
            about = store.manifest.get("dictionary")
            wanted = about.get("fingerprint") if isinstance(about, dict) else None
            if wanted is None or wanted in {each.fingerprint for each in self.dictionaries.values()}:
                continue
            for place in _places(store, about):
                own = _loaded(place, wanted)
                if own is not None:
                    put(self.dictionaries, name, own)
                    break

    def model_name(self) -> str:
        """The model that the first dictionary or store names; UserError where none does."""
        about = [each.metadata.get("model") for each in self.dictionaries.values()]
        about += [each.manifest.get("model") for each in self.stores.values()]
        names = [each.get("name") for each in about if isinstance(each, dict)]
        known = next((name for name in names if isinstance(name, str) and name), None)
        if known is None:
            raise UserError("expected a model, or folders that name one; got neither; name the model")
        return known


def _places(store: FeatureStore, about: Any) -> list[Path]:
    named = about.get("folder")
    found = [Path(named), store.folder / named] if isinstance(named, str) and named and "\0" not in named else []
    return [*found, store.folder.parent.parent / "dictionaries" / store.folder.name]


def _loaded(place: Path, fingerprint: str) -> Dictionary | None:
    """The dictionary in a folder if it has those weights."""
    try:
        own = Dictionary.load(place) if (place / "cfg.json").is_file() else None
    except (UserError, OSError):
        return None
    return own if own is not None and own.fingerprint == fingerprint else None


def put(shelf: dict[str, Any], name: str, thing: Any) -> None:
    """A thing under a name (its folder's) in plain letters, with a number where that is taken."""
    plain = re.sub(r"[^\w.-]+", "-", name)[:60] or "unnamed"
    number = 1
    while (called := plain if number == 1 else f"{plain}-{number}") in shelf:
        number += 1
    shelf[called] = thing
