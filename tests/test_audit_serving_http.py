"""The MCP server over HTTP and the official client: the registry's tools as they are, mistakes as replies, nobody else let in."""

import dataclasses
import json
import re
import threading
import time

import anyio
import audit_tools_toys as toys
import httpx
import pytest
from mcp import Client, MCPError, types
from unweave.audit.serving import serve_http
from unweave.audit.serving.http import LARGEST_BODY
from unweave.audit.serving.server import as_text
from unweave.audit.serving.words import INSTRUCTIONS, INVESTIGATE
from unweave.audit.tools import TOOLS, Budget, replay

HELLO = {"jsonrpc": "2.0", "id": 1, "method": "initialize",
         "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}}  # fmt: skip
ACCEPT = {"accept": "application/json, text/event-stream"}


@pytest.fixture
def served(request):
    """A session over the toys' workspace, and its address."""
    session = toys.session(**getattr(request, "param", {}))
    return session, serve_http(session, block=False)


def ask(address, work, mode="auto"):
    """What `work(client)` returns."""

    async def run():
        async with Client(address, mode=mode) as client:
            return await work(client)

    return anyio.run(run)


def refusal(address, work):
    """What the server says to `work(client)`, which it refuses."""

    async def tried(client):
        with pytest.raises(MCPError) as error:
            await work(client)
        return error.value.message

    return ask(address, tried)


def call(address, *calls):
    """The results of calls made one after the other."""

    async def work(client):
        return [await client.call_tool(name, arguments) for name, arguments in calls]

    return ask(address, work)


def replies(results):
    return [result.structured_content for result in results]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_tools_are_the_registrys(served, mode):
    tools = ask(served[1], lambda client: client.list_tools(), mode).tools
    assert [tool.name for tool in tools] == list(TOOLS)
    for tool in tools:
        known = TOOLS[tool.name]
        assert tool.input_schema == known.parameters
        assert known.description in (tool.description or "")
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is known.reads_only
        assert (tool.annotations.destructive_hint, tool.annotations.open_world_hint) == (False, False)


def test_replies_are_the_sessions(served):
    calls = [
        ("list_models", {}),
        ("top_features", {"text": "w5 w6 w5"}),
        ("hypothesis", {"action": "add", "statement": "w5 is special", "status": "supported", "evidence": ["r2"]}),
        ("report", {}),
    ]
    found = call(served[1], *calls)
    assert replies(found) == [toys.session().call(*calls[0]).to_dict(), *replies(found)[1:]]
    again = toys.session()
    assert replies(found) == [again.call(*each).to_dict() for each in calls]
    for result in found:
        assert not result.is_error
        assert [json.loads(part.text) for part in result.content] == [result.structured_content]
    assert replies(found)[3]["result"]["findings"][0]["evidence"] == ["r2 (top_features)"]


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "word"),
    [
        ("top_features", {"text": 5}, "arguments", "text"),
        ("top_features", {"text": "w5", "paths": "/etc/passwd"}, "arguments", "paths"),
        ("top_features", {"text": "w5", "k": 10**9}, "arguments", "k"),
        ("top_features", {"text": "w5 " * 100_000}, "arguments", "at most"),
        ("top_features", {"text": {"a": [{"b": [[[[[]]]]]}] * 9}}, "arguments", "text"),
        ("top_features", {"text": "w5", "dictionary": "../../etc"}, "user", "list_models"),
        ("more", {"handle": "r9/2"}, "arguments", "handle"),
        ("os.system", {"command": "touch /tmp/x"}, "unknown_tool", "choose one"),
        ("", {}, "unknown_tool", "choose one"),
    ],
)
def test_mistakes_are_replies_and_the_server_lives_on(served, name, arguments, kind, word):
    wrong, right = call(served[1], (name, arguments), ("budget", {}))
    assert wrong.is_error
    assert wrong.structured_content["error"]["kind"] == kind
    assert word in wrong.structured_content["error"]["message"]
    assert len(wrong.content[0].text) < 7_000
    assert not right.is_error
    assert right.structured_content["id"] == "r2"


def test_more_than_a_mebibyte_is_not_read(served):
    assert refusal(served[1], lambda client: client.call_tool("top_features", {"text": "x" * LARGEST_BODY}))
    assert call(served[1], ("budget", {}))[0].structured_content["id"] == "r1"


@pytest.mark.parametrize("served", [{"budget": Budget(calls=2)}], indirect=True)
def test_a_spent_budget_is_told_and_concluding_goes_on(served):
    *_, spent, concluded = call(served[1], *[("list_models", {})] * 3, ("report", {"summary": "nothing"}))
    assert spent.is_error
    assert spent.structured_content["error"]["kind"] == "budget"
    assert not concluded.is_error


def test_the_log_is_a_transcript_that_replays(served, tmp_path):
    calls = [("top_features", {"text": "w5"}), ("nothing", {}), ("note", {"text": "w5 \u2028 again"})]

    async def work(client):
        for name, arguments in calls:
            await client.call_tool(name, arguments)
        read = [await client.read_resource(uri) for uri in ("run://log", "store://manifest")]
        listed = await client.list_resources()
        return [each.uri for each in listed.resources], [each.contents[0].text for each in read]

    listed, (log, manifest) = ask(served[1], work)
    assert set(listed) == {"run://log", "store://manifest"}
    (tmp_path / "log.jsonl").write_text(log)
    replayed = replay(tmp_path / "log.jsonl", toys.workspace())
    assert (replayed.calls, replayed.equal) == (3, True)
    about = json.loads(manifest)
    assert set(about["models"]) == {"target", "base"}
    assert about["fingerprints"] == json.loads(json.dumps(toys.workspace().fingerprints()))
    assert served[0].spending.calls == 2  # reading is not a call; the note is free


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "run://log/../../etc/passwd", "store://manifest?x", ""])
def test_no_other_resource_is_there(served, uri):
    assert refusal(served[1], lambda client: client.read_resource(uri)).startswith("expected one of store://manifest")


