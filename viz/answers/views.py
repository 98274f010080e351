"""The view of a circuit that a reader saved: pins, groups, threshold, as JSON beside the graph's own file.

`france.graph` has `france.view.json`. A view names nodes by number and by what they are, so that a graph traced again never
shows the pins of another: what does not fit any more is left out. Keys are in docs/formats.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...circuits import Graph
from ...saes.errors import UserError
from ...saes.io import read_json, write_json
from ..text import readable

if TYPE_CHECKING:
    from ..things import Things

FORMAT, VERSION = "unweave_view", 1
PINS, GROUPS = 500, 100  # of one view, at most
NUMBERS = {"keep": 100, "strongest": 100_000, "drawn": 100_000}  # settings of the picture and their largest values
LARGEST = 1 << 20  # bytes of a view's file


def graph_file(things: Things, place: int) -> Path | None:
    """The file that the circuit at a place was opened from; None for one from memory."""
    names = list(things.graphs)
    found = getattr(things, "files", {}).get(names[place]) if 0 <= place < len(names) else None
    return None if found is None else Path(found)


def view_file(graph: Path) -> Path:
    """Where the view of a graph's file is kept: in its folder, under its name."""
    return graph.with_name(f"{graph.name.removesuffix('.gz').rsplit('.', 1)[0]}.view.json")


def read_view(graph: Graph, file: Path | None) -> dict[str, Any]:
    """The saved view less what no longer fits the graph; {} where there is none, `why` where it cannot be read."""
    if file is None or not view_file(file).is_file():
        return {}
    try:
        if view_file(file).stat().st_size > LARGEST:
            raise UserError(f"expected a view of at most {LARGEST >> 20} MiB; got more; remove {view_file(file).name}")
        data = read_json(view_file(file), "a saved view")
        if data.get("format") != FORMAT or not isinstance(data.get("nodes"), dict):
            raise UserError(f"expected a saved view in {view_file(file).name}; got another file; remove it")
        return _shown(graph, data)
    except (UserError, OSError, ValueError, RecursionError) as error:
        return {"why": readable(error, 300)}


def _shown(graph: Graph, data: dict[str, Any]) -> dict[str, Any]:
    """What of a file's view fits the graph; anything of a wrong form is left out."""
    known = data["nodes"]

    def fits(item: Any) -> bool:
        return type(item) is int and 0 <= item < len(graph) and known.get(str(item)) == _what(graph, item)

    pins = [item for item in _list(data.get("pins"))[:PINS] if fits(item)]
    groups = [
        [readable(group[0], 80), *(item for item in group[1:PINS] if fits(item))]
        for group in _list(data.get("groups"))[:GROUPS]
        if isinstance(group, list) and group
    ]
    numbers = {
        name: data[name] for name, most in NUMBERS.items() if type(data.get(name)) is int and 0 <= data[name] <= most
    }
    return {"pins": pins, "groups": [group for group in groups if len(group) > 1], **numbers}


def save_view(graph: Graph, file: Path | None, view: Any) -> Path:
    """Write a view beside the graph's file, atomically. UserError for a graph from memory, a view that does not fit, a folder
    that cannot be written."""
    if file is None:
        raise UserError(
            "expected a circuit that was opened from a file; this one is in memory only; save it with graph.save(path) and show that"
        )
    data = _checked(graph, view)
    mentioned = sorted({*data["pins"], *(item for group in data["groups"] for item in group[1:])})
    nodes = {str(item): _what(graph, item) for item in mentioned}
    path = view_file(file)
    try:
        write_json(path, {"format": FORMAT, "version": VERSION, **data, "nodes": nodes})
    except OSError as error:
        raise UserError(
            f"expected to write {path.name} beside the graph; {error}; copy the graph to a folder of yours"
        ) from error
    return path


def _checked(graph: Graph, view: Any) -> dict[str, Any]:
    if not isinstance(view, dict):
        raise UserError(f"expected a view as an object; got {type(view).__name__}; send pins and groups")
    pins, groups = _list(view.get("pins")), _list(view.get("groups"))
    if len(pins) > PINS or len(groups) > GROUPS:
        raise UserError(
            f"expected at most {PINS} pins and {GROUPS} groups; got {len(pins)} and {len(groups)}; pin fewer"
        )
    named = []
    for group in groups:
        if not isinstance(group, list) or len(group) < 2 or not isinstance(group[0], str):
            raise UserError(f"expected groups as [label, node, …]; got {readable(group, 60)}; name nodes")
        named.append([readable(group[0], 80), *group[1 : PINS + 1]])
    for item in [*pins, *(item for group in named for item in group[1:])]:
        if type(item) is not int or not 0 <= item < len(graph):
            raise UserError(f"expected nodes from 0 to {len(graph) - 1}; got {readable(item, 40)}; see graph.nodes")
    numbers = {}
    for name, most in NUMBERS.items():
        if name in view:
            if type(view[name]) is not int or not 0 <= view[name] <= most:
                raise UserError(f"expected {name} from 0 to {most}; got {readable(view[name], 40)}; move the slider")
            numbers[name] = view[name]
    return {"pins": list(dict.fromkeys(pins)), "groups": named, **numbers}


def _what(graph: Graph, item: int) -> list[Any]:
    one = graph.nodes[item]
    return [one.kind, one.layer, one.position, one.index]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
