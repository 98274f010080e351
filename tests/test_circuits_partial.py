"""An interrupted trace goes on from its finished rows to the same graph, bit for bit; running out of memory says so."""

import importlib
import json
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from toys import boot, part, prompt, transcoder
from unweave.circuits import Graph, trace
from unweave.saes.errors import UserError

module = importlib.import_module("unweave.circuits.trace")  # the package's name `trace` is the function
OPTIONS = {"targets": [5], "max_features": 300, "memory_mib": 1}  # 10 batches

model = cache(boot)


def run(folder=None, tokens=None, **changes):
    given = [transcoder(1, skip=True), part("blocks.0.hook_attn_out")]
    tokens = prompt(8) if tokens is None else tokens
    return trace(model("llama"), tokens, given, **(OPTIONS | changes), partial=folder)


@pytest.fixture(scope="module")
def whole():
    return run()


def pieces(folder):
    return sorted(Path(folder).glob("rows-*.safetensors"))


def assert_same(ours: Graph, theirs: Graph):
    assert ours.nodes == theirs.nodes
    assert all(torch.equal(a, b) for a, b in zip(ours.edges, theirs.edges, strict=True))
    assert torch.equal(ours.row_values.nan_to_num(-1), theirs.row_values.nan_to_num(-1))
    assert ours.metadata == theirs.metadata


class Killed(Exception):
    """What stands for a kill."""


@pytest.fixture
def killed(monkeypatch, tmp_path):
    """A folder in which a trace was stopped in its fourth batch: three finished ones."""
    true, count = module.sparse, []

    def stops(rows, most=None, rest=-1):
        count.append(len(rows.node))
        if len(count) == 4:
            raise Killed
        return true(rows, most, rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "sparse", stops)
        with pytest.raises(Killed):
            run(tmp_path / "rows")
    assert len(pieces(tmp_path / "rows")) == 3
    return tmp_path / "rows"


def rows_done(monkeypatch):
    """Counts the rows that are recorded from now on."""
    true, count = module.sparse, []

    def counting(rows, most=None, rest=-1):
        count.append(len(rows.node))
        return true(rows, most, rest)

    monkeypatch.setattr(module, "sparse", counting)
    return count


def test_an_interrupted_trace_goes_on_to_the_same_graph(killed, whole, monkeypatch):
    done = rows_done(monkeypatch)
    assert_same(run(killed), whole)
    assert 0 < sum(done) < int((~whole.row_values.isnan()).sum())
    assert not killed.exists()


def test_an_uninterrupted_trace_leaves_no_folder(tmp_path, whole):
    assert_same(run(tmp_path / "deep" / "rows"), whole)
    assert not (tmp_path / "deep" / "rows").exists()


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "absent", "flipped weight", "flipped source", "flipped header"]
)
@pytest.mark.parametrize("which", [0, 2])
def test_damaged_rows_are_done_again(killed, whole, damage, which):
    path = pieces(killed)[which]
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    begin = header + json.loads(data[8:header])["source" if "source" in damage else "weight"]["data_offsets"][0]
    match damage:
        case "truncated":
            data = data[: len(data) * 2 // 3]
        case "empty":
            data = b""
        case "flipped header":
            data[20] ^= 1
        case "flipped weight" | "flipped source":
            data[begin + 40] ^= 4
    path.write_bytes(data)
    if damage == "absent":
        path.unlink()
    assert_same(run(killed), whole)
    assert not killed.exists()


def test_a_half_written_file_is_no_hindrance(killed, whole):
    (killed / ".tmp-77-rows-00003.safetensors").write_bytes(b"half")
    assert_same(run(killed), whole)


def test_a_kill_before_the_first_note_is_no_hindrance(tmp_path, whole):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / ".tmp-77-trace.json").write_text("{")
    assert_same(run(tmp_path / "rows"), whole)


@pytest.mark.parametrize("memory_mib", [2, 64])
def test_another_memory_bound_goes_on(killed, whole, memory_mib, monkeypatch):
    done = rows_done(monkeypatch)
    ours = run(killed, memory_mib=memory_mib)
    assert sum(done) < int((~whole.row_values.isnan()).sum())
    assert ours.nodes == whole.nodes
    assert torch.equal(ours.edges.source, whole.edges.source) and torch.equal(ours.edges.target, whole.edges.target)
    torch.testing.assert_close(ours.edges.weight, whole.edges.weight, rtol=1e-10, atol=1e-14)
    assert ours.residual <= 1e-12


@pytest.mark.parametrize(
    "change",
    [{"tokens": prompt(8, seed=1)}, {"targets": [6]}, {"max_features": 299}, {"neurons": "gate"}, {"centred": False}],
)
def test_the_rows_of_another_trace_are_refused_and_kept(killed, change):
    before = {path.name: path.read_bytes() for path in killed.iterdir()}
    with pytest.raises(UserError, match="another one's; remove the folder"):
        run(killed, **change)
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == before


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match="expected an empty folder, or an interrupted trace's"):
            run(path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_broken_notes_are_refused(killed):
    (killed / "trace.json").write_text("{")
    with pytest.raises(UserError, match="the notes of an interrupted trace"):
        run(killed)


CHILD = """
import sys, time, importlib
sys.path.insert(0, {tests!r})
import test_circuits_partial as here
true = here.module.sparse
def slow(*arguments):
    time.sleep(0.2)
    return true(*arguments)
here.module.sparse = slow
here.run(sys.argv[1])
"""


def test_a_killed_process_goes_on(tmp_path, whole):
    folder = tmp_path / "rows"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(tests=str(Path(__file__).parent)), str(folder)], cwd=tmp_path
    )
    try:
        until = time.monotonic() + 120
        while len(pieces(folder)) < 2 and child.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert len(pieces(folder)) >= 2
    assert_same(run(folder), whole)
    assert not folder.exists()


OUT_OF_MEMORY = [
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["python", "torch", "cuda"])
@pytest.mark.parametrize("place", ["sparse", "Totals", "build_machine", "record_rows", "assemble"])
def test_running_out_of_memory_names_the_bounds(error, place, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr(module, place, fails)
    with pytest.raises(
        UserError, match=r"enough memory to trace 8 tokens with 300 features.*lower memory_mib \(now 1\), max_edges"
    ):
        run()


def test_running_out_of_memory_keeps_finished_rows(tmp_path, whole, monkeypatch):
    true, count = module.sparse, []

    def fails(*arguments):
        count.append(0)
        if len(count) == 3:
            raise MemoryError
        return true(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "sparse", fails)
        with pytest.raises(UserError, match="rows finished so far are kept in"):
            run(tmp_path / "rows")
    assert len(pieces(tmp_path / "rows")) == 2
    assert_same(run(tmp_path / "rows"), whole)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ZeroDivisionError("x")])
def test_other_errors_are_not_called_a_lack_of_memory(error, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr(module, "sparse", fails)
    with pytest.raises(type(error), match=str(error)):
        run()
