"""The live browser: the same front end and the same paths as the frozen page, answered when asked.

    http://127.0.0.1:PORT/TOKEN/                 the page
    http://127.0.0.1:PORT/TOKEN/static/main.js   the front end's own files, nothing else
    http://127.0.0.1:PORT/TOKEN/api/stores/0     an answer of api.py

Only this machine is served, and only who knows the random token: the socket binds 127.0.0.1; a `Host` header other
than 127.0.0.1 or localhost is refused (a hostile site can point its own name at 127.0.0.1, but not forge that header);
nothing is writable, no other origin is let in, and every reply carries a Content-Security-Policy.
"""

from __future__ import annotations

import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answers import answer
from .page import assets, escaped_json, fill, static, styles
from .things import Things, open_things

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import ASGIApp, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
TYPES = {".css": "text/css", ".js": "text/javascript"}


class HostCheck:
    """Refuse requests whose `Host` is not this machine, and put the safety headers on every reply."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 421 for a foreign host, otherwise pass on; websockets are not served."""
        from starlette.responses import PlainTextResponse

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if scope["type"] != "http" or host.rsplit(":", 1)[0] not in ("127.0.0.1", "localhost"):
            await PlainTextResponse("expected this machine's own address as host", 421, HEADERS)(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                message["headers"] += [
                    (name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in known
                ]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def application(things: Things, token: str) -> Starlette:
    """The ASGI application that answers under `/token/`."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Mount, Route

    types = {name: TYPES[Path(name).suffix] for name in assets() if Path(name).suffix in TYPES}
    fresh = lambda path: encoded(answer(things, path))  # noqa: E731
    kept = lru_cache(maxsize=256)(fresh)  # what is slow to make and does not change

    def page(request: Request) -> Response:
        return Response(_live_page(), media_type="text/html; charset=utf-8")

    def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "plotly.js":
            from plotly.offline import get_plotlyjs

            return Response(
                get_plotlyjs(), media_type="text/javascript", headers={"cache-control": "private, max-age=86400"}
            )
        if name not in types:
            return PlainTextResponse("no such file", 404)
        return Response(static(name), media_type=types[name])

    def api(request: Request) -> Response:
        try:
            path = request.path_params["path"]
            content, kind = (kept if path.startswith("graphs/") else fresh)(path)
            return Response(content, media_type=kind)
        except KeyError:
            return PlainTextResponse("no such path", 404)

    routes = [Route("/", page), Route("/static/{name}", asset), Route("/api/{path:path}", api)]
    return Starlette(routes=[Mount(f"/{token}", routes=routes)], middleware=[Middleware(HostCheck)])


def encoded(reply: Any) -> tuple[str | bytes, str]:
    """An answer as a body and its media type."""
    if isinstance(reply, bytes):
        return reply, "application/octet-stream"
    return escaped_json(reply), "application/json"


def _live_page() -> str:
    return fill(
        static("index.html"),
        {
            "host": "server",
            "policy": "",
            "data": "",
            "style": "\n".join(
                [f'<link rel="stylesheet" href="static/{name}">' for name in styles()]
                + [f'<link rel="modulepreload" href="static/{name}">' for name in assets() if name.endswith(".js")]
            ),
            "script": '<script type="module" src="static/main.js"></script>',
        },
    )


def serve(things: Things | Sequence[Any], port: int = 0, open: bool = True, *, block: bool = True) -> str:
    """Serve on 127.0.0.1 until interrupted, and print the address; `port` 0 takes a free one.

    With `block=False` the server runs in a thread that ends with the program, and the address is returned.
    UserError when the port is taken.
    """
    import uvicorn

    opened = open_things([things] if isinstance(things, Things) else things)
    token = secrets.token_urlsafe(16)
    listener = _listen(port)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/"
    server = uvicorn.Server(uvicorn.Config(application(opened, token), log_level="warning", access_log=False))
    note = " (Ctrl-C ends it)" if block else ""
    print(f"Unweave is open at {address}{note}", file=sys.stderr, flush=True)
    if open:
        webbrowser.open(address)
    if block:
        server.run(sockets=[listener])
    else:
        threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return address


def _listen(port: int) -> socket.socket:
    from ..saes.errors import UserError

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"expected a free port; port {port} cannot be taken ({error}); give another, or 0 for any"
        ) from error
    listener.listen(128)
    return listener
