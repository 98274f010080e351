"""How a noun draws itself in a notebook: `_repr_html_ = drawn` in its class.

The drawing is found when it is needed, among the entry points of the group `unweave.drawings` (the class's name → a function from
the object to HTML), so that a noun does not depend on the views of it. A notebook must show something even when the
object is broken or the views are not installed: then it is the object's `repr`, and if that fails too, the error.
"""

from __future__ import annotations

import html
from importlib.metadata import entry_points
from typing import Any

GROUP = "unweave.drawings"


def drawn(thing: Any) -> str:
    """HTML of an object for a notebook; never raises."""
    try:
        for entry in entry_points(group=GROUP, name=type(thing).__name__):
            return entry.load()(thing)
    except Exception as error:
        return _text(thing, f"not drawn: {type(error).__name__}: {error}")
    return _text(thing)


def _text(thing: Any, note: str = "") -> str:
    try:
        text = repr(thing)
    except Exception as error:
        text = f"<{type(thing).__name__}, whose repr failed: {type(error).__name__}: {error}>"
    return "".join(f"<pre>{html.escape(part[:10_000])}</pre>" for part in (text, note) if part)
