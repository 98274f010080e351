"""Many at once on the local server: no request is lost, nobody's change is, and no work holds another up for ever."""

import json
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import fakes
import pytest
from unweave.audit.serving.http import listen
from unweave.circuits.prompts.stream import Piece
from unweave.saes.errors import UserError
from unweave.viz import serve
from unweave.viz.actions.registry import ACTIONS, STREAMS
from unweave.viz.answers import answer
from unweave.viz.kept import Kept
from unweave.viz.live import Live
from unweave.viz.server import application
from unweave.viz.things import open_things

CLIENTS, LATENTS = 50, 20_000


def opened(address, path, body=None):
    """The reply to one request, to be read."""
    headers = {} if body is None else {"content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=30)


def ask(address, path, body=None):
    """(status, body) of one request."""
    try:
        with opened(address, path, body) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def at_once(run, count=CLIENTS):
    """What `run(number)` gives when `count` threads call it at the same moment."""
    ready = threading.Barrier(count)

    def start(number):
        ready.wait(30)
        return run(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


def served(live):
    """The address of the real server before a live host."""
    import uvicorn

    listener = listen(0)
    server = uvicorn.Server(uvicorn.Config(application(live.things, "secret", live), log_level="critical"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/secret/"


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    return fakes.store(tmp_path_factory.mktemp("big") / "features", LATENTS)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return fakes.store(tmp_path_factory.mktemp("small") / "features", 40)


def test_fifty_clients_at_once_lose_no_request(big):
    address = serve([big], open=False, block=False)

    def visit(number):
        latents = [(number * 397 + step * 71) % LATENTS for step in range(3)]
        replies = [
            ask(address, "api/index"),
            ask(address, "api/stores/0"),
            ask(address, "api/stores/0/columns/density"),
        ]
        for latent in latents:
            card = ask(address, f"api/stores/0/latents/{latent}")
            assert json.loads(card[1])["latent"] == latent
            replies += [
                card,
                ask(address, "api/stores/0/rows/" + ",".join(map(str, range(latent % 900, latent % 900 + 9)))),
            ]
        body = {"store": 0, "kind": "token", "query": fakes.WORDS[number % 10]}
        return [*replies, ask(address, "api/act/search", body)]

    replies = [reply for visited in at_once(visit) for reply in visited]
    assert len(replies) == CLIENTS * 10
    assert {status for status, _ in replies} == {200}
    assert {len(body) for _, body in replies if body[:1] not in (b"{", b"[")} == {4 * LATENTS}


def test_connections_that_say_nothing_hold_nobody_up(small):
    address = serve([small], open=False, block=False)
    port = int(address.split(":")[2].split("/")[0])
    said = [b"", b"GET /", b"\x00\xff\x16\x03\x01" * 50, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200_000,
            b"POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n", b"GET /\x00 HTTP/9.9\r\n\r\n"]  # fmt: skip
    connections = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(48)]
    for number, connection in enumerate(connections):
        connection.sendall(said[number % len(said)])
    assert {status for status, _ in at_once(lambda _: ask(address, "api/stores/0/latents/3"), 20)} == {200}
    for connection in connections:
        connection.close()
    assert ask(address, "api/index")[0] == 200


def test_two_who_label_one_latent_at_once_both_have_their_way(tmp_path):
    store = fakes.store(tmp_path / "features", 20)
    address = serve([store], open=False, block=False)

    def say(number):
        field = [{"label": f"by {number}"}, {"note": f"by {number}"}, {"star": True}, {"tags": [f"t{number}"]}][
            number % 4
        ]
        return ask(address, "api/act/label", {"store": 0, "latent": 7, **field})[0]

    assert set(at_once(say, 16)) == {200}
    mark, history = store.labels.get(7), store.labels.history(7)
    assert mark.label and mark.label.startswith("by ") and mark.note.startswith("by ") and mark.is_starred
    assert len(mark.tags) == 1
    assert len(history) == 13  # four labels, notes and tag lists each, and the star, which was set once
    assert ask(address, "api/act/history", {"store": 0, "latent": 7})[0] == 200


class Counting(Live):
    """A live host whose work waits for a gate and says who works."""

    def __init__(self, things):
        super().__init__(things)
        self.gate, self.working, self.most = threading.Event(), 0, 0

    def abilities(self):
        return {"features", "generate"}

    def features(self, body):
        with self.lock:
            self.working += 1
            self.most = max(self.most, self.working)
            self.gate.wait(20)
            self.working -= 1
        return {"done": True}


def test_heavy_work_is_done_one_at_a_time_and_cards_are_answered_meanwhile(small):
    live = Counting(open_things([small]))
    address = served(live)
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ask, address, "api/act/features", {"store": 0}) for _ in range(20)]
        while sum(one.done() for one in asked) < 11:  # one works, eight wait, the others are sent away at once
            assert ask(address, "api/stores/0/latents/5")[0] == 200
        live.gate.set()
        replies = [one.result(30) for one in asked]
    assert sorted(status for status, _ in replies) == [200] * 9 + [400] * 11
    assert all(b"busy" in body for status, body in replies if status == 400)
    assert live.most == 1


def test_a_stream_that_is_cut_off_frees_its_place_and_the_model(small, monkeypatch):
    def endless(*_, **__):
        while True:
            yield Piece("base", "x", 1, 0.5)

    for name, made in {"stream": endless, "latent_edits": lambda *_: [], "_ids": lambda *_: [1]}.items():
        monkeypatch.setattr(f"unweave.viz.live.{name}", made)
    live = Live(open_things([small]))
    monkeypatch.setattr(live, "_pair", lambda store: (None, None))
    address = served(live)
    body = {"store": 0, "text": "x"}
    for _ in range(3):  # more in all than may write at once
        readers = [opened(address, "api/stream/generate", body) for _ in range(4)]
        assert all(json.loads(reader.readline())["piece"] == "x" for reader in readers)
        assert b"busy" in ask(address, "api/stream/generate", body)[1]
        for reader in readers:
            reader.close()
        for _ in range(1000):
            if live._streams == 0:
                break
            threading.Event().wait(0.01)
        assert live._streams == 0
        with live.lock:
            pass


def test_a_stream_that_fails_tells_so_in_its_last_line(small, monkeypatch):
    def broken(live, body):
        yield {"n": 1}
        raise RuntimeError("secret words of a traceback")

    monkeypatch.setitem(STREAMS, "broken", broken)
    address = served(Live(open_things([small])))
    reply = opened(address, "api/stream/broken", {})
    assert json.loads(reply.readline()) == {"n": 1}
    told = json.loads(reply.readline())["error"]
    assert "RuntimeError" in told and "secret" not in told
    assert ask(address, "api/index")[0] == 200


# The kept answers


def test_an_answer_begun_before_a_change_is_not_kept():
    began, go_on, made = threading.Event(), threading.Event(), []

    def make(path):
        made.append(path)
        if len(made) == 1:
            began.set()
            go_on.wait(10)
        return f"number {len(made)}", "text/plain"

    kept = Kept(make)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(kept, "a")
        began.wait(10)
        kept.clear()
        go_on.set()
        assert first.result(10)[0] == "number 1"
    assert kept("a")[0] == kept("a")[0] == "number 2"


def test_kept_answers_stay_within_their_bound():
    made = []
    kept = Kept(lambda path: made.append(path) or (path * 10, "text/plain"), most=100)
    for path in ("aaa", "bbb", "ccc", "aaa", "ddd", "aaa", "bbb", "x" * 50, "x" * 50, "aaa"):
        kept(path)
    assert made == ["aaa", "bbb", "ccc", "ddd", "bbb", "x" * 50, "x" * 50]
    with pytest.raises(KeyError):
        Kept({}.__getitem__)("nothing")


def test_a_change_by_an_action_or_a_stream_is_seen_by_the_next_answer(small, monkeypatch):
    stored = {"n": 0}
    monkeypatch.setattr(
        "unweave.viz.server.answer", lambda things, path: dict(stored) if path == "graphs" else answer(things, path)
    )

    def more(live, body):
        stored["n"] += 1
        if body.get("fails"):
            raise UserError("expected better; got worse; mend it")
        return {}

    def stream(live, body):
        yield more(live, body)

    monkeypatch.setitem(ACTIONS, "more", more)
    monkeypatch.setitem(STREAMS, "more", stream)
    address = served(Live(open_things([small])))
    for number, (path, body) in enumerate(
        [("act", {}), ("stream", {}), ("act", {"fails": 1}), ("stream", {"fails": 1})]
    ):
        assert json.loads(ask(address, "api/graphs")[1]) == {"n": number}
        ask(address, f"api/{path}/more", body)
    assert json.loads(ask(address, "api/graphs")[1]) == {"n": 4}
