"""MCP over streamable HTTP, for this machine only, and only for who knows the random token.

    http://127.0.0.1:PORT/TOKEN/mcp

The SDK refuses what is not this server's own `Host` (421: a hostile site can point its name at 127.0.0.1, but not forge that header) or
comes from a page of another `Origin` (403); a body that is not JSON (400) or larger than a mebibyte (413). Without the token
there is nothing (404).
"""

from __future__ import annotations

import secrets
import socket
import sys
import threading
from typing import TYPE_CHECKING

from ...saes.errors import UserError
from .server import mcp_server

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ..tools import Session

LARGEST_BODY = 1 << 20
PATIENCE_S = 3  # seconds that open answers have when the server is stopped


def application(session: Session, token: str, port: int) -> Starlette:
    """The ASGI application that answers under `/token/mcp`, to clients who call it by this machine's address and port."""
    from mcp.server.transport_security import TransportSecuritySettings

    own = [f"127.0.0.1:{port}", f"localhost:{port}"]
    security = TransportSecuritySettings(allowed_hosts=own, allowed_origins=[f"http://{host}" for host in own])
    return mcp_server(session).streamable_http_app(
        streamable_http_path=f"/{token}/mcp", transport_security=security, max_request_body_size=LARGEST_BODY
    )


def serve_http(session: Session, port: int = 0, *, block: bool = True) -> str:
    """Serve on 127.0.0.1 until interrupted, and tell the address on standard error; `port` 0 takes a free one.

    With `block=False` the server runs in a thread that ends with the program. Returns the address. UserError when the port is taken.
    """
    import uvicorn

    token, listener = secrets.token_urlsafe(16), listen(port)
    port = listener.getsockname()[1]
    app = application(session, token, port)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=PATIENCE_S)
    )
    address = f"http://127.0.0.1:{port}/{token}/mcp"
    print(f"MCP over HTTP at {address}{' (Ctrl-C ends it)' if block else ''}", file=sys.stderr, flush=True)
    if block:
        server.run(sockets=[listener])
    else:
        threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return address


def listen(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1; `port` 0 takes a free one. UserError when the port is taken."""
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
