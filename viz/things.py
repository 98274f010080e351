"""Open what a user points at, by kind: stores, graphs, diffs, audits, training runs, and the folder of `unweave demo`.

| given | recognised by |
|---|---|
| FeatureStore, or its folder | `features.safetensors` |
| Graph, or its file | a file (`.graph`, or JSON of Neuronpedia and circuit-tracer) |
| Diff, or its folder | `diff.safetensors` |
| folder of `unweave audit` | `transcript.jsonl` |
| run or dictionary folder | `cfg.json`, `config.json` or `metrics.jsonl` |
| folder of `unweave demo` | `demo.json`, `dictionaries/` or `features/` |

A folder of the demo need not be finished: what is there already is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audit.diffing.result import Diff
from ..circuits import Graph, open_graph
from ..saes import FeatureStore
from ..saes.errors import UserError
from ..saes.io import read_json
from .audits import Audit, is_audit, read_audit

ACCEPTED = (
    "a FeatureStore, a Graph, a Diff, a .graph or .json file, a FeatureStore, Diff, audit, dictionary or run folder, "
    "or a folder made by `unweave demo`"
)


@dataclass
class Run:
    """A training run's folder as data: the rows of metrics.jsonl, its configs, and its evaluation where there is one.

    A run that is still training writes on: `fresh()` is the run as it is now.
    """

    rows: list[dict[str, Any]]
    about: dict[str, Any]
    folder: Path | None = None

    @property
    def is_finished(self) -> bool:
        """True once the dictionary stands in the folder."""
        return self.folder is None or (self.folder / "cfg.json").exists()

    def fresh(self) -> Run:
        """Read the folder again, as long as there is one."""
        return self if self.folder is None or not self.folder.exists() else read_run(self.folder)


@dataclass
class Things:
    """Everything that one page or server shows, each under a name; `numbers` are the facts of the whole (demo.json)."""

    title: str = "Unweave"
    stores: dict[str, FeatureStore] = field(default_factory=dict)
    graphs: dict[str, Graph] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    """The file of each graph that was opened from one, by the graph's name."""
    diffs: dict[str, Diff] = field(default_factory=dict)
    audits: dict[str, Audit] = field(default_factory=dict)


def open_things(things: Sequence[Any], *, title: str | None = None) -> Things:
    """Open each of `things`; UserError for what is of no known kind or does not exist."""
    opened = Things()
    for thing in things:
        if isinstance(thing, Things):
            _merge(opened, thing)
        elif isinstance(thing, (str, Path)):
            _open_path(opened, Path(thing))
        elif isinstance(thing, Graph):
            _put(opened.graphs, "circuit", thing)
        elif isinstance(thing, FeatureStore):
            _put(opened.stores, thing.folder.name, thing)
        elif isinstance(thing, Diff):
            _put(opened.diffs, thing.folder.name if thing.folder else "diff", thing)
        else:
            raise UserError(f"expected {ACCEPTED}; got {type(thing).__name__}; open or save it first")
    if not any((opened.stores, opened.graphs, opened.diffs, opened.audits, opened.runs, opened.numbers)):
        raise UserError(f"expected at least one of {ACCEPTED}; got nothing to show; give one")
    opened.title = title or opened.title
    return opened


def _merge(into: Things, other: Things) -> None:
    into.title = other.title
    for name in ("stores", "graphs", "runs", "diffs", "audits"):
        for key, thing in getattr(other, name).items():
            placed = _put(getattr(into, name), key, thing)
            if name == "graphs" and key in other.files:
                into.files[placed] = other.files[key]
    into.numbers |= other.numbers


def _put(shelf: dict[str, Any], name: str, thing: Any) -> str:
    """Put a thing under its name, or a numbered one where that is taken; returns the name."""
    free = next(number for number in range(1, len(shelf) + 2) if _numbered(name, number) not in shelf)
    shelf[_numbered(name, free)] = thing
    return _numbered(name, free)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name} ({number})"


def _open_path(opened: Things, path: Path) -> None:
    if not path.exists():
        raise UserError(f"expected {ACCEPTED}; {path} does not exist; check the path")
    if path.is_file():
        opened.files[_put(opened.graphs, path.stem, open_graph(path))] = path
    elif any((path / name).exists() for name in ("features.safetensors", "unfinished.json")):
        _put(opened.stores, path.name, FeatureStore.open(path))
    elif (path / "diff.safetensors").exists():
        _put(opened.diffs, path.name, Diff.open(path))
    elif is_audit(path):
        _put(opened.audits, path.name, read_audit(path))
    elif any((path / name).exists() for name in ("cfg.json", "config.json", "metrics.jsonl")):
        _put(opened.runs, path.name, read_run(path))
    elif any((path / name).exists() for name in ("demo.json", "dictionaries", "features")):
        _open_demo(opened, path)
    else:
        raise UserError(f"expected {ACCEPTED}; the folder {path} is none of these; check the path")


def _open_demo(opened: Things, folder: Path) -> None:
    for part in ("dictionaries", "features"):
        for child in sorted(
            item for item in folder.glob(f"{part}/*") if item.is_dir() and not item.name.startswith(".")
        ):
            _open_path(opened, child)
    for graph in sorted(folder.glob("*.graph")):
        _open_path(opened, graph)
    if (folder / "demo.json").exists():
        opened.numbers |= read_json(folder / "demo.json", "the numbers of a demo")
        opened.title = "Unweave demo"


def read_run(folder: Path) -> Run:
    """Read a run's folder; a last line cut off by a killed writer is left out, other broken lines are a UserError."""
    about = {
        name: read_json(folder / f"{name}.json", f"the {name} of a run")
        for name in ("config", "cfg", "metrics")
        if (folder / f"{name}.json").exists()
    }
    text = (folder / "metrics.jsonl").read_text("utf-8", "replace") if (folder / "metrics.jsonl").exists() else ""
    lines = text.removesuffix("\n").split("\n") if text else []  # splitlines() would also part a string at U+2028
    rows = []
    for place, line in enumerate(lines, 1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif place < len(lines):
            raise UserError(
                f"expected one JSON object a line in {folder / 'metrics.jsonl'}; got something else "
                f"in line {place}; remove the line"
            )
    return Run(rows, about, folder)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one level with dotted names: `{"ce": {"clean": 3}}` is `{"ce.clean": 3}`."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return result
