"""The audit's tools over REST, for programs on this machine: the registry of `unweave.audit.tools`, on what the server has open.

    GET  /TOKEN/api/tools          {"tools": [{"name", "group", "description", "cost", "reads_only", "parameters"}]}
    POST /TOKEN/api/tools/NAME     a JSON object of arguments → the reply, as the session gives it

One session serves everybody, so its budget and its board are the server's. It is made at the first call: `target` is the model behind
the open stores, their dictionaries are found by fingerprint (finding.py), and the tools that need what cannot be found say so. A call
waits for its turn with the page's jobs (turns.py). A saved page has none of this.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

from ..saes.errors import UserError
from .actions.registry import checked
from .guard import read_json
from .live import Live
from .page import escaped_json
from .text import readable, reason
from .turns import Turns

if TYPE_CHECKING:
    from starlette.routing import Route

    from ..audit.tools import Budget, Session, Workspace

STATUS = {"arguments": 400, "user": 400, "unknown_tool": 404, "budget": 429, "internal": 500}
FIELDS = ("name", "group", "description", "cost", "reads_only", "parameters")


def routes(live: Live) -> list[Route]:
    """The two routes, to be mounted under the server's token."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    tools = Tools(live)

    def every(request: Request) -> Response:
        return Response(escaped_json(listed()), media_type="application/json")

    async def call(request: Request) -> Response:
        name, kind = request.path_params["name"], "arguments"
        try:
            body = checked(await read_json(request))
            kind = "user"
            reply = await run_in_threadpool(tools.call, name, body)
        except UserError as error:
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

    def __init__(self, live: Live, budget: Budget | None = None, seed: int = 0):
        self.live, self.budget, self.seed = live, budget, seed
        self._session: Session | None = None
        self._making, self._calling = threading.Lock(), Turns()

    def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The reply. UserError where there is no model to audit, or too many calls wait."""
        with self._calling:
            return self.session().call(name, arguments).to_dict()

    def session(self) -> Session:
        """UserError where there is no model to audit."""
        from ..audit.tools import Session

        with self._making:
            if self._session is None:
                self._session = Session(workspace(self.live), self.seed, self.budget)
            return self._session


def workspace(live: Live) -> Workspace:
    """What is open, as a workspace; UserError where it leads to no model."""
    from ..audit.tools import Workspace

    target = None if isinstance(live.model, str) else live.model
    why, dictionaries, stores = "no store is open", {}, {}
    for name, store in named(live.things.stores).items():
        try:
            model = live.model_for(store)
            target = model if target is None else target
            if model is target:
                dictionaries[name], stores[name] = live.dictionary_for(store), store
        except UserError as error:
            why = str(error)
    if target is None:
        raise UserError(f"expected a store whose model can be had; got none ({reason(why)}); open one, or give --model")
    found = Workspace({"target": target}, dictionaries, stores, named(live.things.diffs))
    found.turn = live.lock
    return found


def named(shelf: dict[str, Any]) -> dict[str, Any]:
    """The things of a shelf under names that a workspace takes: a folder may be called anything."""
    found: dict[str, Any] = {}
    for name, thing in shelf.items():
        plain, number = re.sub(r"[^\w .:/()@+-]", "_", name)[:70] or "unnamed", 1
        while (called := plain if number == 1 else f"{plain} {number}") in found:
            number += 1
        found[called] = thing
    return found
