"""One text with latents taken away, and with as many others: what `ablate` measures.

The controls are other latents that are active on the same text, for each one taken away one of the NEAR whose mean activation there is
nearest, so that controls differ in what the latents are, not in how active they are. `last_kl` compares with random directions of the
lengths that are taken away (circuits/prompts/steering.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ....circuits import Edit, steer_prompt
from ....circuits.experiment.edits import Catalogue
from ....circuits.experiment.interventions import run_edited
from ....circuits.graph import Node
from ....circuits.parts import Part
from .prompts import OfLatents, cut_ids, latents_on, seen

if TYPE_CHECKING:
    from ..session import Session

NEAR, AT_ONCE = 8, 3  # rows of one batch: each has its logits [token vocab]


def ablated(
    session: Session, name: str, latents: Sequence[int], text: str, number: int, controls: int
) -> dict[str, Any]:
    """The row of one text; `all_controls` has every control's numbers, in the order of the draws."""
    model, part = session.workspace.model(), session.workspace.part(name)
    ids, is_cut = cut_ids(session, text)
    found = seen(session, name, ids)
    places = found.kept.nonzero()[:, 0].tolist()
    fires = int((found.codes.of(torch.tensor(list(latents))) * found.kept[:, None] > 0).any(1).sum())
    row: dict[str, Any] = {
        "text": number,
        "tokens": len(ids),
        "cut": is_cut,
        "fires": fires,
        "loss_change": 0.0,
        "kl": 0.0,
    }
    if not fires or len(ids) < 2:
        return row | {"all_controls": {"loss_change": [0.0] * controls, "kl": [0.0] * controls}}
    on = latents_on(found.codes, found.kept)
    draws = active_draws(on, latents, controls, torch.Generator().manual_seed(session.seed * 1_000 + number))
    loss, kl = _measured(Catalogue(model, part), part, ids, places, [list(latents), *draws])
    steered = steer_prompt(
        model,
        ids,
        edits_of(part, latents, places),
        part,
        controls=controls,
        latents=0,
        seed=session.seed,
        frozen=(False,),
        top=1,
    )
    stood = steered.changed[0].standing("random")
    row |= {"loss": float(loss[0]), "loss_change": float(loss[1] - loss[0]), "kl": float(kl[1])}
    row["last_kl"] = {"value": stood.value, "random_directions": max(stood.controls, default=None), "p": stood.p}
    if draws:
        changes, moved = (loss[2:] - loss[0]).tolist(), kl[2:].tolist()
        row |= {"control_loss": [min(changes), max(changes)], "control_kl": [min(moved), max(moved)]}
        return row | {"all_controls": {"loss_change": changes, "kl": moved}}
    return row | {"all_controls": {"loss_change": [], "kl": []}}


def active_draws(on: OfLatents, latents: Sequence[int], controls: int, generator: torch.Generator) -> list[list[int]]:
    """Sets of other active latents, each for one of `latents` that is active, matched in mean activation; none where too few are."""
    mean = dict(zip(on.latents.tolist(), on.mean.tolist(), strict=True))
    active = [latent for latent in latents if latent in mean]
    free = [latent for latent in mean if latent not in latents]
    if len(free) < len(active):
        return []
    draws = []
    for _ in range(controls):
        left = list(free)
        chosen = []
        for latent in active:
            near = sorted(left, key=lambda other, latent=latent: (abs(mean[other] - mean[latent]), other))[:NEAR]
            pick = near[int(torch.randint(len(near), (1,), generator=generator))]
            left.remove(pick)
            chosen.append(pick)
        draws.append(chosen)
    return draws


def edits_of(part: Part, latents: Sequence[int], places: list[int]) -> list[Edit]:
    """Latents taken away at some places of a prompt."""
    nodes = [Node("latent", part.layer, 0, latent, 0.0, f"latent {latent}", site=part.read) for latent in latents]
    return [Edit(nodes, "ablate", None, places)] if nodes else []


def _measured(
    catalogue: Catalogue, part: Part, ids: Int[Tensor, "token"], places: list[int], sets: list[list[int]]
) -> tuple[Float[Tensor, "run"], Float[Tensor, "run"]]:
    """Mean loss a token and mean KL from the unmodified run, of that run first and then of each set taken away."""
    unchanged = run_edited(catalogue, ids, [[]]).logits[0].float().log_softmax(-1)
    losses, moved = [_loss(unchanged, ids)], [0.0]
    for start in range(0, len(sets), AT_ONCE):
        logits = run_edited(
            catalogue, ids, [edits_of(part, each, places) for each in sets[start : start + AT_ONCE]]
        ).logits
        for row in logits:
            shares = row.float().log_softmax(-1)
            losses.append(_loss(shares, ids))
            moved.append(float((unchanged.exp() * (unchanged - shares)).sum(-1).clamp_min(0).mean()))
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(moved, dtype=torch.float64)


def _loss(shares: Float[Tensor, "token vocab"], ids: Int[Tensor, "token"]) -> float:
    return -float(shares[:-1].gather(1, ids[1:, None]).mean())
