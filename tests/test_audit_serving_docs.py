"""The page of the audit's tools says what is so: its table is the registry, its code runs, its flags are the command's."""

import inspect
import json
import re
from pathlib import Path

import audit_tools_toys as toys
from unweave.audit.investigate.command import audit
from unweave.audit.serving.command import mcp
from unweave.audit.serving.server import RESOURCES
from unweave.audit.serving.words import sentence
from unweave.audit.tools import TOOLS
from unweave.audit.tools.session import FREE
from unweave.viz.commands import show
from unweave.viz.tools import STATUS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "audit-tools.md").read_text(encoding="utf-8")


def table():
    """The registry as the page shows it."""
    rows = [f"| `{each.name}` | {each.group} | {each.cost} | {sentence(each.description)} |" for each in TOOLS.values()]
    return "\n".join(["| tool | group | runs | what it answers |", "|---|---|---|---|", *rows])


def test_the_table_is_the_registry():
    assert table() in PAGE, f"renew it:\n{table()}"
    assert len(re.findall(r"^\| `", PAGE, re.MULTILINE)) == len(TOOLS)


def test_its_code_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    known = toys.workspace()
    names = {
        "model": known.model(),
        "base": known.model("base"),
        "dictionary": known.dictionaries["resid"],
        "documents": toys.corpus(),
    }
    exec(compile(code, "docs/audit-tools.md", "exec"), names)
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["findings"][0]["status"] == "supported"


def test_its_json_is_json():
    found = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    for text in found:
        decoder, at = json.JSONDecoder(), 0
        while at < len(text):
            _, at = decoder.raw_decode(text, at)
            at += len(text[at:]) - len(text[at:].lstrip())


def test_its_flags_kinds_and_resources_are_real():
    assert set(re.findall(r"--([a-z]+)", PAGE)) <= {
        *inspect.signature(mcp).parameters,
        *inspect.signature(show).parameters,
        *inspect.signature(audit).parameters,
        "json",
    }
    assert all(f"`{kind}`" in PAGE and str(status) in PAGE for kind, status in STATUS.items())
    assert all(f"`{uri}`" in PAGE for uri in RESOURCES)
    assert all(f"`{name}`" in PAGE for name in FREE)
