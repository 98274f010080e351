"""Fifty people at once browse a store of 131,072 latents on the local server: is a request lost, and how long do they wait?

The server is `unweave show`, a process of its own; every client opens the page (the front end's files, the index, the store, the
column of densities), then walks through latents that nobody has looked at: the card, its neighbours' rows, now and then another
column or a search. The store holds random statistics (tests/fakes.py), since only their size matters here.

`lost` counts replies that are no 200, that do not parse, or that never came. Times are seen by the client, in ms.
"""

from __future__ import annotations

import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from timing import load

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import fakes

LATENTS, CLIENTS, CARDS = 131_072, 50, 40
COLUMNS = ("max_value", "token_entropy", "count", "mean_value")
WORDS = ("fox", "lazy dog", " Paris", "in France", "rains")
PATIENCE = 60  # seconds until a request counts as lost


def run(latents: int = LATENTS, clients: int = CLIENTS, cards: int = CARDS) -> list[dict[str, Any]]:
    """One row for each kind of request."""
    with tempfile.TemporaryDirectory() as folder:
        fakes.store(Path(folder) / "features", latents)
        server, address, opened_s = start(Path(folder) / "features")
        try:
            began = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                visits = list(pool.map(lambda seed: visit(address, latents, cards, seed), range(clients)))
            wall = time.perf_counter() - began
        finally:
            server.terminate()
            server.wait()
    seen = [one for each in visits for one in each]
    kinds = dict.fromkeys(kind for kind, _, _ in seen)
    rows = [summary(kind, [one for one in seen if one[0] == kind]) for kind in kinds] + [summary("all", seen)]
    about = {"latents": latents, "clients": clients, "open_s": opened_s, "requests_per_s": len(seen) / wall}
    return [about | row | {"load": load()} for row in rows]


def start(store: Path) -> tuple[subprocess.Popen[str], str, float]:
    """The server's process, its address, and the seconds until it answered."""
    began = time.perf_counter()
    command = [str(Path(sys.executable).parent / "unweave"), "show", str(store), "--no-open"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://\S+/", line):
            httpx.get(found[0] + "api/index", timeout=PATIENCE).raise_for_status()
            return server, found[0], time.perf_counter() - began
    raise RuntimeError("expected the server's address; it ended before it told one")


def visit(address: str, latents: int, cards: int, seed: int) -> list[tuple[str, float, bool]]:
    """What one person asks for: (kind, ms, answered)."""
    choose = random.Random(seed)
    with httpx.Client(base_url=address, timeout=PATIENCE) as client:
        page = client.get("")
        files = sorted(set(re.findall(r'"(static/[^"]+)"', page.text)))
        seen = [ask(client, "file", path) for path in files]
        seen += [
            ask(client, "index", "api/index"),
            ask(client, "store", "api/stores/0"),
            ask(client, "column", "api/stores/0/columns/density"),
        ]
        for number in range(cards):
            latent = choose.randrange(latents)
            seen.append(ask(client, "card", f"api/stores/0/latents/{latent}"))
            near = ",".join(str(choose.randrange(latents)) for _ in range(30))
            seen.append(ask(client, "rows", f"api/stores/0/rows/{near}"))
            if number % 10 == 9:
                seen.append(ask(client, "column", f"api/stores/0/columns/{choose.choice(COLUMNS)}"))
                body = {"store": 0, "kind": "text", "query": choose.choice(WORDS)}
                seen.append(ask(client, "search", "api/act/search", body))
    return seen


def ask(client: httpx.Client, kind: str, path: str, body: Any = None) -> tuple[str, float, bool]:
    """One request: what it was, ms, and whether it was answered."""
    began = time.perf_counter()
    try:
        reply = client.get(path) if body is None else client.post(path, json=body)
        answered = reply.status_code == 200 and (
            reply.headers["content-type"] != "application/json" or bool(reply.json())
        )
    except (httpx.HTTPError, ValueError):
        answered = False
    return kind, 1000 * (time.perf_counter() - began), answered


def summary(kind: str, seen: list[tuple[str, float, bool]]) -> dict[str, Any]:
    """Times and losses of one kind of request."""
    times = sorted(ms for _, ms, _ in seen)
    return {
        "kind": kind,
        "requests": len(seen),
        "lost": sum(not answered for _, _, answered in seen),
        "p50_ms": statistics.median(times),
        "p99_ms": times[min(int(0.99 * len(times)), len(times) - 1)],
        "longest_ms": times[-1],
    }


def passed(rows: list[dict[str, Any]]) -> str | None:
    """None if no request was lost."""
    lost = {row["kind"]: row["lost"] for row in rows if row["lost"]}
    return f"requests were lost: {lost}" if lost else None
