"""The live server answers this machine and who has the token, with the same answers as the page; nothing else."""

import json
import re
import threading
import urllib.request

import fakes
import pytest
from unweave.saes import UserError
from unweave.viz import serve
from unweave.viz.actions.registry import ACTIONS, STREAMS
from unweave.viz.answers import answer, frozen
from unweave.viz.page import escaped_json
from unweave.viz.server import application
from unweave.viz.things import open_things

pytest.importorskip("httpx", reason="httpx is missing: pip install httpx")

JSON = "application/json"
OWN = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    return open_things([fakes.demo(tmp_path_factory.mktemp("demo"), hostile=True, latents=40)])


@pytest.fixture
def client(things):
    from starlette.testclient import TestClient

    return TestClient(application(things, "secret"), base_url="http://127.0.0.1:8000")


def test_the_page_and_its_modules_are_served(client):
    page = client.get("/secret/")
    assert page.status_code == 200
    address = re.search(r'<script src="(static/app\.js\?\w{16})" defer>', page.text)
    assert address is not None
    assert "immutable" in client.get(f"/secret/{address[1]}").headers["cache-control"]
    assert "immutable" not in client.get("/secret/static/app.js?0123").headers.get("cache-control", "")
    for name, kind in {"app.js": "text/javascript", "app.css": "text/css", "plotly.js": "text/javascript"}.items():
        reply = client.get(f"/secret/static/{name}")
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith(kind)


def test_answers_are_those_of_the_page(client, things):
    assert "search" in client.get("/secret/api/index").json()["can"]  # a page can do nothing, and is otherwise the same
    for path in ("runs/0", "stores/0", "stores/1/rows/1,2", "stores/0/latents/7", "graphs/0"):
        assert client.get(f"/secret/api/{path}").json() == json.loads(escaped_json(answer(things, path)))


def test_a_page_with_every_latent_is_every_answer(client, things):
    for path, _ in frozen(things, cards=8):
        if path.endswith("/rows"):  # a page's rows are all that it carries; live they are asked for by number
            continue
        assert client.get(f"/secret/api/{path}").status_code == 200


@pytest.mark.parametrize("path", ["/", "/wrong/", "/api/index", "/static/app.js", "/wrong/api/index"])
def test_without_the_token_there_is_nothing(client, path):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "path",
    ["static/index.html", "static/../page.py", "static/..%2fpage.py", "static/%2e%2e/page.py", "static//etc/passwd", "api/stores/9",
     "api/stores/0/latents/40", "api/stores/-1", "api/stores/0/latents/1/..", "api/graphs/0/text/0", "api/../index", "api/",
     "api/stores/0/latents/" + "9" * 400],
)  # fmt: skip
def test_no_path_leads_out(client, path):
    assert client.get(f"/secret/{path}").status_code == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1]", "0.0.0.0"]
)
def test_a_foreign_host_is_refused(client, host):
    assert client.get("/secret/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1234", "localhost:8000"])
def test_this_machine_is_answered(client, host):
    assert client.get("/secret/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/secret/", "/secret/api/index", "/secret/static/app.js", "/nothing"])
def test_every_reply_carries_the_policy(client, path):
    headers = client.get(path, headers={"origin": "https://evil.example"}).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe-eval" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_answers_cannot_be_written(client, method):
    assert client.request(method, "/secret/api/index").status_code == 405


@pytest.fixture
def double(monkeypatch):
    """An action that is there for the tests only."""
    monkeypatch.setitem(ACTIONS, "double", lambda live, body: {"twice": 2 * body["n"]})


def test_an_action_answers_with_json(client, double):
    assert client.post("/secret/api/act/double", json={"n": 4}).json() == {"twice": 8}
    assert client.post("/secret/api/act/double", json={"n": 4}, headers=OWN).status_code == 200
    assert client.get("/secret/api/act/double").status_code == 404
    assert client.post("/secret/api/act/nothing", json={}).status_code == 404
    assert client.post("/wrong/api/act/double", json={"n": 4}).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9999"}, {"sec-fetch-site": "cross-site"},
     {"sec-fetch-site": "same-site"}, {"origin": "https://evil.example", "sec-fetch-mode": "navigate"}],
)  # fmt: skip
def test_another_site_can_do_nothing(client, double, headers):
    assert client.post("/secret/api/act/double", json={"n": 4}, headers=headers).status_code == 403
    assert client.get("/secret/api/index", headers=headers).status_code == 403


def test_a_person_may_follow_a_link(client):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/secret/", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "word"),
    [
        (b"{}", "text/plain", "application/json"),
        (b"{}", "application/x-www-form-urlencoded", "application/json"),
        (b"{", JSON, "of JSON"),
        (b"[" * 100_000, JSON, "of JSON"),
        (b"[1]", JSON, "JSON object"),
        (b'"' + b"x" * (1 << 20) + b'"', JSON, "at most"),
        (b"\xff", JSON, "of JSON"),
        (b'{"m": 1}', JSON, "expected"),
    ],
)
def test_a_body_that_makes_no_sense_is_told(client, double, body, kind, word):
    reply = client.post("/secret/api/act/double", content=body, headers={"content-type": kind})
    assert reply.status_code == 400
    assert word in reply.json()["error"]


def test_a_stream_tells_line_by_line_and_its_failure_last(client, monkeypatch):
    def count(live, body):
        yield from ({"n": n} for n in range(body["to"]))
        raise UserError("expected more; got an end; stop")

    monkeypatch.setitem(STREAMS, "count", count)
    reply = client.post("/secret/api/stream/count", json={"to": 3})
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert lines == [{"n": 0}, {"n": 1}, {"n": 2}, {"error": "expected more; got an end; stop"}]
    assert client.post("/secret/api/stream/nothing", json={}).status_code == 404


def test_a_stream_ends_when_its_reader_has_gone(things, monkeypatch):
    ended = threading.Event()

    def endless(live, body):
        try:
            yield from ({"n": n} for n in range(10**9))
        finally:
            ended.set()

    monkeypatch.setitem(STREAMS, "endless", endless)
    address = serve(things, open=False, block=False)
    request = urllib.request.Request(
        address + "api/stream/endless", b"{}", {"content-type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert json.loads(reply.readline()) == {"n": 0}
    assert ended.wait(10)


def test_serve_prints_an_address_that_answers(things, capsys):
    address = serve(things, open=False, block=False)
    assert address in capsys.readouterr().err
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address + "api/index", timeout=10) as reply:
        assert json.load(reply)["title"] == "Unweave demo"


def test_a_taken_port_is_a_clear_error(things):
    address = serve(things, open=False, block=False)
    with pytest.raises(UserError, match="give another"):
        serve(things, port=int(address.split(":")[2].split("/")[0]), open=False, block=False)
