"""Causal score: do the latents that differ make the models behave differently, or only go with it?

    patched   A runs with  x_A + sum_j change_j  at the site: how much of the change of behaviour do those latents reproduce?
    removed   B runs with  x_B - sum_j change_j: how much of it goes away when they are put back to what A writes?

change_j is what B's latent writes beyond A's, token by token (reading.py), at the tokens that the dictionary answers for. Behaviour is
told in one of two ways, both as a share that is 0 for no effect and 1 for all of the difference between the models:

    kl       1 - KL(B || patched A) / KL(B || A), and 1 - KL(A || B with it removed) / KL(A || B), summed over next-token distributions
    target   (patched - A) / (B - A) of the centred logit of a given token at the last token of each text

Intervals draw documents with replacement. `controls` do the same with as many other latents: at every token each writes with the
length and the sign that the real one has there, along the decoder row of a random latent of like density, so they differ in nothing
but direction. p = (1 + controls at least as large) / (1 + controls). `everything` swaps the whole activation, and so says how much of the
difference there is to be had at this site: what later layers learned is out of reach.

Memory: the log-probabilities of both models at every measured token, 8 bytes times the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...saes.statistics import middle, redrawn
from ...saes.text import Block, pad_blocks
from .pair import SIDES, Models
from .reading import Reading

NEAR = 32  # latents of like density that a control is drawn from
HARMLESS = 1e-6  # a difference of behaviour of which no share can be told


@dataclass(frozen=True)
class Share:
    """A share of the change of behaviour (None where there is none), its 95 % interval, the controls' shares and p among them."""

    share: float | None
    interval: tuple[float, float] | None
    controls: tuple[float, ...] = ()
    p: float | None = None


@dataclass(frozen=True)
class Score:
    """What patching `latents` into A reproduces and what removing them from B takes away; no latents: the whole activation."""

    latents: tuple[int, ...]
    patched: Share
    removed: Share

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return json.loads(json.dumps(asdict(self)))


class Seen(NamedTuple):
    """One model on the measured blocks: activations at the site and next-token log-probabilities at the real tokens."""

    x: Float[Tensor, "token d"]
    log_p: Float[Tensor, "token vocab"]


class Trial:
    """Both models on a few blocks of text, ready for experiments: A's activations change, or B's, and the behaviour is measured."""

    def __init__(
        self,
        models: Models,
        sites: tuple[str, str],
        reading: Reading,
        blocks: list[Block],
        target: int | None = None,
        batch: int = 8,
        seed: int = 0,
    ):
        """`blocks` in A's tokens; `target` a token id of A, None for KL."""
        self.models, self.sites, self.reading, self.blocks = models, sites, reading, blocks
        self.target, self._batch, self._seed = target, batch, seed
        self._shared = models.shared_ids()
        lengths = [len(block.tokens) for block in blocks]
        self._block_of = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor(lengths))
        self._ends = torch.tensor(lengths).cumsum(0) - 1
        self.seen = {side: self.run(side) for side in SIDES}
        self.x_a, self.x_b = (self.seen[side].x.to(reading.written[0].dtype) for side in SIDES)
        tokens = torch.cat([block.tokens for block in blocks])
        positions = torch.cat([torch.arange(length) for length in lengths])
        self.kept: Bool[Tensor, "token"] = reading.kept(positions, self.x_a, self.x_b, tokens)

    @torch.no_grad()
    def run(self, side: str, change: Float[Tensor, "token d"] | None = None) -> Seen:
        """The model of a side with `change` added at its site at every real token."""
        model: Any = self.models.get(side)
        site = self.sites[SIDES.index(side)]
        ids = self._shared[SIDES.index(side)]
        device = next(model.parameters()).device
        x: list[Tensor] = []
        log_p: list[Tensor] = []
        done = 0
        for start in range(0, len(self.blocks), self._batch):
            padded = pad_blocks(self.blocks[start : start + self._batch])
            tokens = torch.where(
                padded.real, padded.tokens, padded.tokens[:, :1]
            )  # padding must have a counterpart too
            real = padded.real.to(device)
            count = int(real.sum())
            added = None if change is None else change[done : done + count]
            logits = model.run_with_hooks(
                self.models.tokens_of(side, tokens).to(device), fwd_hooks=[(site, noted(x, real, added))]
            )
            log_p.append(logits[real][:, ids.to(device)].float().log_softmax(-1).cpu())
            done += count
        return Seen(torch.cat(x), torch.cat(log_p))

    def change(self, latents: Int[Tensor, "wanted"]) -> Float[Tensor, "wanted token d"]:
        """What each latent writes in B beyond A, zero at tokens that the dictionary does not answer for."""
        return self.reading.change(self.x_a, self.x_b, latents) * self.kept[:, None]

    def measured(self, side: str, change: Float[Tensor, "token d"] | None) -> Float[Tensor, "block term"]:
        """By block: the behaviour with the change, where it starts, and the goal. `side` a is patched towards B, b goes back to A."""
        other = "b" if side == "a" else "a"
        start, goal = self.seen[side].log_p, self.seen[other].log_p
        now = start if change is None else self.run(side, change).log_p
        if self.target is not None:
            at = int((self._shared[0] == self.target).nonzero()[0])
            values = [(each[self._ends] - each[self._ends].mean(1, keepdim=True))[:, at] for each in (now, start, goal)]
        else:
            values = [self._by_block((goal.exp() * (goal - each)).sum(1)) for each in (now, start)]
            values.append(torch.zeros_like(values[0]))
        return torch.stack(values, 1).double()

    def _by_block(self, values: Float[Tensor, "token"]) -> Float[Tensor, "block"]:
        """Sums over the tokens of each block but the last, which predicts nothing that is there."""
        keep = torch.ones_like(self._block_of, dtype=torch.bool)
        keep[self._ends] = False
        out = torch.zeros(len(self.blocks), dtype=torch.float64)
        return out.index_add(0, self._block_of[keep], values[keep].double())

    def share(self, side: str, change: Float[Tensor, "token d"]) -> Share:
        """The share of the change of behaviour, with its interval."""
        table = self.measured(side, change)
        numbers = torch.tensor([block.document for block in self.blocks]).unique(return_inverse=True)[1]
        by_document = torch.zeros(int(numbers.max()) + 1, 3, dtype=torch.float64).index_add(0, numbers, table)
        total = by_document.sum(0)
        if abs(float(total[1] - total[2])) <= HARMLESS:
            return Share(None, None)
        return Share(float(share_of(total)), interval(by_document, self._seed))


