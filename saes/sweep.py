"""Many dictionaries from one pass over the activations.

    configs = grid(TrainConfig(site=..., tokens=...), k=[16, 32, 64], activation=["topk", "jumprelu"])
    dictionaries = train_many(configs, shards, "runs")          # runs/k=16,activation=topk, ...

All runs take their steps in turn. Those that want the same rows in the same order (same batch, seed, exclusion rule) are fed
from one reading of all their sites; of a stream every item is made once, so one forward pass of a language model feeds all of
them. Each run is what it would have been alone, bit for bit; an interrupted sweep goes on with `resume`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, get_type_hints

import torch
from tqdm import tqdm

from .config import TrainConfig
from .dictionary import Dictionary
from .dictionary_config import DictionaryConfig
from .errors import UserError
from .parallel import processes
from .rows import ShardRows, open_all
from .runs.run import Run
from .runs.stopping import Stopping
from .scaling import Pair
from .shards.folder import Batch, Shards
from .train import Session, checked_device, memory_errors

FIELDS = {item.name: item for kind in (TrainConfig, DictionaryConfig) for item in dataclasses.fields(kind)}


def grid(config: TrainConfig, **choices: Sequence[Any]) -> list[TrainConfig]:
    """Every combination of the given values, the last named varying fastest; UserError for a name that is no setting."""
    for name, values in choices.items():
        if name not in FIELDS or name == "dictionary":
            raise UserError(f"expected a setting to vary ({', '.join(FIELDS)}); got {name}; see sae-train --help")
        if not values:
            raise UserError(f"expected values of {name}; got none; give some")
    settings = (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))
    return [dataclasses.replace(config, **one) for one in settings]  # which takes the dictionary's settings too


def names_of(configs: Sequence[TrainConfig]) -> list[str]:
    """A name for each config: what differs between them, as `k=16,seed=1`; their number where that is not enough."""
    flat = [{**one, **one["dictionary"]} for one in (config.to_dict() for config in configs)]
    differ = [name for name in FIELDS if name != "dictionary" and len({str(one[name]) for one in flat}) > 1]
    names = [",".join(f"{name}={in_name(one[name])}" for name in differ) for one in flat]
    return names if len(set(names)) == len(names) else [f"{number:03}" for number in range(len(names))]


def parsed(text: str) -> tuple[str, list[Any]]:
    """`k=16,32` as a setting's name and its values; `a+b` is a tuple. UserError for what is no such thing."""
    name, _, values = text.partition("=")
    if name not in FIELDS or name == "dictionary" or not values:
        raise UserError(f"expected a setting and values, such as k=16,32; got {text!r}; see --help for the settings")
    return name, [value_of(name, value) for value in values.split(",")]


def value_of(name: str, text: str) -> Any:
    """One value as the setting's type has it, read as the command line reads it."""
    import tyro

    kind = get_type_hints(TrainConfig if hasattr(TrainConfig, name) else DictionaryConfig)[name]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(kind, args=text.split("+"), console_outputs=False)
    except SystemExit as error:
        raise UserError(f"expected a value of {name} ({FIELDS[name].type}); got {text!r}; see --help") from error


def in_name(value: Any) -> str:
    """A setting's value as a part of a folder's name."""
    text = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "".join(letter if letter.isalnum() or letter in "._+-" else "_" for letter in text) or "none"


def train_many(
    configs: Sequence[TrainConfig],
    data: Shards | Iterable[Any],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
    keep: int = 1,
) -> list[Dictionary]:
    """Train a dictionary for each config, all from one pass; with `out`, each in the folder that `names_of` gives it.

    The same errors, signals and checkpoints as `train`; a run that a config makes impossible stops the sweep before any step is taken.
    """
    device = checked_device(data, resume, device)
    if processes() > 1:
        raise UserError(
            "expected one process to train many dictionaries; torchrun started several; train them one after another"
        )
    if not configs:
        raise UserError("expected configs to train; got none; give some")
    folders = [Path(out) / name if out else None for name in names_of(configs)]
    widest = max(configs, key=lambda config: config.dictionary.latents)
    runs = list[Run]()
    with ExitStack() as stack:
        stack.enter_context(memory_errors(widest, device))
        for config, folder in zip(configs, folders, strict=True):
            runs.append(Run(config, folder, resume, False, keep=keep))
            stack.callback(runs[-1].close)
        live = [number for number, run in enumerate(runs) if not run.finished]
        opened = open_all([configs[n] for n in live], data, [runs[n].saved for n in live]) if live else []
        sessions = [Session(runs[n], configs[n], rows, device) for n, rows in zip(live, opened, strict=True)]
        made = dict(zip(live, in_turn(sessions, progress), strict=True))
    return [made[n] if n in made else Dictionary.load(folders[n], device=device) for n in range(len(configs))]  # type: ignore[arg-type]


def in_turn(sessions: list[Session], progress: bool) -> list[Dictionary]:
    """Let every session take its steps, always the one that has seen the fewest tokens: so no reading runs far ahead of another."""
    total = sum(session.config.steps - session.state.step for session in sessions)
    with (
        Stopping() as stopping,
        ExitStack() as stack,
        tqdm(total=total, desc=f"train {len(sessions)}", unit="step", disable=not progress) as bar,
    ):
        feeds = {number: stack.enter_context(closing(pairs)) for number, pairs in enumerate(feed(sessions))}
        while feeds:
            number = min(feeds, key=lambda number: sessions[number].tokens)
            pair = next(feeds[number], None)
            if pair is None:
                feeds.pop(number).close()
                continue
            sessions[number].take(pair)
            bar.update()
            if stopping.signal:
                for session in sessions:
                    session.stop(stopping.signal)
                stopping.leave()
    return [session.finish() for session in sessions]


def feed(sessions: list[Session]) -> list[Generator[Pair, None, None]]:
    """The batches of each session; those that want the same rows in the same order share one reading."""
    groups: dict[Any, list[Session]] = {}
    for session in sessions:
        groups.setdefault(reading(session), []).append(session)
    found: dict[int, Generator[Pair, None, None]] = {}
    for same in groups.values():
        if len(same) == 1:
            found[id(same[0])] = same[0].pairs()
            continue
        for session, batches in zip(same, itertools.tee(together(same), len(same)), strict=True):
            found[id(session)] = session.pairs(_pairs(session, batches))
    return [found[id(session)] for session in sessions]


def reading(session: Session) -> Any:
    """Equal for two sessions exactly if they want the same rows in the same order from the same step on."""
    rows = session.rows
    if not isinstance(rows, ShardRows):
        return id(session)
    config = session.config
    return (
        config.batch,
        config.seed,
        config.window,
        session.state.step,
        hashlib.blake2b(rows.rows.numpy().data).digest(),
    )


def together(sessions: list[Session]) -> Iterator[Batch]:
    """One reading of all the sites of sessions that want the same rows."""
    rows = sessions[0].rows
    assert isinstance(rows, ShardRows)
    sites = dict.fromkeys(site for session in sessions for site in session.rows.config.sites)
    return rows.read(list(sites), sessions[0].state.step)


def _pairs(session: Session, batches: Iterator[Batch]) -> Iterator[Pair]:
    assert isinstance(session.rows, ShardRows)
    return map(session.rows.pair, batches)
