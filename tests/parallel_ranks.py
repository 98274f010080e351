"""Start several ranks on this machine, and wait for them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun sets for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def start(arguments: list[str], ranks: int, **options) -> list[subprocess.Popen]:
    """A Python process for each rank."""
    command = [sys.executable, "-W", "ignore", *arguments]
    return [subprocess.Popen(command, env=own, **options) for own in environments(ranks)]


def run(arguments: list[str], ranks: int, seconds: float = 300) -> None:
    """Run all ranks to their end; an assertion with their errors if one fails, and then none is left."""
    processes = start(arguments, ranks, stderr=subprocess.PIPE, text=True)
    try:
        errors = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n\n".join(error[-2000:] for error in errors)
