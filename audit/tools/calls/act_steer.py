"""Act on latents: change them on a prompt, or take them away on texts, beside random latents and random directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ....circuits import Wish, latent_edits, steer_prompt
from ....circuits.prompts.steering import Changed, Moved
from ....circuits.prompts.stream import stream
from ...diffing.causal import like_density
from ..answers import Answer
from ..budget import written
from ..fields import Latent, Messages, Name, Short, Text
from ..measures.ablating import active_draws
from ..measures.describe import checked, described
from ..measures.prompts import given, ids_of, latents_on, seen
from ..measures.readings import usual
from ..registry import Refused, tool
from ..session import Session
from ..untrusted import token, untrusted

CONTROLS, MOVED = 8, 5  # of each kind; tokens listed
DRAWN = 32  # draws of another latent, of which the first that is still free is taken
How = Literal["add", "set", "scale", "ablate"]
ACTIONS = {"add": "steer", "set": "set", "scale": "scale", "ablate": "ablate"}


class Change(BaseModel):
    """One latent and by how much."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    latent: Latent
    amount: Annotated[float, Field(ge=-100, le=100)] = 1.0


def _price(session: Session, arguments: Mapping[str, Any]) -> int:
    return 3 + 2 * CONTROLS + (written(arguments["tokens"], 3) if arguments["tokens"] else 0)


@tool("act", cost=3 + 2 * CONTROLS, price=_price, reads=usual)
def steer(
    session: Session,
    changes: Annotated[list[Change], Field(min_length=1, max_length=10)],
    text: Text | None = None,
    messages: Messages | None = None,
    how: How = "add",
    target: Short | None = None,
    tokens: Annotated[int, Field(ge=0, le=100)] = 30,
    dictionary: Name | None = None,
) -> Answer:
    """Change latents on a prompt: what moves in the prediction and in the text, beside the same change of random latents and directions.

    `kl` is how far the next-token distribution moves, in nats; `p` is (1 + controls at least as large) / (1 + controls), so 0.11 is the
    least with 8. `texts` has what the model writes unchanged, changed, and with the same on random latents: for add and set
    such as fire as often on ordinary text, for scale and ablate such as are as active on this prompt.
    `activations` are the amounts in units of activation; `size` far above 1 is a change larger than anything natural: lower the amount.

    Args:
        changes: Latents with amounts. For add and set the unit is the latent's largest value on ordinary text (1 is strong); for scale a
            factor; for ablate the amount is not used.
        text: The prompt.
        messages: A chat instead.
        how: add to the activation, set it, scale it, or ablate it.
        target: A token whose logit is watched ("A||B" for a difference); left out, the likeliest.
        tokens: New tokens to write; 0 writes none.
        dictionary: Name from list_models; left out, the first.
    """
    name = session.workspace.dictionary(dictionary)
    model, part = session.workspace.model(), session.workspace.part(name)
    latents = checked(session, name, [each.latent for each in changes])
    if len(latents) < len(changes):
        raise Refused("expected each latent once; got one twice; leave one out", field="changes")
    ids = ids_of(session, given(text, messages))
    wishes = _wishes(session, name, latents, [each.amount for each in changes], how)
    edits = latent_edits(model, part, ids, wishes)
    found = steer_prompt(
        model,
        ids,
        edits,
        part,
        target=target,
        controls=CONTROLS,
        latents=CONTROLS,
        seed=session.seed,
        frozen=(False,),
        top=MOVED,
    )
    (changed,) = found.changed
    result: dict[str, Any] = {
        "how": how, "activations": [wish.value for wish in wishes], "latents": [described(session, name, latent) for latent in latents],
        "target": untrusted(found.target, 60),
        "target_logit": found.value, "target_change": _standing(changed, "change"), "kl": _standing(changed, "kl"), "size": changed.size,
        "raised": [_moved(each) for each in changed.raised], "lowered": [_moved(each) for each in changed.lowered],
    }  # fmt: skip
    if tokens:
        others = (
            _others(session, name, latents) if how in ("add", "set") else _active_others(session, name, ids, latents)
        )
        amounts = [each.amount for each in changes if each.latent in others]
        wished = _wishes(session, name, list(others.values()), amounts, how)
        result["texts"] = _texts(session, name, ids, edits, wished, tokens)
        result["random_latents"] = list(others.values())
    return Answer(result, None, session.about(name), session.seed)


def _wishes(session: Session, name: str, latents: Sequence[int], amounts: Sequence[float], how: How) -> list[Wish]:
    largest = session.workspace.norms(name).largest
    firing = largest[largest > 0]
    usual = float(firing.median()) if len(firing) else 1.0  # the unit of a latent that never fires on ordinary text
    wishes = []
    for latent, amount in zip(latents, amounts, strict=True):
        unit = (float(largest[latent]) or usual) if how in ("add", "set") else 1.0
        wishes.append(Wish(latent, ACTIONS[how], None if how == "ablate" else amount * unit))
    return wishes


