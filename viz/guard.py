"""What a request must be before the local server looks at it, and the headers of every reply.

* `Host` is 127.0.0.1 or localhost: a hostile site can point its own name at 127.0.0.1, but not forge that header.
* A request that a browser says comes from another site (`Origin`, `Sec-Fetch-Site`) is refused, unless it is a person who
  follows a link to the page.
* A body is JSON, says so (which no form of another site can), and is at most a mebibyte.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..saes.errors import UserError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
OWN = ("127.0.0.1", "localhost")
LARGEST_BODY = 1 << 20


class Guard:
    """Refuse requests from elsewhere, and put the safety headers on every reply; websockets are not served."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 421 for a foreign host and 403 for a foreign origin, otherwise pass on."""
        from starlette.responses import PlainTextResponse

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", [])}
        if scope["type"] != "http" or not is_own(headers.get(b"host", "")):
            await PlainTextResponse("expected this machine's own address as host", 421, HEADERS)(scope, receive, send)
            return
        if not same_site(headers):
            await PlainTextResponse("expected a request of this page itself", 403, HEADERS)(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                message["headers"] += [
                    (name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in known
                ]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def is_own(host: str) -> bool:
    """True for this machine's address, with or without a port."""
    return host.rsplit(":", 1)[0] in OWN


def same_site(headers: dict[bytes, str]) -> bool:
    """False if the browser says that another site makes this request; a link that a person follows may stand anywhere."""
    origin = headers.get(b"origin")
    if origin is not None and origin != f"http://{headers[b'host']}":
        return False
    follows_link = headers.get(b"sec-fetch-mode") == "navigate" and origin is None
    return follows_link or headers.get(b"sec-fetch-site", "none") in ("none", "same-origin")


async def read_json(request: Request) -> Any:
    """The body of a request as JSON; UserError if it is something else or too large."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise UserError(f"expected a body of type application/json; got {kind or 'none'}; send JSON")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise UserError(f"expected a body of at most {LARGEST_BODY} bytes; got more; send less at a time")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError("expected a body of JSON; could not read it; send JSON") from error
