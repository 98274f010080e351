"""`unweave mcp` as a client starts it: the official client end to end, and a raw one that sees every byte of standard output."""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import anyio
import audit_diffing_toys as planted
import pytest
import torch
import toys
from audit_tools_toys import HOSTILE
from mcp import Client, StdioServerParameters, stdio_client
from unweave.audit.serving.command import mcp
from unweave.audit.tools import TOOLS, Workspace, replay, schemas
from unweave.saes import UserError
from unweave.viz import cli

CHILD = str(Path(__file__).with_name("audit_serving_child.py"))
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model, a dictionary, and texts, the last of them hostile."""
    folder = tmp_path_factory.mktemp("home")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        toys.hugging_face("llama", dtype=torch.float32).save_pretrained(folder / "model")
        toys.tokenizer().save_pretrained(folder / "model")
    planted.dictionary().save(folder / "resid")
    lines = [json.dumps({"text": text}) + "\n" for text in [*planted.texts(8), *HOSTILE]]
    (folder / "texts.jsonl").write_text("".join(lines))
    return folder


def flags(home, out):
    folders = ["--dictionary", str(home / "resid"), "--text", str(home / "texts.jsonl")]
    return [str(home / "model"), *folders, "--out", str(out), "--calls", "6", "--seed", "3"]


def test_the_official_client_from_end_to_end(home, tmp_path):
    """Lists, calls, reads, errs, spends all, and leaves; what stays replays on the same folders."""
    out = tmp_path / "out"
    server = StdioServerParameters(command=sys.executable, args=[CHILD, "mcp", *flags(home, out)], env=ENVIRONMENT)

    async def run():
        async with Client(stdio_client(server)) as client:
            tools = (await client.list_tools()).tools
            assert [(tool.name, tool.input_schema) for tool in tools] == [
                (tool.name, tool.parameters) for tool in TOOLS.values()
            ]
            calls = [
                ("list_models", {}),
                ("top_features", {"text": "w5 w6 w5"}),
                ("top_features", {"text": 7}),
                ("chat", {"text": "w5 w6", "tokens": 3, "temperature": 1.0}),
                ("chat", {"text": "w5 w6", "system": "x" * 300_000}),
                ("nothing", {"a": [None]}),
                ("list_models", {}),
                ("hypothesis", {"action": "add", "statement": "w5", "status": "supported", "evidence": ["r2"]}),
            ]
            found = [await client.call_tool(name, arguments) for name, arguments in calls]
            log = (await client.read_resource("run://log")).contents[0].text
            return [result.structured_content for result in found], log

    found, log = anyio.run(run)
    kinds = ["ok" if each["ok"] else each["error"]["kind"] for each in found]
    assert kinds == ["ok", "ok", "arguments", "ok", "arguments", "unknown_tool", "budget", "ok"]
    assert log == (out / "transcript.jsonl").read_text()
    report = json.loads((out / "report.json").read_text())
    assert [each["id"] for each in report["findings"][0]["evidence"]] == ["r2"]
    again = Workspace.open([home / "resid"], model=str(home / "model"), text=home / "texts.jsonl")
    replayed = replay(out / "transcript.jsonl", again)
    assert (replayed.calls, replayed.differences) == (8, ())
    with pytest.raises(UserError, match="is there already"):
        mcp(str(home / "model"), out=out, http=True)


def line(**message):
    return json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"


HELLO = line(id=1, method="initialize",
             params={"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}})  # fmt: skip
WRONG = [b"garbage\n", b"[" * 100_000 + b"\n", b"\xff\xfe\x00\n", b"[]\n", b"5\n", b"x" * 2_000_000 + b"\n", b"\n"]


def tool(number, name, arguments):
    return line(id=number, method="tools/call", params={"name": name, "arguments": arguments})


def test_standard_output_carries_the_protocol_and_nothing_else(home, tmp_path):
    """Noise while loading and working, input that is none, then an impatient client that goes in the middle of a call: the call is
    finished, written down and reported, and the process ends well."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, CHILD, "mcp", "--json", *flags(home, out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    with process:
        assert process.stdin and process.stdout and process.stderr
        last = threading.Timer(90, process.kill)
        last.start()
        process.stdin.write(b"".join([HELLO, *WRONG, line(method="notifications/initialized")]))
        process.stdin.write(
            tool(2, "list_models", {}) + tool(3, "note", {"text": float("nan")}) + tool(4, "budget", {})
        )
        process.stdin.flush()
        said = b""
        while b"STARTED" not in said:
            said += process.stderr.readline() or pytest.fail(f"the server ended or was ended: {said!r}")
        process.stdin.close()
        process.send_signal(signal.SIGTERM)
        answers = [json.loads(each) for each in process.stdout.read().decode().splitlines()]
        said += process.stderr.read()
        assert process.wait() == 0
        last.cancel()
    assert all(each["jsonrpc"] == "2.0" for each in answers)
    assert {each["id"]: each.get("result", {}).get("isError") for each in answers if each["id"] in (2, 3)} == {
        2: False,
        3: True,
    }
    assert said.count(b"NOISE") == 6
    calls = [json.loads(each) for each in (out / "transcript.jsonl").read_text().splitlines()[1:]]
    assert [(each["tool"], each["reply"]["ok"]) for each in calls] == [
        ("list_models", True),
        ("note", False),
        ("budget", True),
    ]
    assert json.loads((out / "report.json").read_text())["calls"] == 3


def test_a_killed_server_goes_on_with_its_session(home, tmp_path, monkeypatch):
    from unweave.audit.serving import command

    out, known = tmp_path / "out", (str(home / "model"), None, (home / "resid",), (str(home / "texts.jsonl"),), 3)
    first = command._session(*known, (9, 99, 99_999), out, False, None)
    seen = first.call("top_features", {"text": "w5 w6 w5"})
    first.call("hypothesis", {"action": "add", "statement": "w5", "status": "supported", "evidence": [seen.id]})
    with (out / "transcript.jsonl").open("a") as stream:
        stream.write('{"id": "r3", "to')  # killed while it wrote

    def served(session, port):
        assert session.spending.runs == first.spending.runs and session.call("budget", {}).id == "r3"

    monkeypatch.setattr("unweave.audit.serving.http.serve_http", served)
    given = {"dictionary": (home / "resid",), "text": (str(home / "texts.jsonl"),), "seed": 3, "http": True, "out": out}
    limits = {"calls": 9, "runs": 99, "tokens": 99_999}
    assert mcp(str(home / "model"), **given, **limits, resume=True)["calls"] == 3
    assert json.loads((out / "report.json").read_text())["findings"][0]["evidence"][0]["id"] == "r1"
    with pytest.raises(UserError, match="got other budget"):
        mcp(str(home / "model"), **given, resume=True)


def test_schemas_are_told_without_a_model(capsys):
    assert cli.run(["mcp", "--schemas", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schemas"] == json.loads(json.dumps(schemas()))
    assert cli.run(["mcp", "--schemas"]) == 0
    assert all(name in capsys.readouterr().out for name in [*TOOLS][:1])


@pytest.mark.parametrize(
    ("given", "word"),
    [([], "a model to audit"), (["x", "--resume"], "--out with --resume"), (["x", "--port", "8000"], "--http"),
     (["/nowhere", "--http"], "local model folder"), (["x", "--http", "--calls", "-1"], "0 or more")],
)  # fmt: skip
def test_wrong_commands_end_with_2(given, word, capsys):
    assert cli.run(["mcp", *given]) == 2
    assert word in capsys.readouterr().err
