"""The browser inside a notebook, alive: the same page in a sandboxed frame, its questions answered by the kernel.

    frame (page, no origin) ── postMessage ──▶ relay.js ── widget message ──▶ Browser ── answers/, actions/

The page holds no data; what it shows it asks for, so a store of 131,072 latents opens at once. Work runs in threads of the
kernel, so that cells can be run meanwhile; `live.py` lets one heavy job run at a time. Ids are the frame's; two views of one
widget have ids of their own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from ..saes.errors import UserError
from .actions import abilities, act, run_stream
from .answers import answer
from .answers.index import index
from .bundle import plotly_source
from .live import Live
from .page import first_pane, frame_html
from .text import reason
from .things import Things


class Browser(anywidget.AnyWidget):
    """What `show` returns in a notebook: feature cards, prompts and circuits, asked for as they are looked at."""

    _esm = Path(__file__).parent / "relay.js"
    page = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(720).tag(sync=True)

    def __init__(self, things: Things, model: Any = None, height: int = 720):
        super().__init__(page=frame_html(first_pane(things)), height=height)
        self.things, self.live = things, Live(things, model)
        self._stopped: set[int] = set()
        self.on_msg(self._hear)

    def __repr__(self) -> str:
        names = [*self.things.stores, *self.things.graphs, *self.things.diffs, *self.things.audits, *self.things.runs]
        return f"Browser({', '.join(names)}: shown where widgets can be; show(…, to='page.html') writes a file)"

    def _hear(self, _: Any, message: Any, __: Any) -> None:
        if not isinstance(message, dict) or not isinstance(message.get("id"), int):
            return
        if message.get("unweave") == "stop":
            self._stopped.add(message["id"])
        else:
            threading.Thread(target=self._reply, args=(message,), daemon=True).start()

    def _reply(self, message: dict[str, Any]) -> None:
        number = message["id"]
        try:
            reply = _VERBS[str(message.get("verb"))](self, message)
        except KeyError:
            reply = None
        except UserError as error:
            self.send({"id": number, "error": reason(error)})
            return
        except Exception as error:
            self.send({"id": number, "error": f"{type(error).__name__}: {reason(error)}"})
            raise
        if isinstance(reply, bytes):
            self.send({"id": number, "bytes": True}, [reply])
        else:
            self.send({"id": number, "answer": reply})

    def _get(self, message: dict[str, Any]) -> Any:
        path = str(message.get("path"))
        if path == "index":
            return index(self.things, abilities(self.live))
        return plotly_source() if path == "plotly" else answer(self.things, path)

    def _post(self, message: dict[str, Any]) -> Any:
        return act(self.live, str(message.get("path")).removeprefix("act/"), message.get("body"))

    def _lines(self, message: dict[str, Any]) -> None:
        number, name = message["id"], str(message.get("path")).removeprefix("stream/")
        with contextlib.closing(run_stream(self.live, name, message.get("body"))) as events:
            for event in events:
                if number in self._stopped:
                    self._stopped.discard(number)
                    return
                self.send({"id": number, "line": event})


_VERBS: dict[str, Callable[[Browser, dict[str, Any]], Any]] = {
    "get": Browser._get,
    "post": Browser._post,
    "lines": Browser._lines,
}
