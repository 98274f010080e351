"""The rules of the tree, read off its syntax: imports go one way, nothing unpickles, heavy imports wait, files are short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["kernels", "saes", "circuits", "audit", "viz"]
HEAVY = {"transformer_lens", "transformers", "plotly", "starlette", "uvicorn", "datasets", "mcp"}
PICKLING = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
FILES = sorted(path.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
LONGEST = 320


def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def modules(path: Path, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Absolute names of what is imported; for `from a import b` both a and a.b, since b may be a module."""
    package = ["unweave", *path.parent.parts]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that run when the module is imported: not those in functions or under `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_import(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from at_import(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from at_import(handler.body)


def wrong_layers(path: Path, tree: ast.Module) -> list[str]:
    allowed = LAYERS[: LAYERS.index(path.parts[0]) + 1]
    own = [name.split(".") for name in modules(path, ast.walk(tree)) if name.split(".")[0] == "unweave"]
    return [".".join(name) for name in own if len(name) > 1 and name[1] not in allowed]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_one_way(path):
    assert not wrong_layers(path, parse(path))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_own_imports_are_relative(path):
    imported = [node for node in ast.walk(parse(path)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    named = [ast.unparse(node) for node in imported if not getattr(node, "level", 0)]
    tops = [line.split()[1].split(".")[0] for line in named]
    assert not set(tops) & {"unweave", *LAYERS}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_heavy_imports_wait_until_they_are_used(path):
    tops = {name.split(".")[0] for name in modules(path, at_import(parse(path).body))}
    assert not tops & HEAVY


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_unpickles(path):
    tree = parse(path)
    assert not {name.split(".")[0] for name in modules(path, ast.walk(tree))} & PICKLING
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"pandas.read_pickle", "pd.read_pickle", "eval", "exec"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        # Other libraries' checkpoints are read as plain tensors, and written so, in one place.
        if ast.unparse(call.func) in ("torch.load", "torch.save"):
            assert path == Path("saes/formats/files.py")
        if ast.unparse(call.func) == "torch.load":
            assert given.get("weights_only") == "True"
        assert given.get("allow_pickle", "False") == "False"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_are_short_enough_to_read(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("kernels/a.py", "from ..saes import Codes", "unweave.saes"),
        ("kernels/a.py", "from .. import saes", "unweave.saes"),
        ("saes/a.py", "def f():\n    import unweave.viz.cli", "unweave.viz.cli"),
        ("saes/formats/a.py", "from ...circuits.graph import Graph", "unweave.circuits.graph"),
        ("circuits/a.py", "from ..viz import show", "unweave.viz"),
    ],
)
def test_the_layer_rule_sees_a_wrong_import(path, source, found):
    assert found in wrong_layers(Path(path), ast.parse(source))


def test_the_layer_rule_lets_a_right_import_pass():
    tree = ast.parse("from ..kernels import topk\nfrom .errors import UserError\nfrom .. import saes\nimport torch")
    assert not wrong_layers(Path("circuits/a.py"), tree)


def test_every_layer_has_files():
    assert {path.parts[0] for path in FILES} == set(LAYERS)
