"""MCP over standard input and output, which then carry nothing else.

A stray `print`, a library's notice or a child process would break the protocol. So before anything is loaded the process's own
standard output is turned into standard error and its standard input into the null device; the protocol has private copies
of the two. They are not turned back: what a command prints after its client has gone goes to standard error as well.

A thread that waits for standard input cannot be woken. So another one passes it on through a pair of sockets, and the first Ctrl-C
or SIGTERM ends the connection there, as the client would by closing its end: what is being called is finished and written down.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from .server import mcp_server

if TYPE_CHECKING:
    from ..tools import Session

PART = 1 << 16  # bytes passed on at once


class Streams(NamedTuple):
    """Descriptors from which the protocol is read, and to which it is written."""

    reading: int
    writing: int


def claim_streams() -> Streams:
    """Take standard input and output for the protocol; from then on `print` writes to standard error."""
    sys.stdout.flush()
    streams = Streams(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return streams


def serve_stdio(session: Session, streams: Streams) -> None:
    """Answer the one client that started this process until it closes its end or a signal comes. For the main thread."""
    import anyio
    from mcp.server.stdio import stdio_server

    server = mcp_server(session)
    near, far = socket.socketpair()
    threading.Thread(target=_pass_on, args=(streams.reading, near), daemon=True).start()
    lines = io.TextIOWrapper(far.makefile("rb"), "utf-8", "replace")
    answers = io.TextIOWrapper(os.fdopen(streams.writing, "wb"), "utf-8", newline="\n")

    async def run() -> None:
        async with stdio_server(anyio.wrap_file(lines), anyio.wrap_file(answers)) as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    with _ended_by_a_signal(near):
        anyio.run(run)


@contextlib.contextmanager
def _ended_by_a_signal(near: socket.socket) -> Iterator[None]:
    """The first signal ends the connection; the next one does what it did before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, lambda *_: (restore(), _end(near)))
    try:
        yield
    finally:
        restore()


def _pass_on(reading: int, near: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other end has gone
        while part := os.read(reading, PART):
            near.sendall(part)
    _end(near)


def _end(near: socket.socket) -> None:
    with contextlib.suppress(OSError):
        near.shutdown(socket.SHUT_WR)
