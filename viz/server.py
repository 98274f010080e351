"""The live browser: the same front end and the same paths as the frozen page, answered when asked, and actions besides.

    http://127.0.0.1:PORT/TOKEN/                    the page
    http://127.0.0.1:PORT/TOKEN/static/app.js       the front end, bundled; app.css and plotly.js, nothing else
    http://127.0.0.1:PORT/TOKEN/api/stores/0        GET: an answer (answers/)
    http://127.0.0.1:PORT/TOKEN/api/act/label       POST JSON: an action (actions/), answered with JSON
    http://127.0.0.1:PORT/TOKEN/api/stream/generate POST JSON: a stream, one line of JSON at a time
    http://127.0.0.1:PORT/TOKEN/api/tools/chat      POST JSON: a tool of the audit, answered with JSON (tools.py)

Only this machine is served, and only who knows the random token. What a request must be is in guard.py: its `Host` and
`Origin` are this server's own, its body JSON of bounded size. No other origin is let in, and every reply carries a
Content-Security-Policy.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..audit.serving.http import listen
from ..saes.errors import UserError
from .actions import ACTIONS, STREAMS, abilities, act, run_stream
from .answers import answer
from .answers.index import index
from .bundle import bundle, static, style
from .guard import Guard, read_json
from .kept import Kept
from .live import Live
from .page import escaped_json, fill, first_pane
from .text import reason
from .things import Things, open_things
from .tools import Audited
from .tools import routes as tool_routes

if TYPE_CHECKING:
    from starlette.applications import Starlette

FILES = {"app.js": lambda: bundle("main.js"), "app.css": style}  # one file each: fifty modules took 0.7 s to ask for
TYPES = {".css": "text/css", ".js": "text/javascript"}
FOR_EVER = "private, max-age=31536000, immutable"  # of a file whose address names its content
END = object()
KEPT = ("graphs", "compare/")  # answers that are slow to make; actions and streams forget them


def application(things: Things, token: str, live: Live | None = None, audited: Audited | None = None) -> Starlette:
    """The ASGI application that answers under `/token/`; actions are done by `live`, and the audit's tools have `audited` too."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Mount, Route

    live = live or Live(things)
    kept = Kept(lambda path: encoded(answer(things, path)))

    def page(request: Request) -> Response:
        return Response(_live_page(first_pane(things)), media_type="text/html; charset=utf-8")

    def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "plotly.js":
            from plotly.offline import get_plotlyjs

            week = {"cache-control": "private, max-age=86400"}
            return Response(get_plotlyjs(), media_type="text/javascript", headers=week)
        if name not in FILES:
            return PlainTextResponse("no such file", 404)
        content = FILES[name]()
        headers = {"cache-control": FOR_EVER} if request.url.query == fingerprint(content) else {}
        return Response(content, media_type=TYPES[Path(name).suffix], headers=headers)

    def api(request: Request) -> Response:
        path = request.path_params["path"]
        try:
            if path == "index":
                content, kind = encoded(index(things, abilities(live)))
            else:
                content, kind = kept(path) if path.startswith(KEPT) else encoded(answer(things, path))
            return Response(content, media_type=kind)
        except KeyError:
            return PlainTextResponse("no such path", 404)
        except UserError as error:
            return told(error)

    async def action(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ACTIONS:
            return PlainTextResponse("no such action", 404)
        try:
            reply = await run_in_threadpool(act, live, name, await read_json(request))
            content, kind = encoded(reply)
            return Response(content, media_type=kind)
        except UserError as error:
            return told(error)
        finally:
            kept.clear()

    async def streamed(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STREAMS:
            return PlainTextResponse("no such stream", 404)
        try:
            events = run_stream(live, name, await read_json(request))
        except UserError as error:
            return told(error)
        return StreamingResponse(lines(then(events, kept.clear)), media_type="application/x-ndjson")

    def told(error: UserError) -> Response:
        return Response(escaped_json({"error": reason(error)}), 400, media_type="application/json")

    routes = [
        Route("/", page),
        Route("/static/{name}", asset),
        Route("/api/act/{name}", action, methods=["POST"]),
        Route("/api/stream/{name}", streamed, methods=["POST"]),
        *tool_routes(live, audited),
        Route("/api/{path:path}", api),
    ]
    return Starlette(routes=[Mount(f"/{token}", routes=routes)], middleware=[Middleware(Guard)])


async def lines(events: Generator[Any, None, None]) -> AsyncIterator[str]:
    """Events as lines of JSON; an error that a user can mend is the last of them. Closes `events` when the reader has gone."""
    from starlette.concurrency import run_in_threadpool

    with contextlib.closing(events):
        try:
            while (event := await run_in_threadpool(next, events, END)) is not END:
                yield escaped_json(event) + "\n"
        except UserError as error:
            yield escaped_json({"error": reason(error)}) + "\n"
        except Exception as error:  # the reader is told that it failed, the terminal why
            yield (
                escaped_json({"error": f"this failed ({type(error).__name__}); the server's terminal says more"}) + "\n"
            )
            raise


def then(events: Generator[Any, None, None], run: Callable[[], None]) -> Generator[Any, None, None]:
    """The same events, and `run` after the last of them, however they end."""
    try:
        yield from events
    finally:
        run()


def encoded(reply: Any) -> tuple[str | bytes, str]:
    """An answer as a body and its media type."""
    if isinstance(reply, bytes):
        return reply, "application/octet-stream"
    return escaped_json(reply), "application/json"


def fingerprint(content: str) -> str:
    """What the address of a file of the front end ends with: other content, another address."""
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _live_page(pane: str) -> str:
    script, sheet = (f"static/{name}?{fingerprint(make())}" for name, make in FILES.items())
    return fill(
        static("index.html"),
        {
            "host": "server",
            "pane": pane,
            "policy": "",
            "data": "",
            "style": f'<link rel="stylesheet" href="{sheet}">',
            "script": f'<script src="{script}" defer></script>',
        },
    )


def serve(
    things: Things | Sequence[Any],
    port: int = 0,
    open: bool = True,
    *,
    block: bool = True,
    model: Any = None,
    audited: Audited | None = None,
) -> str:
    """Serve on 127.0.0.1 until interrupted, and print the address; `port` 0 takes a free one.

    `model` is a loaded TransformerBridge for prompts and experiments; left out, the one that a store names is loaded when
    it is first needed. `audited` is what the audit's tools have besides (tools.py). With `block=False` the server runs in a
    thread that ends with the program, and the address is returned. UserError when the port is taken.
    """
    import uvicorn

    opened = open_things([things] if isinstance(things, Things) else things)
    token = secrets.token_urlsafe(16)
    listener = listen(port)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/"
    server = uvicorn.Server(
        uvicorn.Config(application(opened, token, Live(opened, model), audited), log_level="warning", access_log=False)
    )
    note = " (Ctrl-C ends it)" if block else ""
    print(f"Unweave is open at {address}{note}", file=sys.stderr, flush=True)
    if open:
        webbrowser.open(address)
    if block:
        server.run(sockets=[listener])
    else:
        threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return address