def _standing(changed: Changed, by: Literal["kl", "change"]) -> dict[str, Any]:
    """The effect, and the largest of each kind of control with p among them."""
    out: dict[str, Any] = {"value": changed.standing("random", by).value}
    for kind, called in (("random", "random_directions"), ("latents", "random_latents")):
        stood = changed.standing(kind, by)
        if stood.controls:
            out[called] = {"largest": max(abs(each) for each in stood.controls), "p": stood.p, "n": len(stood.controls)}
    return out


def _moved(each: Moved) -> dict[str, Any]:
    return {
        "token": untrusted(token(each.token)),
        "before": each.before,
        "after": each.after,
        "change": each.change,
        "controls": [each.control_low, each.control_high],
    }


def _others(session: Session, name: str, latents: Sequence[int]) -> dict[int, int]:
    """For each latent another one of its own that fires about as often, where there is one."""
    density = session.workspace.norms(name).density.clamp_min(0)
    picks = like_density(density, torch.tensor(list(latents)), DRAWN, session.seed)
    found: dict[int, int] = {}
    for latent in latents:
        free = [other for other in picks[latent] if other not in found.values()]
        found |= {latent: free[0]} if free else {}
    return found


def _active_others(session: Session, name: str, ids: Int[Tensor, "token"], latents: Sequence[int]) -> dict[int, int]:
    """For each latent that is active on the prompt another active one: taking a silent one away would change nothing."""
    found = seen(session, name, ids)
    on = latents_on(found.codes, found.kept)
    active = [latent for latent in latents if latent in set(on.latents.tolist())]
    drawn = active_draws(on, active, 1, torch.Generator().manual_seed(session.seed))
    return dict(zip(active, drawn[0], strict=True)) if drawn else {}


def _texts(
    session: Session, name: str, ids: Int[Tensor, "token"], edits: Sequence[Any], others: list[Wish], tokens: int
) -> dict[str, Any]:
    model, part = session.workspace.model(), session.workspace.part(name)
    room = int(model.cfg.n_ctx) - len(ids)
    if room < 1:
        return {}
    runs = {"unchanged": [], "changed": edits, "random": latent_edits(model, part, ids, others) if others else None}
    found: dict[str, Any] = {}
    for called, each in runs.items():
        if each is not None:
            pieces = stream(model, ids, each, part, tokens=min(tokens, room), seed=session.seed)
            found[called] = untrusted("".join(piece.text for piece in pieces), 600)
    return found


def _ablate_price(session: Session, arguments: Mapping[str, Any]) -> int:
    return len(arguments["texts"]) * (4 + 2 * CONTROLS)


@tool("act", cost=4 + 2 * CONTROLS, price=_ablate_price, reads=usual)
def ablate(
    session: Session,
    latents: Annotated[list[Latent], Field(min_length=1, max_length=20)],
    texts: Annotated[list[Text], Field(min_length=1, max_length=8)],
    dictionary: Name | None = None,
) -> Answer:
    """Take latents away on texts: how much worse the target predicts, beside taking away other latents that are active there.

    `loss_change` is of the mean loss a token in nats (positive: the latents helped), `kl` how far predictions move on average; their
    controls take away as many other latents of about the same activation. `last_kl` is of the prediction after the whole text,
    against the same lengths along random directions.

    Args:
        latents: Latents, taken away together.
        texts: At most 8 texts, of each the first 128 tokens.
        dictionary: Name from list_models; left out, the first.
    """
    from ..measures.ablating import ablated

    name = session.workspace.dictionary(dictionary)
    chosen = checked(session, name, latents)
    rows = [ablated(session, name, chosen, text, number, CONTROLS) for number, text in enumerate(texts)]
    every = [row.pop("all_controls") for row in rows]
    over = {each: _over_texts(rows, every, each) for each in ("loss_change", "kl")}
    rows.sort(key=lambda row: (-abs(row["loss_change"]), row["text"]))
    result = {"latents": [described(session, name, latent) for latent in chosen], **over, "rows": rows}
    return Answer(result, "rows", session.about(name), session.seed)


def _over_texts(rows: list[dict[str, Any]], controls: list[dict[str, list[float]]], name: str) -> dict[str, Any]:
    """The mean over texts, and the same for each draw of the controls with p among them; both over the texts that have controls."""
    mean = sum(row[name] for row in rows) / len(rows)
    beside = [(row[name], each[name]) for row, each in zip(rows, controls, strict=True) if each[name]]
    if not beside:
        return {"mean": mean, "controls": 0}
    there = sum(value for value, _ in beside) / len(beside)
    draws: Float[Tensor, "draw"] = torch.tensor([each for _, each in beside], dtype=torch.float64).mean(0)
    above = int((draws.abs() >= abs(there)).sum())
    return {
        "mean": mean,
        **({} if len(beside) == len(rows) else {"texts_with_controls": len(beside), "mean_of_these": there}),
        "control_low": float(draws.min()),
        "control_high": float(draws.max()),
        "p": (1 + above) / (1 + len(draws)),
        "controls": len(draws),
    }