def noted(
    x: list[Tensor], real: Bool[Tensor, "batch seq"], added: Float[Tensor, "token d"] | None
) -> Callable[..., Any]:
    """A hook that keeps the activations at the real tokens in `x`, and adds to them."""

    def see(value: Tensor, hook: Any) -> Tensor | None:
        x.append(value.detach()[real].cpu())
        if added is None:
            return None
        out = value.clone()
        out[real] += added.to(out)
        return out

    return see


def interval(sums: Float[Tensor, "document term"], seed: int, draws: int = 1000) -> tuple[float, float] | None:
    """95 % interval of the share when documents are drawn with replacement; draws without any change of behaviour tell nothing."""
    drawn = redrawn(sums, seed, draws)
    told = drawn[(drawn[:, 1] - drawn[:, 2]).abs() > HARMLESS]
    if len(told) < draws // 2:
        return None
    return middle(share_of(told))


def share_of(sums: Float[Tensor, "... term"]) -> Float[Tensor, "..."]:
    """(start - now) / (start - goal)."""
    return (sums[..., 1] - sums[..., 0]) / (sums[..., 1] - sums[..., 2])


def causal_scores(
    trial: Trial,
    latents: Int[Tensor, "wanted"],
    density: Float[Tensor, "latent"],
    *,
    controls: int = 19,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[Score]:
    """The scores of all `latents` together, of each alone, and of the whole activation, in this order."""
    chosen = latents.tolist()
    together = [tuple(chosen)] if len(chosen) > 1 else []
    groups = [*together, *((latent,) for latent in chosen)]
    changes = dict(zip(chosen, trial.change(latents), strict=True))
    picks = like_density(density, latents, controls, seed)
    signed = {latent: signed_lengths(trial.reading, latent, change) for latent, change in changes.items()}
    directions = trial.reading.directions()

    def control(group: tuple[int, ...], draw: int) -> Float[Tensor, "token d"]:
        parts = [signed[latent][:, None] * directions[picks[latent][draw]] for latent in group]
        return torch.stack(parts).sum(0)

    found: dict[str, list[Share]] = {}
    whole = (trial.x_b - trial.x_a) * trial.kept[:, None]
    for side, sign in (("a", 1), ("b", -1)):  # one model at a time
        shares: list[Share] = []
        for group in groups:
            real = trial.share(side, sign * torch.stack([changes[latent] for latent in group]).sum(0))
            if real.share is not None and all(picks[latent] for latent in group):
                others = [trial.share(side, sign * control(group, draw)).share for draw in range(controls)]
                values = tuple(value for value in others if value is not None)
                above = sum(value >= real.share for value in values)
                real = Share(real.share, real.interval, values, (1 + above) / (1 + len(values)))
            shares.append(real)
            progress()
        found[side] = [*shares, trial.share(side, sign * whole)]
    return [Score(*each) for each in zip([*groups, ()], found["a"], found["b"], strict=True)]


def signed_lengths(reading: Reading, latent: int, change: Float[Tensor, "token d"]) -> Float[Tensor, "token"]:
    """How much a latent writes at each token, below zero where it writes against its direction."""
    return change.norm(dim=1) * (change @ reading.directions()[latent]).sign()


def like_density(
    density: Float[Tensor, "latent"], latents: Int[Tensor, "wanted"], controls: int, seed: int
) -> dict[int, list[int]]:
    """For each of `latents`, other latents that fire about as often, drawn anew (and perhaps again) for each control."""
    is_other = density > 0
    is_other[latents] = False
    others = is_other.nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(seed)
    picks: dict[int, list[int]] = {}
    for latent in latents.tolist():
        distance = (density[others].log() - density[latent].clamp_min(1e-9).log()).abs()
        near = others[distance.argsort(stable=True)[:NEAR]]
        drawn = torch.randint(max(len(near), 1), (controls,), generator=generator)
        picks[latent] = near[drawn].tolist() if len(near) else []
    return picks
