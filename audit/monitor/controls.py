"""What a monitor's hits are worth: those of random latents of like density under the same calibration.

    hits        share of the wanted items (those that ought to raise an alarm) above the threshold, with its exact interval, and the AUC
                of wanted against held-out items
    random      the same of GROUPS groups of latents, each latent replaced by a random one of those nearest to it in density on the
                held-out text, with the same weights; each group has its own threshold from the same held-out items

A latent that fires on any unusual text separates two sorts of texts too; how many of the random groups do as well tells that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...saes import Codes, Dictionary, UserError, resolve_site
from ..labels.scores import Answer, score
from .calibrate import calibrate, clopper_pearson
from .monitor import Monitor, Reduce, reduced
from .reading import Item, read
from .rows import activations
from .signals import Latents, encoded, weighted

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

GROUPS, NEAREST = 20, 50


@dataclass(frozen=True)
class Controlled:
    """Hits and AUC of a signal beside those of random latents; `as_good` is how many of the random groups have its AUC or more."""

    hits: float
    low: float
    high: float
    auc: float
    auc_low: float
    auc_high: float
    wanted: int
    random_hits: list[float]
    random_auc: list[float]
    as_good: int
    groups: list[dict[int, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        groups = [{str(latent): weight for latent, weight in group.items()} for group in self.groups]
        return {**asdict(self), "groups": groups, "p": (1 + self.as_good) / (1 + len(self.groups))}


Coded = list[list[Codes]]
"""Of each item, of each watched message, the codes of its tokens."""


def control(
    monitor: Monitor, name: str, held_out: Sequence[Item], wanted: Sequence[Item], rate: float = 0.01, seed: int = 0
) -> Controlled:
    """Compare the latents of the signal `name` with random ones of like density. UserError for a probe, or too few items."""
    signal = monitor.signals.get(name)
    if not isinstance(signal, Latents):
        raise UserError(
            f"expected a signal of latents; {name!r} is none; a probe's controls are in its quality (shuffled labels)"
        )
    if not wanted:
        raise UserError("expected texts or chats that ought to raise an alarm; got none; give some")
    harmless, hoped = (coded(monitor, signal.dictionary, items) for items in (held_out, wanted))
    density = densities(harmless, signal.dictionary.config.latents)
    generator = torch.Generator().manual_seed(seed)
    groups = [like(signal.weights, density, generator) for _ in range(GROUPS)]
    found = [
        judged(harmless, hoped, weights, monitor.reduce, rate, seed) for weights in (dict(signal.weights), *groups)
    ]
    (share, own), others = found[0], found[1:]
    low, high = clopper_pearson(round(share * len(hoped)), len(hoped))
    chance = [one.auc for _, one in others]
    as_good = sum(auc >= own.auc for auc in chance)
    hits = [part for part, _ in others]
    return Controlled(
        share, low, high, own.auc, own.auc_low, own.auc_high, len(hoped), hits, chance, as_good, groups
    )  # fmt: skip


def judged(harmless: Coded, hoped: Coded, weights: dict[int, float], reduce: Reduce, rate: float, seed: int) -> Any:
    """Share of the hoped-for items above the threshold of this group, and the Score whose AUC tells both sorts apart."""
    negative, positive = ([item_score(item, weights, reduce) for item in items] for items in (harmless, hoped))
    threshold = calibrate(negative, rate, seed).threshold
    truth = [True] * len(positive) + [False] * len(negative)
    values = positive + negative
    found = score([Answer(t, v > threshold, v, n) for n, (t, v) in enumerate(zip(truth, values, strict=True))], seed)
    return sum(value > threshold for value in positive) / len(positive), found


def item_score(item: list[Codes], weights: dict[int, float], reduce: Reduce) -> float:
    """The largest score of an item's messages."""
    found = [reduced(weighted(codes, weights), reduce) for codes in item]
    known = [value for value in found if value is not None]
    if not known:
        raise UserError("expected texts with a token that the dictionary answers for; got one without; leave it out")
    return max(known)


def like(
    weights: dict[int, float] | Any, density: Float[Tensor, "latent"], generator: torch.Generator
) -> dict[int, float]:
    """Other latents with these weights, each drawn from the NEAREST in log density; none of the latents themselves, none twice."""
    taken = set(weights)
    out: dict[int, float] = {}
    logs = density.clamp_min(1e-9).log()
    for latent, weight in weights.items():
        order = (logs - logs[latent]).abs().argsort(stable=True).tolist()
        near = [other for other in order if other not in taken][:NEAREST]
        if not near:
            raise UserError("expected a dictionary with other latents to compare with; got none; watch fewer latents")
        chosen = near[int(torch.randint(len(near), (1,), generator=generator))]
        taken.add(chosen)
        out[chosen] = weight
    return out


@torch.no_grad()
def coded(monitor: Monitor, dictionary: Dictionary, items: Sequence[Item]) -> Coded:
    """The codes of every watched message of every item."""
    model: TransformerBridge = monitor.model
    sites = {name: resolve_site(model, name) for name in dictionary.sites}
    out: Coded = []
    for item in items:
        reading = read(model, item, monitor.context)
        codes = []
        for block in reading.blocks:
            rows = activations(model, block, list(dict.fromkeys(sites.values())))
            part = {name: rows[site] for name, site in sites.items()}
            codes.append(encoded(dictionary, part, torch.arange(len(block)), block.cpu()))
        watched = [
            number
            for number, role in enumerate(reading.roles)
            if monitor.roles is None or role == "text" or role in monitor.roles
        ]
        out.append([_of_message(codes, reading.messages, number) for number in watched])
    return out


def _of_message(codes: list[Codes], messages: list[Tensor], number: int) -> Codes:
    masks = [message == number for message in messages]
    width = max(one.values.shape[1] for one in codes)
    parts = [
        [torch.nn.functional.pad(side[mask], (0, width - side.shape[1])) for side in one]
        for one, mask in zip(codes, masks, strict=True)
    ]
    return Codes(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


def densities(items: Coded, latents: int) -> Float[Tensor, "latent"]:
    """Share of the tokens on which each latent fires."""
    count = torch.zeros(latents, dtype=torch.float64)
    tokens = 0
    for codes in (codes for item in items for codes in item):
        tokens += int((~codes.values.isnan().any(1)).sum())
        count += torch.bincount(codes.indices[codes.values > 0], minlength=latents)
    return count / max(tokens, 1)
