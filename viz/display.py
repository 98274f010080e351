"""`show`: one verb for the browser, the notebook and the file."""

from __future__ import annotations

import html
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .things import Things, open_things

if TYPE_CHECKING:
    from .tools import Audited


class Embedded:
    """What `show` returns in a notebook: the self-contained page in a sandboxed frame.

    The frame may run the page's own scripts; it shares no origin with the notebook and cannot reach into it.
    """

    def __init__(self, things: Things, height: int = 720, cards: int = 60, pane: str | None = None):
        self.things, self.height, self.cards, self.pane = things, height, cards, pane

    def html(self) -> str:
        """The frame, which opens at `pane` (left out: where such a page opens by itself)."""
        from .page import page_html

        page = html.escape(page_html(self.things, cards=self.cards, pane=self.pane), quote=True)
        # Character references, so that the scripts keep their hashes whatever encoding the notebook is kept in.
        page = page.encode("ascii", "xmlcharrefreplace").decode()
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-forms allow-downloads" title="Unweave" width="100%" '
            f'height="{self.height}" style="border: 1px solid #8884; border-radius: 6px"></iframe>'
        )

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        names = [*self.things.stores, *self.things.graphs, *self.things.diffs, *self.things.audits, *self.things.runs]
        return f"Embedded({', '.join(names)}: shown where HTML can be; use to='page.html' for a file)"


def in_notebook() -> bool:
    """True in a Jupyter kernel (not in a terminal's IPython)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and shell.__class__.__name__ == "ZMQInteractiveShell"


def show(
    *things: Any,
    to: str | Path | None = None,
    port: int = 0,
    open: bool = True,
    model: Any = None,
    live: bool | None = None,
    base: Any = None,
    text: str | Path | Sequence[str | Path] = (),
    transcript: str | Path | None = None,
) -> Any:
    """Look at feature stores, graphs, diffs, audits, training runs and folders of them.

    `things`: FeatureStore, Graph, Diff, or paths: a store's folder, a `.graph` file, a diff's, an audit's or a run's folder,
    a folder of `unweave demo`. `model` is a loaded TransformerBridge for prompts and experiments (left out: the one that a store names
    is loaded when it is first needed).

    With `to` one self-contained HTML file is written and its path returned. In Jupyter a widget comes back that asks the
    kernel; with `live=False`, or where anywidget is missing, a frozen copy of the page, which stays in the saved notebook.
    Otherwise a local server runs until Ctrl-C, which answers the audit's tools too (docs/audit-tools.md): `base` is a loaded model that
    the target is compared with, `text` documents to search (files, folders, or "bundled"), `transcript` a new file for the calls.
    UserError for what is of no known kind, and for these three where nothing is served.
    """
    opened = open_things(things)
    audited = _audited(base, text, transcript, to is None and not in_notebook())
    if to is not None:
        from .page import write_page

        return write_page(to, opened)
    if in_notebook():
        return _in_notebook(opened, model, live)
    from .server import serve

    return serve(opened, port, open, model=model, audited=audited)


def _audited(
    base: Any, text: str | Path | Sequence[str | Path], transcript: str | Path | None, is_served: bool
) -> Audited:
    """What the tools have besides what is open; what is wrong with it is told before anything is served."""
    from ..saes import UserError, read_documents
    from .tools import Audited

    if not is_served and (base is not None or text or transcript is not None):
        raise UserError(
            "expected base, text and transcript where a server answers the audit's tools; got one for a page; leave it out"
        )
    file = None if transcript is None else Path(transcript)
    if file is not None and file.exists():
        raise UserError(f"expected a new file for the transcript; {file} is there already; give another name")
    return Audited(base, list(read_documents(text)) if text else [], file)


def _in_notebook(opened: Things, model: Any, live: bool | None) -> Any:
    if live is False or (live is None and find_spec("anywidget") is None):
        return Embedded(opened)
    from .widget import Browser

    return Browser(opened, model)
