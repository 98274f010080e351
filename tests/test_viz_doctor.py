"""`unweave doctor` tells what is here, in words and as JSON, and what will not work is listed with a remedy."""

import json
from types import SimpleNamespace

import pytest
import torch
from unweave.kernels import dispatch, which
from unweave.kernels.cpu import preselect
from unweave.viz import doctor
from unweave.viz.cli import run, usage


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    monkeypatch.delenv("UNWEAVE_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with one GPU, as far as anyone can ask torch."""
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


@pytest.fixture
def installed(monkeypatch):
    """A function that sets the installed version of a distribution."""
    real = doctor.importlib.metadata.version
    versions = {}

    def version(name):
        if versions.get(name, "") is None:
            raise doctor.importlib.metadata.PackageNotFoundError
        return versions.get(name) or real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    return lambda name, found: versions.update({name: found})


@pytest.fixture
def triton(monkeypatch):
    return lambda lack: (
        monkeypatch.setattr(dispatch, "lacks_triton", lambda: lack),
        monkeypatch.setattr(doctor, "has_triton", lambda: not lack),
    )


def test_json_is_one_object_with_everything(capsys):
    assert run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"versions", "devices", "UNWEAVE_KERNELS", "kernels", "problems"}
    assert set(report["versions"]) == {"python", *doctor.SHOWN}
    assert report["versions"]["torch"] == torch.__version__
    assert report["devices"]["cpu"]["cores"] >= 1 and report["devices"]["cpu"]["name"]
    assert report["devices"]["cpu"]["threads"] == torch.get_num_threads()
    assert report["UNWEAVE_KERNELS"] is None and report["problems"] == []
    rows = [row for row in report["kernels"] if row.pop("device") == "cpu"]
    assert rows == [choice._asdict() for choice in which(device="cpu")]


@pytest.mark.parametrize("has_tiles", [True, False])
def test_the_table_has_a_line_for_each_version_device_and_op(has_tiles, capsys, monkeypatch):
    monkeypatch.setattr(preselect, "has_fast_bfloat16", lambda: has_tiles)
    assert run(["doctor"]) == 0
    out, report = capsys.readouterr().out, doctor.examine()
    lines = [line.split() for line in out.splitlines()]
    for name, version in report["versions"].items():
        assert [name, version or "not"] in [line[:2] for line in lines]
    for op in dispatch.OPS:
        assert ["cpu", op, "cpu"] in [line[:3] for line in lines]
    assert "kernels (UNWEAVE_KERNELS is not set)" in out
    assert out.endswith("problems\n  none\n")
    assert max(map(len, out.splitlines())) <= 120


def test_it_is_among_the_commands_and_takes_no_flags(capsys):
    assert "doctor" in usage()
    with pytest.raises(SystemExit) as stop:
        run(["doctor", "--help"])
    assert stop.value.code == 0 and "exit code 1" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as stop:
        run(["doctor", "--fix"])
    assert stop.value.code == 2


def test_a_wrong_setting_is_a_problem_told_once(monkeypatch, capsys, gpu):
    monkeypatch.setenv("UNWEAVE_KERNELS", "fast")
    assert run(["doctor"]) == 1
    out = capsys.readouterr().out
    problem = "expected UNWEAVE_KERNELS to be one of reference, cpu, triton; got 'fast'; correct or unset it"
    assert "kernels (UNWEAVE_KERNELS is fast)" in out and out.count(problem) == 1
    assert run(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == [problem]


def test_a_setting_that_suits_one_device_only_is_a_problem_of_the_other(monkeypatch, gpu, triton):
    triton("")
    monkeypatch.setenv("UNWEAVE_KERNELS", "cpu")
    report = doctor.examine()
    assert {row["device"] for row in report["kernels"]} == {"cpu"}
    assert [problem.split(";")[1] for problem in report["problems"]] == [" got cuda"]


def test_a_gpu_is_described_with_its_kernels(gpu, triton, installed, capsys):
    triton("")
    installed("triton", "3.7.0")
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA H100, 80.0 GiB, capability 9.0" in out
    assert ["cuda", "decode", "triton"] in [line.split()[:3] for line in out.splitlines()]
    assert "built without it" not in out


@pytest.mark.parametrize(
    ("found", "lack"), [("3.2.0", "triton 3.2.0 is older than 3.6"), (None, "triton is not installed")]
)
def test_a_triton_that_does_not_fit_is_a_problem_of_a_gpu_alone(found, lack, gpu, triton, installed, monkeypatch):
    triton(lack)
    installed("triton", found)
    report = doctor.examine()
    (problem,) = report["problems"]
    assert problem.startswith("expected triton <3.10,>=3.6; found " + (found or "none"))
    assert problem.endswith("take a build of torch for CUDA that brings one of these")
    assert {row["path"] for row in report["kernels"] if row["device"] == "cuda"} == {"reference"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.examine()["problems"] == []


@pytest.mark.parametrize(
    ("name", "found", "told"),
    [
        ("transformers", "5.2.0", "found 5.2.0; pip install 'transformers<6,>=5.9'"),
        ("gguf", None, "found none; pip install"),
    ],
)
def test_a_version_outside_the_supported_range_is_a_problem(name, found, told, installed):
    installed(name, found)
    (problem,) = doctor.examine()["problems"]
    assert problem.startswith(f"expected {name} ") and told in problem


def test_why_something_is_missing_is_told(monkeypatch):
    assert doctor.absence("plotly") == "not installed"
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    assert doctor.absence("triton") == "not installed: there is none for darwin"
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert "built without it" in doctor.no_cuda()
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    assert "no device or no driver" in doctor.no_cuda()


def test_the_cpu_is_named_whatever_the_system(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\nprocessor : 1\nmodel name\t: Some CPU @ 2 GHz\n")
    assert doctor.cpu_model(info) == "Some CPU @ 2 GHz"
    assert doctor.cpu_model(tmp_path / "absent") == (doctor.platform.processor() or doctor.platform.machine())
    monkeypatch.delattr(doctor.os, "sysconf")
    assert doctor.memory_gib() is None
    assert "GiB" not in doctor.in_words(doctor.cpu())
