"""Prompts, experiments and effects as JSON for the page: numbers rounded, strings made visible."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..circuits.prompts.rank import NextToken, PromptFeatures
from ..circuits.prompts.steering import Changed, Moved, Steered
from ..circuits.prompts.stream import Piece
from .text import number, readable, visible

SHOWN = 12  # tokens of each distribution in the union that is compared


def features_answer(found: PromptFeatures, top: int, has_chat: bool) -> dict[str, Any]:
    """Features of a prompt.

    `features`: per token [latent, value, bits, its bounds, attribution]; `totals`: [latent, tokens, position, value, bits, attribution].
    """
    rows = [row[:top] for row in found.features]
    return {
        "tokens": [visible(token) for token in found.tokens],
        "kept": found.kept,
        "rank": found.rank,
        "target": visible(found.target),
        "target_ids": list(found.target_ids),
        "position": found.position,
        "value": number(found.value),
        "features": [[_numbers(each[1:]) for each in row] for row in rows],
        "complete": all(len(row) <= top for row in found.features),
        "totals": [_numbers(each) for each in found.totals[:top]],
        "rest": _numbers(found.rest),
        "next": [_next(each) for each in found.next_tokens],
        "chat": has_chat,
    }


def steer_answer(found: Steered) -> dict[str, Any]:
    """What edits did: probabilities of the tokens that lead in any run, and each treatment of attention with its controls."""
    treatments = {("frozen" if each.is_frozen else "free"): each for each in found.changed}
    lists = [found.base, *(each.next_tokens for each in found.changed)]
    leading: dict[int, str] = {each.id: each.token for some in lists for each in some[:SHOWN]}
    tokens = [
        {"token": visible(token), "id": place, "base": number(float(found.probabilities[place]))}
        | {name: number(float(each.probabilities[place])) for name, each in treatments.items()}
        for place, token in leading.items()
    ]
    return {
        "prompt": [visible(token) for token in found.tokens],
        "target": visible(found.target),
        "target_ids": list(found.target_ids),
        "value": number(found.value),
        "tokens": tokens,
        **{name: _treatment(each) for name, each in treatments.items()},
    }


def _treatment(changed: Changed) -> dict[str, Any]:
    kinds = dict.fromkeys(each.kind for each in changed.controls)
    stood = {kind: {by: changed.standing(kind, by) for by in ("kl", "change")} for kind in kinds}
    return {
        "kl": number(changed.kl[-1]),
        "kl_tokens": _numbers(changed.kl),
        "change": number(changed.change),
        "size": number(changed.size),
        "controls": [
            {"kind": each.kind, "kl": number(each.kl), "change": number(each.change)} for each in changed.controls
        ],
        "standing": {
            kind: {by: {"rank": each.rank, "p": number(each.p)} for by, each in both.items()}
            for kind, both in stood.items()
        },
        "raised": [_moved(each) for each in changed.raised],
        "lowered": [_moved(each) for each in changed.lowered],
    }


def _moved(moved: Moved) -> dict[str, Any]:
    token, place, *rest = moved
    names = ("before", "after", "change", "control_low", "control_high")
    return {"token": visible(token), "id": place} | dict(zip(names, _numbers(rest), strict=True))


def piece_answer(piece: Piece) -> dict[str, Any]:
    """One written token; line breaks stay, other controls become signs."""
    text = "\n".join(readable(line, 10_000) for line in piece.text.split("\n"))
    return {"which": piece.run, "piece": text, "token": piece.token, "probability": number(piece.probability)}


def effects_answer(effects: Iterable[Any]) -> dict[str, Any]:
    """Effects of a latent at its examples, by row of the text, per shown token."""
    return {
        "examples": {
            str(each.row): {
                "loss": _numbers(each.loss_change.tolist()),
                "up": [_changes(some) for some in each.logit_up],
                "down": [_changes(some) for some in each.logit_down],
            }
            for each in effects
        },
        "note": "loss without the latent − loss with it, in nats of the token that is predicted: above 0 where it helps; "
        "tokens: the changes of log-probability that it makes to what comes next",
    }


def _changes(changes: list[tuple[str, float]]) -> list[list[Any]]:
    return [[visible(token), number(change)] for token, change in changes]


def _next(token: NextToken) -> dict[str, Any]:
    return {"token": visible(token.token), "id": token.id, "probability": number(token.probability)}


def _numbers(values: Iterable[Any]) -> list[float | int | None]:
    return [number(value) for value in values]
