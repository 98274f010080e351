"""Work on whole dictionaries that a person asks for: laying out a map, matching two stores.

Both say how far they are: lines {stage, share} while they run (share of the stage), one last line {done}. Closing the page does not
stop them; what they find is kept in the store's folder.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ...saes.errors import UserError
from ...saes.latents.across.maps import Tell, map_layout, write_map
from ...saes.latents.across.matches import METHODS, cannot_correlate, write_matching
from ...saes.latents.across.matching import Matching, match_activations, match_decoders
from ..answers.maps import map_payload
from ..answers.matchings import forget_matchings, unlike
from ..fields import choice, whole
from .registry import stream

if TYPE_CHECKING:
    from ..live import Live

Work = Callable[[Tell], dict[str, Any]]


@stream("map")
def make_map(live: Live, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """{store, method: umap | pca, seed}: lay out the decoder rows of a store and keep the map with it; ends with the new `stores/S/map`."""
    store = live.store(body.get("store"))
    method, seed = choice(body, "method", ("umap", "pca")), whole(body, "seed", 0, 0, 2**31)

    def work(tell: Tell) -> dict[str, Any]:
        dictionary = live.dictionary_for(store)
        write_map(store, map_layout(dictionary, method, seed=seed, tell=tell), dictionary.fingerprint)
        return map_payload(store)

    return told(live, work)


@stream("match")
def make_matching(live: Live, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """{a, b, method: cosine | correlation}: match the latents of two stores and keep the matching with the first."""
    a, b, method = live.store(body.get("a")), live.store(body.get("b")), choice(body, "method", METHODS)
    if a is b:
        raise UserError("expected two stores; got one twice; choose another")

    def work(tell: Tell) -> dict[str, Any]:
        found = _match(live, a, b, method, tell)
        write_matching(a, b, method, found)
        forget_matchings()
        return {"method": method}

    return told(live, work)


def _match(live: Live, a: Any, b: Any, method: str, tell: Tell) -> Matching:
    if method == "cosine":
        decoders = [live.dictionary_for(store).W_dec.detach() for store in (a, b)]
        if decoders[0].shape[1] != decoders[1].shape[1]:
            raise UserError(unlike(decoders[0].shape[1], decoders[1].shape[1]))
        return match_decoders(*decoders, tell=tell)
    why = cannot_correlate(a, b)
    if why or a.codebook is None or b.codebook is None:
        raise UserError(f"expected codes of one text in both stores; {why}; collect both on the same activations")
    return match_activations(a.codebook, b.codebook, tell=tell)


def told(live: Any, work: Work) -> Iterator[dict[str, Any]]:
    """Run `work` in a thread, one at a time, and pass on what it tells; what it raises is raised here."""
    heard: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        try:
            with getattr(live, "lock", None) or contextlib.nullcontext():
                result = work(lambda stage, share: heard.put({"stage": stage, "share": round(share, 4)}))
            heard.put({"done": result})
        except BaseException as error:  # handed to the listener, whatever it is
            heard.put(error)

    threading.Thread(target=run, daemon=True).start()
    while True:
        line = heard.get()
        if isinstance(line, BaseException):
            raise line
        yield line
        if "done" in line:
            return
