"""`sae-train`, and what every command shares: flags from functions, one JSON object with --json, plain errors.

A command is a function whose annotated arguments are its flags (tyro) and which returns the dictionary that `--json` prints.
Standard output carries the result and nothing else; progress and notes go to standard error. Exit codes: 0 done, 2 a user's
mistake (one line, no traceback), 130 interrupted (what was done stays resumable).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..kernels.dispatch import PathError
from .config import TrainConfig
from .errors import UserError, check_seed

if TYPE_CHECKING:
    from .shards.folder import Shards

Result = dict[str, Any]
Folder = Annotated[Path, tyro.conf.Positional]
# A folder of Shards. No Path: it would take a slash from a URL.
Place = Annotated[str | Path, tyro.conf.arg(metavar="PATH|URL")]
Flat = tyro.conf.OmitArgPrefixes
LONGEST = 1_000  # characters of a list that is not of strings, when it is printed


def tell(text: str) -> None:
    """A line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def run_command(call: Callable[[], Result], as_json: bool) -> int:
    """Run a command's work, print its result, and turn a user's mistake into one line and exit code 2."""
    try:
        result = call()
    except (UserError, PathError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        print(f"error: {what}; check the path, its permissions and the disk", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; what was written stays: give the same command again, with --resume if it has that flag",
            file=sys.stderr,
        )
        return 130
    if os.environ.get("RANK", "0") != "0":  # of several processes that torchrun started, the first one speaks
        return 0
    lines = (f"   {name:<22} {shown(value)}" for name, value in result.items())
    try:
        print(json.dumps(result, ensure_ascii=False, default=str) if as_json else "\n".join(lines), flush=True)
    except BrokenPipeError:  # whoever read it has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def shown(value: Any) -> str:
    """A number, list or mapping as a person reads it; a list of strings takes a line each, a table or a long list only its length."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        if (len(value) > 3 and all(isinstance(item, dict) for item in value)) or (
            len(value) > 12 and not any(isinstance(item, str) for item in value)
        ):
            return f"{len(value)} (--json lists them)"
        lines = any(isinstance(item, str) for item in value)
        text = ("\n" + " " * 26 if lines else " ").join(shown(item) for item in value)
        return text if lines or len(text) <= LONGEST else f"{len(value)} (--json lists them)"
    return str(value)


def sae_train(
    shards: Annotated[Place, tyro.conf.Positional],
    out: Path,
    config: Annotated[TrainConfig, Flat],
    resume: bool = False,
    device: str | None = None,
    sweep: tuple[str, ...] = (),
    loggers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = (),
    keep: int = 1,
    latent_ranks: int = 1,
) -> Result:
    """Train a dictionary on cached activations (Shards → Dictionary), or with --sweep many at once.

    Args:
        shards: Folder of cached activations (`unweave cache` makes one), or its URL.
        out: Folder for the run: config, log, checkpoints, and the dictionary.
        config: How to train.
        resume: Go on from the last checkpoint of a run that was interrupted; SIGTERM and Ctrl-C write one before they end it.
        device: Device to train on, e.g. cuda or cpu; left out: CUDA where there is one.
        sweep: Settings to vary, e.g. k=16,32 lr=1e-3,3e-3: every combination trains, all from one pass over the activations, each in a
            folder of its own under `out`, and sweep.json there has what came of them.
        loggers: Where the numbers go besides metrics.jsonl, as far as they are installed.
        keep: Checkpoints that are kept, the newest ones; a damaged one is passed over for the one before.
        latent_ranks: Under torchrun, how many processes share out the latents; the others, by this number, share out each batch.
    """
    from .shards.folder import Shards
    from .train import train

    if sweep and loggers:
        raise UserError("expected --loggers with a single run; a sweep writes metrics.jsonl for each; drop one")
    if sweep:
        return _sweep(Shards.open(shards), out, config, sweep, resume, device, keep)
    opened = Shards.open(shards)
    dictionary = train(
        config, opened, out, resume=resume, device=device, loggers=loggers, keep=keep, latent_ranks=latent_ranks
    )
    return {
        "out": str(out),
        "dictionary": repr(dictionary),
        "fingerprint": dictionary.fingerprint,
        "rows": dictionary.metadata.get("rows"),
        **last_line(out),
    }


def _sweep(
    shards: Shards, out: Path, config: TrainConfig, sweep: tuple[str, ...], resume: bool, device: str | None, keep: int
) -> Result:
    from .io import write_json
    from .sweep import grid, names_of, parsed, train_many

    configs = grid(config, **dict(map(parsed, sweep)))
    many = train_many(configs, shards, out, resume=resume, device=device, keep=keep)
    runs = []
    for name, dictionary in zip(names_of(configs), many, strict=True):
        runs.append({"run": name, "fingerprint": dictionary.fingerprint, **last_line(out / name)})
    write_json(out / "sweep.json", {"runs": runs})
    return {"out": str(out), "runs": runs, "table": table(runs, ("run", "fvu", "l0", "dead_share", "loss"))}


def last_line(run: Path) -> Result:
    """The last line of a run's metrics.jsonl."""
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def table(rows: list[Result], columns: tuple[str, ...]) -> list[str]:
    """Rows as aligned lines under their column names."""
    cells = [list(columns), *([shown(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def split_json_flag(arguments: list[str]) -> tuple[list[str], bool]:
    """Take `--json` out of the arguments."""
    return [argument for argument in arguments if argument != "--json"], "--json" in arguments


def parse_and_run(command: Callable[..., Result], arguments: list[str], prog: str) -> int:
    """Parse flags for one command and run it; parsing errors exit with 2, --help with 0."""
    arguments, as_json = split_json_flag(arguments)
    about = (command.__doc__ or "").split("\n\n")[0] + " With --json, prints one JSON object on standard output."
    notes = io.StringIO()
    try:
        with contextlib.redirect_stderr(notes):
            call = tyro.cli(_deferred(command), args=arguments, prog=prog, description=about)
    except SystemExit as stop:
        mistake = _user_error(stop)
        if mistake is None:
            sys.stderr.write(notes.getvalue())
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    sys.stderr.write(notes.getvalue())
    return run_command(call, as_json)


def _user_error(error: BaseException | None) -> UserError | None:
    """The UserError among the causes of `error`: a config that refuses its values, which tyro would show as a box."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _deferred(command: Callable[..., Result]) -> Callable[..., Callable[[], Result]]:
    """The same signature, but calling it only binds the arguments: parsing is over before work begins."""
    import functools

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], Result]:
        def call() -> Result:
            check_seed(kwargs.get("seed") or 0)
            return command(*args, **kwargs)

        return call

    return bind


def main() -> None:
    """Entry point of `sae-train`."""
    sys.exit(parse_and_run(sae_train, sys.argv[1:], "sae-train"))
