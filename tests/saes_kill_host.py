"""A process that imports once and then forks children that train, to be killed at any moment: python saes_kill_host.py TASK ARGUMENTS.

Prints one JSON object. A test cannot fork itself: it has threads.
"""

import itertools
import json
import os
import random
import resource
import signal
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch._dynamo  # which torch's custom operators import when they are first called: seconds

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

from unweave.saes import Shards, TrainConfig, UserError, stream, train  # noqa: E402
from unweave.saes.cli import parse_and_run, sae_train  # noqa: E402
from unweave.saes.runs import checkpoints  # noqa: E402

CONFIG = TrainConfig(
    site="a", latents=64, k=4, tokens=64 * 60, batch=64, checkpoint_every=3, log_every=1, dead_after=64, activation="batch_topk"
)  # fmt: skip


def forked(work, *given):
    """The child's process id; its exit code is what `work` returns, 0 for None."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        os._exit(work(*given) or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(9)


def code_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def training(source, folder, out, resume=True, **options):
    data, config = (Shards.open(folder), CONFIG) if source == "shards" else streamed()
    train(config, data, out, resume=resume, device="cpu", progress=False, **options)


def streamed():
    """A stream of a toy's activations, and how to train on it."""
    from saes_toys import RESID, model, texts

    return stream(model(), texts(300), [RESID], context=16, batch=4, buffer=300), replace(CONFIG, site=(RESID,))


def files(out):
    """Contents of a run's folder, the clock taken out of its log."""
    found = {path.name: path.read_bytes().hex() for path in sorted(out.iterdir()) if path.name != "metrics.jsonl"}
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return found, [{**line, "tokens_per_s": 0} for line in log]


def killed(source, folder, work, kills, seed):
    """Run after run is killed until it is through; each must end as one that was left alone."""
    work, left, draw = Path(work), int(kills), random.Random(int(seed))
    if source == "stream":
        streamed()  # the model is made once
    began = time.perf_counter()
    assert code_of(forked(training, source, folder, work / "alone")) == 0
    whole, want = time.perf_counter() - began, files(work / "alone")
    assert [line["step"] for line in want[1]] == list(range(1, len(want[1]) + 1))
    told = {"kills": 0, "runs": 0, "steps": set(), "alone_s": round(whole, 3)}
    while left > 0:
        out = work / f"run{told['runs']}"
        # Short pieces, so that a run takes several, some of which end before their first checkpoint.
        while True:
            began = time.perf_counter()
            child = forked(training, source, folder, out)
            if left > 0:
                time.sleep(draw.uniform(0, 0.9) * whole)
            else:
                os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            os.kill(child, signal.SIGKILL)
            if (code := code_of(child)) >= 0:
                assert code == 0, code
                whole = min(whole, time.perf_counter() - began)
                break
            told["kills"], left = told["kills"] + 1, left - 1
            told["steps"] |= {path.name for path in out.glob("checkpoint-*")} if out.exists() else set()
        assert files(out) == want, out
        told["runs"] += 1
    return {**told, "steps": len(told["steps"])}


def two(folder, out):
    """A second trainer is refused at once, and free to go on when the first is killed."""

    class Slow:
        def log(self, line):
            time.sleep(0.05)

        def close(self):
            pass

    first = forked(lambda: training("shards", folder, out, False, loggers=[Slow()]))
    while not list(Path(out).glob("checkpoint-*")):
        time.sleep(0.02)
    refused = []
    began = time.perf_counter()
    for resume in (True, False):
        try:
            training("shards", folder, out, resume)
        except UserError as error:
            refused.append(str(error))
    waited = time.perf_counter() - began
    os.kill(first, signal.SIGKILL)
    killed = code_of(first)
    return {
        "refused": refused,
        "waited": waited,
        "killed": killed,
        "goes_on": code_of(forked(training, "shards", folder, out)),
    }


def full(folder, out):
    """From step 22 on no file may grow beyond a few hundred bytes, as on a full disk."""

    class Fills:
        def log(self, line):
            if line["step"] == 22:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

        def close(self):
            pass

    def work():
        try:
            training("shards", folder, out, False, loggers=[Fills()])
        except UserError as error:
            print(json.dumps({"said": str(error), "left": sorted(path.name for path in Path(out).iterdir())}))
            return 7

    code = code_of(forked(work))
    return {"code": code, "goes_on": code_of(forked(training, "shards", folder, out))}


def readonly(folder, out):
    """Somebody who may not write there."""
    os.chmod(out, 0o555)

    def work():
        os.setuid(65534)
        os.dup2(1, 2)
        flags = "--site a --latents 32 --k 4 --batch 64 --tokens 640 --device cpu".split()
        return parse_and_run(sae_train, [folder, "--out", f"{out}/run", *flags], "sae-train")

    return {"code": code_of(forked(work))}


class Soaks:
    """Notes the memory of the process at each line of the log, and ends the run when the time is up."""

    def __init__(self, seconds):
        self.seconds, self.began, self.seen = seconds, time.perf_counter(), []

    def log(self, line):
        self.seen.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20)
        if time.perf_counter() - self.began > self.seconds:
            raise TimeoutError

    def close(self):
        pass


def soak(source, folder, work, seconds, leak):
    """Memory in MiB after a third of a long run (the median of a sixth of it) and at its end; `leak` keeps every checkpoint."""
    if leak == "leak":
        kept, real = [], checkpoints.copied
        checkpoints.copied = lambda tensors: kept.append(real(tensors)) or kept[-1]
    data = Shards.open(folder)
    if source == "stream":
        from saes_toys import RESID, model, texts

        data = stream(model(), lambda: itertools.cycle(texts(200)), [RESID], context=16, batch=4, buffer=1024)
    config = replace(
        CONFIG, site=() if source == "shards" else (RESID,), latents=256, batch=256, tokens=10**12, window=1
    )
    hears = Soaks(float(seconds))
    try:
        train(config, data, Path(work) / "soak", device="cpu", progress=False, loggers=[hears])
    except TimeoutError:
        pass
    sixth = len(hears.seen) // 6
    first, last = (statistics.median(part) for part in (hears.seen[2 * sixth : 3 * sixth], hears.seen[-sixth:]))
    return {"steps": len(hears.seen), "first_mib": round(first, 1), "last_mib": round(last, 1)}


if __name__ == "__main__":
    task = {"killed": killed, "two": two, "full": full, "readonly": readonly, "soak": soak}[sys.argv[1]]
    print(json.dumps(task(*sys.argv[2:])))
