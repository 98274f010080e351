"""The live server answers this machine and who has the token, with the same answers as the page; nothing else."""

import json
import urllib.request

import fakes
import pytest
from unweave.saes import UserError
from unweave.viz import serve
from unweave.viz.answers import answer, frozen
from unweave.viz.page import escaped_json
from unweave.viz.server import application
from unweave.viz.things import open_things

pytest.importorskip("httpx", reason="httpx is missing: pip install httpx")


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
    assert '<script type="module" src="static/main.js">' in page.text
    for name, kind in {"main.js": "text/javascript", "style.css": "text/css", "plotly.js": "text/javascript"}.items():
        reply = client.get(f"/secret/static/{name}")
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith(kind)


def test_answers_are_those_of_the_page(client, things):
    for path in ("index", "runs/0", "stores/0", "stores/1/rows/1,2", "stores/0/latents/7", "graphs/0"):
        assert client.get(f"/secret/api/{path}").json() == json.loads(escaped_json(answer(things, path)))


def test_a_page_with_every_latent_is_every_answer(client, things):
    for path, _ in frozen(things, cards=8):
        if path.endswith("/rows"):  # a page's rows are all that it carries; live they are asked for by number
            continue
        assert client.get(f"/secret/api/{path}").status_code == 200


@pytest.mark.parametrize("path", ["/", "/wrong/", "/api/index", "/static/main.js", "/wrong/api/index"])
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


@pytest.mark.parametrize("path", ["/secret/", "/secret/api/index", "/secret/static/main.js", "/nothing"])
def test_every_reply_carries_the_policy(client, path):
    headers = client.get(path, headers={"origin": "https://evil.example"}).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe-eval" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(client, method):
    assert client.request(method, "/secret/api/index").status_code == 405


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
