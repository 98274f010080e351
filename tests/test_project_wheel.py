"""The wheel, built without a network and opened."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["kernels", "saes", "circuits", "audit", "viz"]
NOT_PACKED = {"saes/data/make_corpus.py", "kernels/README.md"}  # for those who have the repository


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy, since building writes into the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ["setup.cfg", "pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, tree)
    for name in [*LAYERS, "tests"]:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree)]
    safe = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=out, env=safe, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_holds_every_file_of_the_packages_and_no_other(wheel):
    ours = {
        path.relative_to(ROOT).as_posix() for layer in LAYERS for path in (ROOT / layer).rglob("*") if path.is_file()
    }
    ours = {name for name in ours if "__pycache__" not in name and name not in NOT_PACKED}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {f"unweave/{name}" for name in ours}


def test_wheel_holds_types_corpus_and_front_end(wheel):
    names = set(wheel.namelist())
    assert {f"unweave/{layer}/py.typed" for layer in LAYERS} <= names
    assert {"unweave/saes/data/corpus.jsonl.gz", "unweave/saes/data/SOURCES.md"} <= names
    assert any(name.startswith("unweave/viz/static/") for name in names)


def test_wheel_names_its_commands_licence_and_no_tests(wheel):
    names = wheel.namelist()
    (entry_points,) = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
    text = wheel.read(entry_points).decode()
    assert "unweave = unweave.viz.cli:main" in text
    assert "sae-train = unweave.saes.cli:main" in text
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if "test" in Path(name).name and not name.startswith("unweave/")]


def test_packages_work_from_the_unpacked_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import unweave.saes.corpus as corpus\n"
        f"assert corpus.__file__.startswith({str(tmp_path)!r}), corpus.__file__\n"
        "assert len(corpus.bundled()) > 100"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
