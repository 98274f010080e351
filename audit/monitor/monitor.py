"""Monitor: watch a stream of texts or chats by chosen signals, message by message.

    monitor = Monitor(model, {"persona": Latents(sae, {12: 1.0, 90: 0.5}), "test": train_probe(model, site, positive, negative)})
    monitor.calibrate(harmless, rate=0.01)
    for scored in monitor.stream(texts):            # each message as soon as it is read
        print(scored.scores, scored.alarms)
    talk = monitor.conversation()                   # one message at a time, as they come
    talk.add("user", "Hello")

A message's score is the mean (or the largest) over its tokens of those that have a number. An item, a text or chat, has the largest
score of its messages: the threshold is for items, so `rate` is the share of harmless texts or chats with any alarm. Nothing is kept
of what was read. Attention is causal, so a message's score does not depend on what comes after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ...saes import UserError, model_info, token_strings
from .calibrate import Calibration, calibrate
from .reading import Item, Reading, read
from .rows import activations
from .signals import Signal, check_sites

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Reduce = Literal["mean", "max"]
RESERVED = {"item", "message", "role", "text", "alarms"}  # columns of the table that a signal has one in too


class Scored(NamedTuple):
    """One message. `by_token` has a number for each of `tokens`, None where there is none; `alarms` is None before calibration."""

    item: int
    message: int
    role: str
    tokens: list[str]
    by_token: dict[str, list[float | None]]
    scores: dict[str, float | None]
    alarms: dict[str, bool | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return self._asdict()


class Monitor:
    """Signals by name, watched in one forward pass. `roles` are those whose messages are scored (None: all), in chats.

    `context` is the most tokens of a text that are read together. UserError for a signal of another model or a site that is not there.
    """

    def __init__(
        self,
        model: TransformerBridge,
        signals: Mapping[str, Signal],
        *,
        reduce: Reduce = "mean",
        roles: Sequence[str] | None = None,
        context: int = 512,
    ):
        if reduce not in get_args(Reduce) or isinstance(roles, str):
            raise UserError(
                f"expected reduce of {' or '.join(get_args(Reduce))} and a list of roles; got {reduce!r}, {roles!r}; choose anew"
            )
        self.model, self.signals, self.roles, self.context = model, dict(signals), roles, context
        self.reduce: Reduce = reduce
        if taken := RESERVED & signals.keys():
            raise UserError(
                f"expected other names of signals than {', '.join(sorted(RESERVED))}; got {min(taken)}; rename it"
            )
        self.sites = check_sites(model, signals)
        self.calibrations: dict[str, Calibration] = {}

    def __repr__(self) -> str:
        return (
            f"Monitor({', '.join(self.signals)} on {model_info(self.model).name}, {len(self.calibrations)} calibrated)"
        )

    def score(self, item: Item, number: int = 0) -> list[Scored]:
        """The messages of one text or chat that have a watched role."""
        reading = read(self.model, item, self.context)
        return list(self._scored(reading, number))

    def stream(self, items: Iterable[Item]) -> Iterator[Scored]:
        """The messages of each item as soon as the item is read; an item is asked for when the one before was handed out."""
        for number, item in enumerate(items):
            yield from self.score(item, number)

    def conversation(self) -> Conversation:
        """A chat that is scored as it grows."""
        return Conversation(self)

    def calibrate(self, held_out: Iterable[Item], rate: float = 0.01, seed: int = 0) -> dict[str, Calibration]:
        """Set each signal's threshold from harmless items (calibrate.py says how); UserError if they are too few."""
        found: dict[str, list[float]] = {name: [] for name in self.signals}
        for item in held_out:
            for name, value in item_scores(self.score(item)).items():
                found[name].append(value)
        self.calibrations = {name: calibrate(values, rate, seed) for name, values in found.items()}
        return self.calibrations

    def _scored(self, reading: Reading, number: int) -> Iterator[Scored]:
        values = [self._values(block) for block in reading.blocks]
        for message, role in enumerate(reading.roles):
            if self.roles is not None and role != "text" and role not in self.roles:
                continue
            masks = [messages == message for messages in reading.messages]
            tokens = [block[mask] for block, mask in zip(reading.blocks, masks, strict=True)]
            by_token = {
                name: torch.cat([value[name][mask] for value, mask in zip(values, masks, strict=True)])
                for name in self.signals
            }
            scores = {name: reduced(value, self.reduce) for name, value in by_token.items()}
            alarms = {name: self._alarm(name, value) for name, value in scores.items()}
            numbers = {name: plain(value) for name, value in by_token.items()}
            yield Scored(number, message, role, token_strings(self.model, torch.cat(tokens)), numbers, scores, alarms)

    @torch.no_grad()
    def _values(self, block: Tensor) -> dict[str, Float[Tensor, "token"]]:
        rows = activations(self.model, block, list(dict.fromkeys(self.sites.values())))
        part = {name: rows[site] for name, site in self.sites.items()}
        positions = torch.arange(len(block))
        return {name: signal.scores(part, positions, block.cpu()) for name, signal in self.signals.items()}

    def _alarm(self, name: str, score: float | None) -> bool | None:
        known = self.calibrations.get(name)
        return None if known is None else score is not None and score > known.threshold


class Conversation:
    """A chat that is scored message by message. Each message reads the chat so far anew, which is the model's context at most."""

    def __init__(self, monitor: Monitor):
        self.monitor = monitor
        self.chat: list[dict[str, str]] = []

    def add(self, role: str, content: str) -> Scored | None:
        """Add a message and score it; None for a role that is not watched. A message that is refused is not added."""
        chat = [*self.chat, {"role": role, "content": content}]
        found = self.monitor.score(chat)
        self.chat = chat
        return next((each for each in found if each.message == len(chat) - 1), None)


def reduced(values: Float[Tensor, "token"], how: Reduce) -> float | None:
    """Mean or maximum of the tokens that have a number; None if none has."""
    known = values[~values.isnan()]
    if not len(known):
        return None
    return float(known.mean() if how == "mean" else known.max())


def best_score(scored: Sequence[Scored], name: str) -> float | None:
    """The largest score of an item's messages under one signal; None if no token has a number."""
    return max((value for each in scored if (value := each.scores[name]) is not None), default=None)


def item_scores(scored: Sequence[Scored]) -> dict[str, float]:
    """Of each signal the largest score of an item's messages; UserError where one has none."""
    found = {name: best_score(scored, name) for name in scored[0].scores} if scored else {}
    known = {name: value for name, value in found.items() if value is not None}
    if not known or len(known) < len(found):
        raise UserError(
            "expected a text or chat with a scored message; got one without a token that has a number; leave it out, or watch other roles"
        )
    return known


def plain(values: Float[Tensor, "token"]) -> list[float | None]:
    """Numbers to four places, None for NaN."""
    return [None if value != value else round(value, 4) for value in values.tolist()]
