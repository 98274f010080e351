"""What edits write into a run, noted place by place, and written again along other directions.

`record` runs the edits and notes every `Write`: a site, the places, the change of activation at each, and the features' rows there.
`push` adds the same changes along other rows, a batch of controls at once: one row of the batch per control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..experiment.constrained import Held, Hook, hold_hooks, with_stream
from ..experiment.edits import Catalogue, Columns, Edit, Key
from ..experiment.interventions import Editing, resolve
from ..parts import Part
from ..tracing.frozen import quiet

NEAREST = 32  # latents of the most similar decoder length, among which a control is drawn


class Write(NamedTuple):
    """What the features of one key add at one site: delta[i] x the row of features[which[i]] at position[i]."""

    key: Key
    site: str
    features: tuple[int, ...]
    which: Int[Tensor, "change"]
    position: Int[Tensor, "change"]
    delta: Float[Tensor, "change"]
    rows: Float[Tensor, "feature d"]


class Outcome(NamedTuple):
    """Log-probabilities of a run, in float32 or better, and the last position's logits before any soft-cap."""

    shares: Float[Tensor, "... vocab"]
    final: Float[Tensor, "... vocab"]


class _Recording(Editing):
    """Editing that notes by how much each activation is changed."""

    def __init__(self, *known: Any):
        super().__init__(*known)
        self.found: dict[Key, tuple[Columns, Tensor]] = {}

    def _activation(self, key: Key, part: Part, x: Tensor, at: Columns) -> Float[Tensor, "change"]:
        activation = super()._activation(key, part, x, at)
        self.found[key] = at, at.delta(activation)
        return activation

    def _neurons(self, key: Key) -> Callable[..., Tensor]:
        edit = super()._neurons(key)

        def noted(post: Tensor, hook: Any) -> Tensor:
            at = self._at(key, post)
            self.found[key] = at, at.delta(post[at.row, at.position, at.index])
            return edit(post, hook)

        return noted


def record(
    catalogue: Catalogue, ids: Int[Tensor, "token"], edits: Sequence[Edit], held: Held | None = None
) -> tuple[Outcome, list[Write], float]:
    """The edited run (shares [token vocab], final [vocab]), what was written, and its largest share of what stands there (lengths)."""
    editing = _Recording(catalogue, resolve(catalogue, ids, [edits]), held)
    hooks = editing.hooks()
    sites = dict.fromkeys(site for key in editing.plan.keys for site in _decoders(catalogue, key))
    seen: dict[str, Tensor] = {}

    def reader(site: str) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            seen[site] = value[0].flatten(1)

        return keep

    hooks += [(site, reader(site)) for site in sites]
    done = _run(catalogue, ids[None], hooks)
    writes = [
        _write(key, site, at, delta, rows)
        for key, (at, delta) in editing.found.items()
        for site, rows in _decoders(catalogue, key).items()
    ]
    return Outcome(done.shares[0], done.final[0]), writes, _largest_share(writes, seen)


def _run(catalogue: Catalogue, rows: Int[Tensor, "row token"], hooks: list[Hook], is_last: bool = False) -> Outcome:
    """Every position's log-probabilities, or only the last one's (then no other logits are ever formed)."""
    final: list[Tensor] = []
    own: list[Any] = [*hooks, ("hook_unembed", lambda value, hook: final.append(value[:, -1]))]
    if is_last:
        own.append(("unembed.hook_in", lambda value, hook: value[:, -1:]))
    with torch.no_grad(), quiet():
        logits = catalogue.model.run_with_hooks(rows, fwd_hooks=own)
    logits = logits[:, -1] if is_last else logits
    return Outcome(_precise(logits).log_softmax(-1), _precise(final[0]))


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _decoders(catalogue: Catalogue, key: Key) -> dict[str, Float[Tensor, "feature d"]]:
    """Canonical sites that the features of a key write, with all their rows."""
    if key.kind == "latent":
        return catalogue.written(catalogue.parts[key.site])
    return {catalogue.site(key.site.replace("hook_post", "hook_out")): catalogue.W_out(key)}


