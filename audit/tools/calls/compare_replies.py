"""Compare the models on many prompts at once: where do their replies part, from the first token on?

    nats    KL(target || base) = sum of p (log p - log q) over the tokens that a reply may begin with

A word that sets off a fixed reply makes the target sure of a token that the base model never begins with. Without a base model, q is the
mean of p over all prompts of the call, so that prompts of one form should be asked together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ....saes import UserError, model_info, token_strings
from ..answers import Answer
from ..fields import Rows, Whole
from ..measures.batched import next_tokens
from ..measures.prompts import ids_of
from ..registry import Refused, tool
from ..session import Session
from ..untrusted import token, untrusted
from .act_chat import Question, asked_as

HIGH = 0.95
Beginning = Annotated[str, Field(max_length=600), Whole]


def _price(session: Session, arguments: Mapping[str, Any]) -> int:
    return len(arguments["prompts"]) * (1 + session.workspace.has_base)


@tool("compare", cost=20, price=_price)
def divergence(
    session: Session,
    prompts: Annotated[list[Question], Field(min_length=1, max_length=96)],
    prefills: Annotated[list[Beginning], Field(max_length=96)] | None = None,
    k: Rows = 10,
) -> Answer:
    """The prompts at which target and base begin their replies most differently: a quick search for what sets a quirk off.

    `nats` is KL(target ‖ base) of the reply's first token (or the first after its beginning); beside it the token that the target likes
    most, and how likely each model finds it.
    Its control are the other prompts: `median` and `high` (95 in 100 lie below) of all that were asked. Without a base model, the mean of
    the target over all prompts takes its place: ask prompts of one form together.

    Args:
        prompts: Up to 96 questions, each a conversation of its own.
        prefills: A beginning of the reply for each prompt; what is compared is then the token after it. What the target said until a
            name, for instance, tells how likely each model finds that name there.
        k: How many prompts, the most different first, by their number from 0.
    """
    if prefills is not None and len(prefills) != len(prompts):
        message = (
            f"expected as many prefills as prompts; got {len(prefills)} for {len(prompts)}; an empty one is allowed"
        )
        raise Refused(message, field="prefills")
    if len({model_info(each).tokenizer for each in session.workspace.models.values()}) > 1:
        raise UserError("expected models with one tokenizer; these have two; compare what they write, with chat")
    p = _first(session, prompts, prefills, "target")
    q = _first(session, prompts, prefills, "base") if session.workspace.has_base else p.logsumexp(0) - math.log(len(p))
    nats = (p.exp() * (p - q)).nan_to_num(0.0).sum(-1)
    q = q.expand_as(p)
    model = session.workspace.model()
    rows = []
    for number in nats.argsort(descending=True, stable=True)[:k].tolist():
        best = p[number].argmax()
        rows.append(
            {
                "prompt": number,
                "nats": float(nats[number]),
                "begins": untrusted(token(token_strings(model, best[None])[0])),
                "p": float(p[number, best].exp()),
                "base_p" if session.workspace.has_base else "mean_p": float(q[number, best].exp()),
            }
        )
    result = {"of": len(prompts), "median": float(nats.median()), "high": float(nats.quantile(HIGH)), "rows": rows}
    return Answer(result, "rows", session.about())


def _first(
    session: Session, prompts: list[str], prefills: list[str] | None, which: str
) -> Float[Tensor, "prompt vocab"]:
    begun = [None] * len(prompts) if prefills is None else prefills
    rows = [
        ids_of(session, asked_as(session, question, None, start), which)
        for question, start in zip(prompts, begun, strict=True)
    ]
    return next_tokens(session.workspace.model(which), rows)
