"""Documentation is tested: the README's code runs, its help text is the program's, every public name is explained."""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PACKAGES = ["unweave.kernels", "unweave.saes", "unweave.circuits", "unweave.viz"]
WIDTH = "100"  # columns of the help text in the README
BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
TOP_FILES = {"Makefile", "LICENSE", "setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "CHANGELOG.md"}


def blocks(language: str) -> list[tuple[str, int, str]]:
    """(rest of the fence line, line number of the code, code) of the README's blocks in `language`."""
    text = README.read_text(encoding="utf-8")
    found = [
        (match["info"].strip(), text.count("\n", 0, match.start("code")) + 1, match["code"])
        for match in BLOCK.finditer(text)
    ]
    return [
        (info.removeprefix(language).strip(), line, code)
        for info, line, code in found
        if info.split()[:1] == [language]
    ]


def environment(**more: str) -> dict[str, str]:
    quiet = {
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "BROWSER": "true",
        "NO_COLOR": "1",
    }
    return {**os.environ, **quiet, **more}


def public_names() -> list[tuple[str, str]]:
    return [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]


@pytest.mark.model
def test_readme_code_runs(tmp_path):
    """All blocks in order, each going on where the one before stopped, in an empty folder and on the CPU."""
    code = [(line, text) for info, line, text in blocks("python") if not info]
    assert code
    parts = [f"exec(compile({chr(10) * (line - 1) + text!r}, {str(README)!r}, 'exec'), names)" for line, text in code]
    script = tmp_path / "readme_blocks.py"
    script.write_text("names = {'__name__': '__main__'}\n" + "\n".join(parts), encoding="utf-8")
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, script], cwd=work, env=environment(), capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_readme_code_that_is_not_run_says_why():
    for info, line, _ in blocks("python"):
        assert not info or re.fullmatch(r"no-run: \S.{10,}", info), f"README.md line {line}: ```python {info}"


def test_readme_shows_the_help_of_sae_train():
    shown = [
        code
        for match in BLOCK.finditer(README.read_text(encoding="utf-8"))
        if "usage: sae-train" in (code := match["code"])
    ]
    assert len(shown) == 1
    command = Path(sys.executable).parent / "sae-train"
    real = subprocess.run(
        [command, "--help"], env=environment(COLUMNS=WIDTH), capture_output=True, text=True, check=True
    )
    assert bare(real.stdout) in bare(shown[0]), f"renew it with: COLUMNS={WIDTH} NO_COLOR=1 sae-train --help"


def bare(text: str) -> str:
    """`text` without white space, colours and the lines of boxes, so that only words are compared."""
    return re.sub(r"\x1b\[[0-9;]*m|[\s\u2500-\u257f]", "", text)


def test_every_public_name_has_a_docstring():
    missing = []
    for package, name in public_names():
        value = getattr(importlib.import_module(package), name)
        if inspect.isclass(value) or callable(value):
            own = vars(value).get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
            if not own or own.startswith(f"{name}("):  # what dataclass and NamedTuple write by themselves
                missing.append(f"{package}.{name}")
    assert not missing


def test_every_public_name_is_documented():
    pages = [README, *sorted((ROOT / "docs").rglob("*.md"))]
    words = set(re.findall(r"\w+", "\n".join(page.read_text(encoding="utf-8") for page in pages)))
    assert not [f"{package}.{name}" for package, name in public_names() if name not in words]


@pytest.mark.parametrize("config", ["TrainConfig", "DictionaryConfig"])
def test_every_field_of_a_config_has_a_note(config):
    cls = getattr(importlib.import_module("unweave.saes"), config)
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    noted = set()
    for statement, below in zip(body.body, body.body[1:], strict=False):
        is_note = (
            isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
        )
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and is_note:
            noted.add(statement.target.id)
    assert not {field.name for field in dataclasses.fields(cls) if field.init} - noted


def test_every_path_in_the_architecture_page_exists():
    """Words in backquotes that look like a path of the repository: a known top folder, a Python file, a top file."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {"kernels", "saes", "circuits", "audit", "viz", "examples", "benchmarks", "docs", "tests", ".ci"}
    words = set(re.findall(r"`([\w./-]+)`", text))
    rooted = {word for word in words if word in TOP_FILES or ("/" in word and word.split("/")[0] in folders)}
    loose = {word for word in words - rooted if re.fullmatch(r"\w+\.py", word)}
    known = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert rooted
    assert not {word for word in rooted if not (ROOT / word).exists()} | (loose - known)


@pytest.mark.parametrize("folder", ["viz/static/base", "viz/static/run", "viz/answers", "viz/actions", "tests"])
def test_the_architecture_page_names_what_is_shared(folder):
    """Every file of these folders, of tests/ those that tests share, by its name or path."""
    named = set(re.findall(r"`([\w./-]+)`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))
    apart = re.compile(r"__init__\.py|py\.typed|conftest\.py|test_.*|.*\.json|\..*")
    files = [path.name for path in (ROOT / folder).iterdir() if path.is_file() and not apart.fullmatch(path.name)]
    assert files
    assert not [name for name in files if name not in named and f"{folder}/{name}" not in named]