def _write(key: Key, site: str, at: Columns, delta: Tensor, decoder: Float[Tensor, "feature d"]) -> Write:
    features, which = at.index.unique(return_inverse=True)
    rows = decoder.detach()[features.to(decoder.device)]
    return Write(key, site, tuple(features.tolist()), which, at.position, delta, rows)


def _largest_share(writes: list[Write], seen: dict[str, Tensor]) -> float:
    """max over sites and positions of |what is written| / |what stands there without it|."""
    worst = 0.0
    for site in dict.fromkeys(write.site for write in writes):
        after = seen[site].double()
        added = torch.zeros_like(after)
        for write in writes:
            if write.site == site:
                _add(added, write, write.rows)
        before = (after - added).norm(dim=1)
        worst = max(worst, float((added.norm(dim=1) / before.clamp_min(1e-30)).max()))
    return worst


def _add(out: Float[Tensor, "token d"], write: Write, rows: Float[Tensor, "feature d"]) -> None:
    added = write.delta.to(out)[:, None] * rows.to(out)[write.which.to(out.device)]
    out.index_add_(0, write.position.to(out.device), added)


def directions(writes: list[Write], generator: torch.Generator) -> list[Tensor]:
    """For each write random rows as long as the features' own, uniform on the sphere."""
    drawn = []
    for write in writes:
        noise = torch.randn(write.rows.shape, generator=generator, dtype=torch.float64).to(write.rows)
        drawn.append(_as_long_as(write.rows, noise))
    return drawn


def other_rows(catalogue: Catalogue, writes: list[Write], generator: torch.Generator) -> list[Tensor]:
    """For each write the rows of other features of the same key, of the most similar length, rescaled; [] where there are none.

    A feature that writes several sites is replaced by the same other one at all of them.
    """
    chosen: dict[Key, list[int]] = {}
    drawn = []
    for write in writes:
        decoder = _decoders(catalogue, write.key)[write.site].detach()
        if write.key not in chosen:
            lengths = decoder.norm(dim=1)
            free = torch.ones(len(decoder), dtype=torch.bool, device=decoder.device)
            free[list(write.features)] = False
            chosen[write.key] = []
            for feature in write.features:
                near = (lengths - lengths[feature]).abs().masked_fill(~free, torch.inf)
                count = min(NEAREST, int(free.sum()))
                if not count:
                    return []
                # Ties (rows of length 1) are broken at random, or the same few would always be drawn.
                order = torch.randperm(len(near), generator=generator).to(near.device)
                some = order[near[order].topk(count, largest=False).indices]
                other = int(some[int(torch.randint(count, (1,), generator=generator))])
                free[other] = False
                chosen[write.key].append(other)
        drawn.append(_as_long_as(write.rows, decoder[chosen[write.key]]))
    return drawn


def _as_long_as(rows: Float[Tensor, "feature d"], other: Float[Tensor, "feature d"]) -> Float[Tensor, "feature d"]:
    return other * (rows.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True).clamp_min(1e-30))


def push(
    catalogue: Catalogue,
    ids: Int[Tensor, "token"],
    writes: list[Write],
    controls: Sequence[Sequence[Tensor]],
    held: Held | None = None,
) -> Outcome:
    """The last position of one run per control, in which the writes' changes are made along its rows [feature d], one for each write."""

    def change(site: str) -> Callable[[Tensor], Tensor]:
        def add(value: Tensor) -> Tensor:
            out = value.clone()
            flat = out.flatten(2)
            for number, rows in enumerate(controls):
                for write, own in zip(writes, rows, strict=True):
                    if write.site == site:
                        _add(flat[number], write, own)
            return flat.view(out.shape)

        return add

    hooks: list[Hook] = hold_hooks(catalogue, held) if held else []
    for site in dict.fromkeys(write.site for write in writes):
        hooks += with_stream(catalogue, site, change(site))
    return _run(catalogue, ids.repeat(len(controls), 1), hooks, is_last=True)
