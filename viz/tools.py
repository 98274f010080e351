"""The audit's tools over REST, for programs on this machine: the registry of `unweave.audit.tools`, on what the server has open.

    GET  /TOKEN/api/tools          {"tools": [{"name", "group", "description", "cost", "reads_only", "parameters"}]}
    POST /TOKEN/api/tools/NAME     a JSON object of arguments → the reply, as the session gives it

One session serves everybody, so its budget, board and transcript are the server's. It is made at the first call: `target` is the model
behind the open stores, their dictionaries are found by fingerprint (finding.py), and the tools that need what cannot be found say so.
Things have the names that `Workspace.open` gives them, so that a transcript is replayed on the same folders. A call waits for its turn
with the page's jobs (turns.py); where too many wait it is answered as busy, and the transcript has no line of it. A saved page has none
of this.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..saes.errors import UserError
from .actions.registry import checked
from .guard import read_json
from .live import Live
from .page import escaped_json
from .text import readable, reason
from .turns import Busy, Turns

if TYPE_CHECKING:
    from starlette.routing import Route

    from ..audit.tools import Budget, Session, Workspace
    from ..audit.tools.opening import Found

STATUS = {"arguments": 400, "user": 400, "unknown_tool": 404, "budget": 429, "internal": 500, "busy": 503}
FIELDS = ("name", "group", "description", "cost", "reads_only", "parameters")


@dataclass(frozen=True)
class Audited:
    """What the tools have besides what is open: a loaded base model, documents to search, and a file for the transcript."""

    base: Any = None
    corpus: Sequence[Any] = ()
    transcript: Path | None = None


def routes(live: Live, audited: Audited | None = None) -> list[Route]:
    """The two routes, to be mounted under the server's token."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    tools = Tools(live, audited=audited)

    def every(request: Request) -> Response:
        return Response(escaped_json(listed()), media_type="application/json")

    async def call(request: Request) -> Response:
        name, kind = request.path_params["name"], "arguments"
        try:
            body = checked(await read_json(request))
            kind = "user"
            reply = await run_in_threadpool(tools.call, name, body)
        except UserError as error:
            kind = "busy" if isinstance(error, Busy) else kind
            reply = {"ok": False, "tool": readable(name, 60), "error": {"kind": kind, "message": reason(error)}}
        status = 200 if reply["ok"] else STATUS[reply["error"]["kind"]]
        return Response(escaped_json(reply), status, media_type="application/json")

    return [Route("/api/tools", every), Route("/api/tools/{name}", call, methods=["POST"])]


def listed() -> dict[str, Any]:
    """Every tool with the JSON schema of its arguments."""
    from ..audit.tools import TOOLS

    return {"tools": [{field: getattr(tool, field) for field in FIELDS} for tool in TOOLS.values()]}


class Tools:
    """The session of a server, made when it is first needed."""

    def __init__(self, live: Live, budget: Budget | None = None, seed: int = 0, audited: Audited | None = None):
        self.live, self.budget, self.seed, self.audited = live, budget, seed, audited or Audited()
        self._session: Session | None = None
        self._making, self._calling = threading.Lock(), Turns()

    def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The reply. UserError where there is no model to audit; Busy where too many wait, and then there was no call."""
        with self._calling:
            return self.session().call(name, arguments).to_dict()

    def session(self) -> Session:
        """UserError where there is no model to audit."""
        from ..audit.tools import Session

        with self._making:
            if self._session is None:
                found = workspace(self.live, self.audited)
                self._session = Session(found, self.seed, self.budget, self.audited.transcript)
            return self._session


def workspace(live: Live, audited: Audited | None = None) -> Workspace:
    """What is open, as a workspace; UserError where it leads to no model."""
    from ..audit.tools import Workspace
    from ..audit.tools.opening import put

    audited = audited or Audited()
    models = {"target": _target(live)} | ({} if audited.base is None else {"base": audited.base})
    found = _found(live, models)
    for name, diff in live.things.diffs.items():
        put(found.diffs, name if diff.folder is None else diff.folder.resolve().name, diff)
    own = Workspace(models, found.dictionaries, found.stores, found.diffs, audited.corpus)
    own.turn = live.lock
    return own


def _target(live: Live) -> Any:
    """The model that was given, or else that of the first store whose model can be had."""
    if live.model is not None and not isinstance(live.model, str):
        return live.model
    why = "no store is open"
    for store in live.things.stores.values():
        try:
            return live.model_for(store)
        except UserError as error:
            why = str(error)
    raise UserError(f"expected a store whose model can be had; got none ({reason(why)}); open one, or give --model")


def _found(live: Live, models: dict[str, Any]) -> Found:
    """Stores and dictionaries of these models, in the order and under the names in which folders are opened for an audit."""
    from ..audit.tools.opening import Found, put
    from ..audit.tools.workspace import trained_on
    from ..saes import Dictionary, model_info

    found, known = Found(), {None, *(model_info(model).fingerprint for model in models.values())}
    for run in live.things.runs.values():
        if run.folder is not None and (run.folder / "cfg.json").exists():
            with contextlib.suppress(UserError):  # of a kind that the tools do not know
                own = Dictionary.load(run.folder)
                if trained_on(own) in known:
                    put(found.dictionaries, run.folder.resolve().name, own)
                    live.dictionaries.append(own)  # so that the page does not load it again
    for store in live.things.stores.values():
        put(found.stores, store.folder.resolve().name, store)
    for name, store in found.stores.items():
        about = store.manifest.get("model")
        if (about.get("fingerprint") if isinstance(about, dict) else None) not in known:
            continue
        with contextlib.suppress(UserError):  # its dictionary is nowhere
            own = live.dictionary_for(store)
            if own.fingerprint not in {each.fingerprint for each in found.dictionaries.values()}:
                put(found.dictionaries, name, own)
    return found
