"""`unweave audit --monitor`: watch texts or chats by latents or a probe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ...saes.cli import Result


def monitor(
    paths: tuple[str, ...],
    held_out: tuple[str, ...],
    dictionary: Path | None = None,
    latents: tuple[str, ...] = (),
    site: str | None = None,
    positive: tuple[str, ...] = (),
    negative: tuple[str, ...] = (),
    probe: Literal["logistic", "means"] = "logistic",
    wanted: tuple[str, ...] = (),
    model: str | None = None,
    rate: float = 0.01,
    reduce: Literal["mean", "max"] = "mean",
    roles: tuple[str, ...] = (),
    seed: int = 0,
    device: str | None = None,
) -> Result:
    """Score a stream of texts or chats by latents or a probe, with a threshold of a stated false-alarm rate.

    Args:
        paths: Files or folders to watch; lines {"messages": […]} of .jsonl files are chats, everything else is text.
        held_out: Harmless files or folders that set and check the threshold; a rate of 0.01 needs 198 texts or chats.
        dictionary: Folder of the dictionary whose latents are watched.
        latents: Latents to watch together, each with a weight if it is not 1, e.g. 12 90:0.5.
        site: Where a probe reads, e.g. blocks.12.hook_resid_post.
        positive: Texts that the probe is to tell from the negative ones.
        negative: Texts that it is to tell them from.
        probe: logistic regression, or the difference of both means.
        wanted: Texts or chats that ought to raise an alarm, to compare the latents with random ones of like density.
        model: Model; left out: the one that the dictionary names.
        rate: Share of harmless texts or chats that may raise an alarm.
        reduce: A message's score from its tokens'.
        roles: Roles of a chat to watch; left out: all.
        seed: Seed of the halves, the permutations and the random latents.
        device: Device of the model.
    """
    from ...saes import Dictionary, UserError, load_model
    from ..labels.scores import rounded
    from .controls import control
    from .items import read_items, watch
    from .monitor import Monitor
    from .probes import train_probe
    from .signals import Latents, Signal

    if (dictionary is None) != (not latents) or (dictionary is None and site is None):
        raise UserError(
            "expected --dictionary with --latents, or --site with --positive and --negative; got neither whole"
        )
    if (site is None and (positive or negative)) or (dictionary is None and wanted):
        raise UserError(
            "expected --positive and --negative with --site, --wanted with --dictionary; got them alone; name what they are for"
        )
    weights = dict(map(weight_of, latents))
    if len(weights) < len(latents):
        raise UserError(f"expected each latent once; got {' '.join(latents)[:200]}; drop the repeated ones")
    opened = None if dictionary is None else Dictionary.load(dictionary)
    name = model or (opened.metadata.get("model") or {}).get("name") if opened is not None else model
    if not name:
        raise UserError("expected --model, or a dictionary that names its model; got neither; name it")
    loaded = load_model(str(name), device)
    signals: dict[str, Signal] = {}
    if opened is not None:
        signals["latents"] = Latents(opened, weights)
    if site is not None:
        items = [list(read_items(given)) for given in (positive, negative)]
        signals["probe"] = train_probe(loaded, site, items[0], items[1], probe, seed)
    watcher = Monitor(loaded, signals, reduce=reduce, roles=roles or None)
    harmless = list(read_items(held_out))
    watcher.calibrate(harmless, rate, seed)
    seen = watch(watcher, read_items(paths), seed)
    found = {**seen.to_dict(), "table": str(seen).splitlines()}
    if wanted and opened is not None:
        found["control"] = control(watcher, "latents", harmless, list(read_items(wanted)), rate, seed).to_dict()
    return rounded(found)


def weight_of(text: str) -> tuple[int, float]:
    """A latent and its weight from text such as 12 or 12:0.5."""
    from ...saes import UserError

    latent, _, weight = text.partition(":")
    try:
        return int(latent), float(weight or 1)
    except ValueError as error:
        raise UserError(f"expected a latent such as 12 or 12:0.5; got {text[:40]!r}; name its number") from error
