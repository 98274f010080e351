"""`show`: one verb for the browser, the notebook and the file."""

from __future__ import annotations

import html
import sys
from pathlib import Path
from typing import Any

from .things import Things, open_things


class Embedded:
    """What `show` returns in a notebook: the self-contained page in a sandboxed frame.

    The frame may run the page's own scripts; it shares no origin with the notebook and cannot reach into it.
    """

    def __init__(self, things: Things, height: int = 720):
        self.things, self.height = things, height

    def _repr_html_(self) -> str:
        from .page import page_html

        page = html.escape(page_html(self.things, cards=60), quote=True)
        # Character references, so that the scripts keep their hashes whatever encoding the notebook is kept in.
        page = page.encode("ascii", "xmlcharrefreplace").decode()
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="Unweave" width="100%" height="{self.height}" '
            'style="border: 1px solid #8884; border-radius: 6px"></iframe>'
        )

    def __repr__(self) -> str:
        names = [*self.things.stores, *self.things.graphs, *self.things.runs]
        return f"Embedded({', '.join(names)}: shown where HTML can be; use to='page.html' for a file)"


def in_notebook() -> bool:
    """True in a Jupyter kernel (not in a terminal's IPython)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and shell.__class__.__name__ == "ZMQInteractiveShell"


def show(*things: Any, to: str | Path | None = None, port: int = 0, open: bool = True) -> Any:
    """Look at feature stores, graphs, training runs and folders of them.

    `things`: FeatureStore, Graph, or paths: a store's folder, a `.graph` file, a run's folder, a folder of
    `unweave demo`. With `to` one self-contained HTML file is written and its path returned; in Jupyter an object that
    draws itself comes back; otherwise a local server runs until Ctrl-C. UserError for what is of no known kind.
    """
    opened = open_things(things)
    if to is not None:
        from .page import write_page

        return write_page(to, opened)
    if in_notebook():
        return Embedded(opened)
    from .server import serve

    return serve(opened, port, open)
