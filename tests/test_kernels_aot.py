"""The Triton kernels compiled for GPUs that are not here: registers, spills, shared memory and tensor cores.

The interpreter accepts what the compiler does not. All of it in one process, since Triton decides when a kernel is defined
whether to interpret it; `make check` compiles the rest, with the oldest and the newest Triton.
"""

import importlib.util
import json
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest
from kernel_tools import COMPILER

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

SCRIPT = """
import json
from unweave.kernels.gpu.aot import CONFIGURATIONS, is_matmul
from unweave.kernels.gpu.launch import TARGETS, compile_for

def row(configuration, target):
    report = compile_for(configuration, target)
    return [report._asdict(), configuration.registers, report.broken(configuration.registers, is_matmul(configuration))]

matmuls = [one for one in CONFIGURATIONS if one.name in ("group_matmul.16_bit", "group_matmul.32_bit")]
rows = [row(one, "sm_90") for one in CONFIGURATIONS]
rows += [row(one, target) for one in matmuls for target in TARGETS if target != "sm_90"]
# Too few registers, and as a matmul that must have tensor cores one that has none.
cramped = row(matmuls[0]._replace(registers=100), "sm_90")[2]
without = compile_for(matmuls[1], "sm_90").broken(255, needs_tensor_cores=True)
print(json.dumps(dict(rows=rows, cramped=cramped, without=without)))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What the compiler reports, from an empty cache."""
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = {**COMPILER, "TRITON_CACHE_DIR": cache, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kernel_keeps_its_limits(compiled):
    assert len(compiled["rows"]) > 40
    assert [(row[0]["name"], row[0]["target"], row[2]) for row in compiled["rows"] if row[2]] == []


def test_nothing_spills_and_no_thread_takes_more_registers_than_it_may(compiled):
    for report, registers, _ in compiled["rows"]:
        assert report["local"] == 0, report
        assert 0 < report["registers"] <= registers <= 255, report
        assert report["shared"] <= {"gfx942": 64, "sm_80": 163}.get(report["target"], 227) * 1024, report


def test_the_matmul_of_16_bit_numbers_is_on_tensor_cores(compiled):
    targets = {row[0]["target"] for row in compiled["rows"] if row[0]["name"] == "group_matmul.16_bit"}
    assert targets == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert all(row[0]["tensor_cores"] for row in compiled["rows"] if row[0]["name"] == "group_matmul.16_bit")


def test_broken_limits_are_seen(compiled):
    assert any("local memory" in broken for broken in compiled["cramped"])
    assert compiled["without"] == ["a matmul without tensor cores"]


def test_every_way_to_launch_a_kernel_is_compiled(compiled):
    """Every table that a module of gpu/ has, whether or not it is in that module's list of all."""
    from unweave.kernels import gpu
    from unweave.kernels.gpu.launch import Configuration

    modules = [import_module(f"{gpu.__name__}.{found.name}") for found in pkgutil.iter_modules(gpu.__path__)]
    tables = [table for module in modules for table in vars(module).values() if isinstance(table, list)]
    launched = {(row.kernel.__name__, row.shape) for table in tables for row in table if isinstance(row, Configuration)}
    assert launched == {tuple(row[0]["name"].split(".")[:2]) for row in compiled["rows"]}


def test_a_kernel_that_is_interpreted_cannot_be_compiled():
    from unweave.kernels.gpu import aot
    from unweave.kernels.gpu.launch import compile_for

    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
            compile_for(aot.CONFIGURATIONS[0], "sm_90")


def test_importing_the_package_leaves_triton_alone():
    code = "import sys, unweave.kernels; sys.exit('triton' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={**COMPILER, "PYTHONSAFEPATH": "1"}, check=False).returncode
        == 0
    )


def test_the_command_says_what_it_found_and_fails_when_a_limit_is_broken(tmp_path):
    environment = {**COMPILER, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "unweave.kernels.gpu.aot", "--target", "sm_90", "order"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [line.split()[3] for line in done.stdout.splitlines()] == ["order.by_value", "order.by_latent"]
    assert all(line.endswith("ok") for line in done.stdout.splitlines())
    code = (
        "import sys; from unweave.kernels.gpu import aot\n"
        "aot.CONFIGURATIONS[:] = [aot.finish.ORDER[0]._replace(registers=16)]\n"
        "sys.argv = ['aot', '--target', 'sm_90']; aot.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "local memory" in done.stdout
