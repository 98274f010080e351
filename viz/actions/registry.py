"""What a live host can do beyond answering: actions (JSON in, JSON out) and streams (JSON in, a line of JSON at a time).

    @action("label")
    def label(live, body): ...

A body that makes no sense raises UserError, which every host hands to the page as a message. Actions never run from a
frozen page; `index.can` tells the front end which there are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from ...saes.errors import UserError
from ..text import readable

if TYPE_CHECKING:
    from ..live import Live

Body = dict[str, Any]
ACTIONS: dict[str, Callable[[Live, Body], Any]] = {}
STREAMS: dict[str, Callable[[Live, Body], Iterator[Any]]] = {}


def action(name: str) -> Callable[[Callable[[Live, Body], Any]], Callable[[Live, Body], Any]]:
    """Register a function as the action of this name."""

    def register(function: Callable[[Live, Body], Any]) -> Callable[[Live, Body], Any]:
        ACTIONS[name] = function
        return function

    return register


def stream(name: str) -> Callable[[Callable[[Live, Body], Iterator[Any]]], Callable[[Live, Body], Iterator[Any]]]:
    """Register a generator function as the stream of this name."""

    def register(function: Callable[[Live, Body], Iterator[Any]]) -> Callable[[Live, Body], Iterator[Any]]:
        STREAMS[name] = function
        return function

    return register


def act(live: Live, name: str, body: Any) -> Any:
    """Run an action; KeyError when there is none of this name, UserError for a body that is no object or names what is not open."""
    if name not in ACTIONS:
        raise KeyError(name)
    try:
        return ACTIONS[name](live, checked(body))
    except KeyError as error:
        raise _not_open(error) from error


def run_stream(live: Live, name: str, body: Any) -> Generator[Any, None, None]:
    """The events of a stream, to be closed by whoever stops listening; KeyError when there is none of this name."""
    if name not in STREAMS:
        raise KeyError(name)
    return _each(STREAMS[name], live, checked(body))


def _each(function: Callable[[Live, Body], Iterator[Any]], live: Live, body: Body) -> Generator[Any, None, None]:
    try:
        yield from function(live, body)
    except KeyError as error:
        raise _not_open(error) from error


def _not_open(error: KeyError) -> UserError:
    return UserError(f"expected something that is open here; got {readable(error, 60)}; look it up in the index")


def abilities(live: Live) -> list[str]:
    """The names of the actions and streams that can be done here, for `index.can`."""
    able = live.abilities()
    return [name for name in (*ACTIONS, *STREAMS) if name in able]


def checked(body: Any) -> Body:
    """The body, if it is a JSON object."""
    if not isinstance(body, dict):
        raise UserError(f"expected a JSON object; got {type(body).__name__}; send an object")
    return body