def test_the_prompt_names_tools_that_there_are(served):
    async def work(client):
        return await client.list_prompts(), await client.get_prompt("investigate")

    listed, found = ask(served[1], work)
    assert [each.name for each in listed.prompts] == ["investigate"]
    assert found.messages[0].content == types.TextContent(text=INVESTIGATE)
    assert refusal(served[1], lambda client: client.get_prompt("other")).startswith("expected the prompt investigate")
    named = set(re.findall(r"\b[a-z]+_[a-z]+\b", INVESTIGATE + INSTRUCTIONS))
    assert named <= set(TOOLS), named - set(TOOLS)


def data(value, is_marked=False):
    """Strings of a reply that are not marked as untrusted."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from [name] if not is_marked else []
            yield from data(each, name == "untrusted")
    elif isinstance(value, list):
        for each in value:
            yield from data(each)
    elif isinstance(value, str) and not is_marked:
        yield value


def test_hostile_text_stays_data_on_its_whole_way(served):
    """What the corpus says shows under `untrusted` alone, with nothing hidden in it, and nothing is done that it asks for."""
    calls = [("top_features", {"text": text[:200]}) for text in toys.HOSTILE]
    calls += [("activations", {"latents": [toys.PLANTED], "texts": [text[:200] for text in toys.HOSTILE]})]
    calls += [("search_data", {"query": "SYSTEM"})] if "search_data" in TOOLS else []
    found = call(served[1], *calls)
    assert not any(result.is_error for result in found)
    text = "".join(result.content[0].text for result in found)
    assert not any(hidden in text for hidden in ("\x00", "\x1b", "\u202e", "\U000e0041", "\\u0000", "\\u202e"))
    for result in found:
        words = " ".join(data(result.structured_content))
        assert not any(said in words for said in ("SYSTEM", "IGNORE", "script", "evil", "passwd"))
    session = served[0]
    assert (session.board.hypotheses, session.board.notes, session.summary) == ({}, [], "")


class Slow:
    """Stands in for the tool `budget`: `began` says at each call how many were inside already; none ends while `held`."""

    def __init__(self):
        self.began, self.inside, self.real = [], 0, TOOLS["budget"]
        self.free = threading.Event()
        self.free.set()

    def __call__(self, session):
        self.began.append(self.inside)
        self.inside += 1
        time.sleep(0.1)
        self.free.wait(20)
        self.inside -= 1
        return self.real.function(session)


@pytest.fixture
def slow(monkeypatch):
    tool = Slow()
    monkeypatch.setitem(TOOLS, "budget", dataclasses.replace(tool.real, function=tool))
    return tool


def test_calls_at_once_take_turns(served, slow):
    found = []

    async def work(client):
        async def one():
            found.append((await client.call_tool("budget", {})).structured_content["id"])

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(one)

    threads = [threading.Thread(target=ask, args=(served[1], work)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"r{n}" for n in range(1, 7)]
    assert slow.began == [0] * 6


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_client_that_goes_leaves_a_whole_session(served, slow, mode):
    """The call that was being answered is finished and written down; the one that waited for it is dropped."""
    session, address = served

    async def work(client):
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "budget", {})
            group.start_soon(client.call_tool, "budget", {})
            while not slow.began:
                await anyio.sleep(0.01)
            await anyio.sleep(0.2)  # for the second one to arrive
            group.cancel_scope.cancel()
        threading.Timer(0.5, slow.free.set).start()  # when the server has heard of it

    slow.free.clear()
    ask(address, work, mode)
    assert call(address, ("list_models", {}))[0].structured_content["id"] == "r2"
    assert [(each["tool"], each["ok"]) for each in session.results.values()] == [
        ("budget", True),
        ("list_models", True),
    ]


def test_half_a_surrogate_pair_does_not_end_the_stream():
    assert json.loads(as_text({"text": "a\ud800b\u2028"}).encode()) == {"text": "a?b\u2028"}


def post(address, headers, **body):
    return httpx.post(address, headers=ACCEPT | headers, **body)


def test_only_who_knows_the_token_is_answered(served):
    base = served[1].rsplit("/", 2)[0]
    assert post(served[1], {}, json=HELLO).status_code == 200
    for path in ("/", "/mcp", "/wrong/mcp", "/wrong", "//mcp"):
        assert post(base + path, {}, json=HELLO).status_code == 404


def test_other_sites_are_refused(served):
    address = served[1]
    port = address.split(":")[2].split("/")[0]
    for host in (
        "evil.example",
        f"evil.example:{port}",
        f"127.0.0.1.evil.example:{port}",
        "127.0.0.1:1",
        f"0.0.0.0:{port}",
    ):
        assert post(address, {"host": host}, json=HELLO).status_code == 421
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", f"http://localhost:{port}.evil.example"):
        assert post(address, {"origin": origin}, json=HELLO).status_code == 403
    assert post(address, {"content-type": "text/plain"}, content=json.dumps(HELLO)).status_code == 400
    assert post(address, {"origin": f"http://127.0.0.1:{port}"}, json=HELLO).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff", b"[]", b"5"])
def test_a_body_that_makes_no_sense_is_refused(served, body):
    assert post(served[1], {"content-type": "application/json"}, content=body).status_code == 400
    assert post(served[1], {}, json=HELLO).status_code == 200
