"""Processes that cache the plain toy and can be killed: forked from one that has imported everything, so each starts at once.

with Children() as children:
    child = children.start(folder, resume=True)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
"""

import json
import os
import resource
import socket
import subprocess
import sys
import traceback
from pathlib import Path

FAILED = 3


class Child:
    """One run of `cache`, of one process or several; exit code 0, FAILED for a UserError, or minus the signal that ended it."""

    def __init__(self, server: subprocess.Popen) -> None:
        self._server = server
        self.pids = json.loads(server.stdout.readline())
        self.pid = self.pids[0]
        self.said = ""

    def wait_all(self) -> list[int]:
        """How they ended; `said` is their UserErrors. Until then their numbers are not given to other processes."""
        self._server.stdin.write("\n")
        self._server.stdin.flush()
        codes, self.said = json.loads(self._server.stdout.readline())
        return codes

    def wait(self) -> int:
        """How the one process ended."""
        (code,) = self.wait_all()
        return code


class Children:
    """The process that forks; one child at a time."""

    def __enter__(self):
        environment = {
            **os.environ,
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parent),
        }
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def start(self, folder: Path | str, file_size: int = 0, world: int = 1, **options) -> Child:
        """Cache into `folder` by `world` processes; files may grow to `file_size` bytes where that is given."""
        job = {"folder": str(folder), "file_size": file_size, "world": world, "options": options}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return Child(self._server)

    def __exit__(self, *error) -> None:
        with self._server:
            self._server.stdin.close()


def serve() -> None:
    """Fork for every line of standard input."""
    import plain_toy  # imported once, for all

    assert plain_toy
    while line := sys.stdin.readline():
        job = json.loads(line)
        read, write = os.pipe()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        pids = []
        for rank in range(job["world"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                if job["world"] > 1:
                    os.environ.update(address, RANK=str(rank), WORLD_SIZE=str(job["world"]))
                run(job, write)
        os.close(write)
        print(json.dumps(pids), flush=True)
        sys.stdin.readline()
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        with os.fdopen(read, errors="replace") as pipe:
            print(json.dumps([codes, pipe.read()]), flush=True)


def run(job: dict, write: int) -> None:
    """Do a job and end the process."""
    from plain_toy import cache_toy
    from unweave.saes import UserError

    code = 1
    try:
        if job["file_size"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"], job["file_size"]))
        cache_toy(job["folder"], **job["options"])
        code = 0
    except UserError as error:
        os.write(write, f"{error}\n".encode())
        code = FAILED
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:
        code = stop.code
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
