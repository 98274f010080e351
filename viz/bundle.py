"""The front end as one script and one style sheet.

ES modules cannot import each other from `file://`, and fifty requests are slow, so `bundle` turns the modules of `static/` into one
script: each becomes a function that returns its exports, in the order of their imports. It understands what static/ uses:
`import { a, b } from "../base/x.js";` on one line, and `export function|const|class`. A module is known by its file's name, whatever
folder it lies in.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

_STATIC = Path(__file__).parent / "static"
_IMPORT = re.compile(r'^import \{([^}]*)\} from "\.{1,2}/(?:[\w./-]*/)?([\w-]+\.js)";\n', re.MULTILINE)
_DECLARED = re.compile(r"^export (?:async )?(?:function|const|class) (\w+)", re.MULTILINE)


def assets() -> dict[str, Path]:
    """The front end's files by their names."""
    return {path.name: path for path in sorted(_STATIC.rglob("*")) if path.is_file()}


def static(name: str) -> str:
    """The text of one file of the front end."""
    return assets()[name].read_text("utf-8")


def style() -> str:
    """All style sheets, the common one first; made anew when a file has changed."""
    return _style(_changed())


@lru_cache(maxsize=2)
def _style(_changed: int) -> str:
    names = sorted((name for name in assets() if name.endswith(".css")), key=lambda name: (name != "style.css", name))
    return "\n".join(static(name) for name in names)


def bundle(entry: str) -> str:
    """The module `entry` and all that it imports as one classic script; made anew when a file has changed."""
    return _bundle(entry, _changed())


def _changed() -> int:
    return max(path.stat().st_mtime_ns for path in assets().values())


@lru_cache(maxsize=2)
def _bundle(entry: str, _changed: int) -> str:
    files, order = assets(), list[str]()
    sources: dict[str, str] = {}

    def visit(name: str) -> None:
        if name not in sources:
            sources[name] = files[name].read_text("utf-8")
            for _, needed in _IMPORT.findall(sources[name]):
                visit(needed)
            order.append(name)

    visit(entry)
    parts = []
    for name in order:
        body = _IMPORT.sub(lambda match: f'const {{{match[1]}}} = modules["{match[2]}"];\n', sources[name])
        exports = ", ".join(_DECLARED.findall(body))
        body = re.sub(r"^export ", "", body, flags=re.MULTILINE)
        parts.append(f'modules["{name}"] = (() => {{\n{body}\nreturn {{ {exports} }};\n}})();')
    return '"use strict";\nconst modules = {};\n' + "\n".join(parts) + "\n"


def plotly_source() -> str:
    """Plotly's code in a form that may stand inside a script element."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script").replace("<!--", "<\\!--")
