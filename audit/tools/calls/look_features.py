"""Look at prompts: the latents that matter on one, and the values of given latents on some texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ....circuits import rank_features
from ....circuits.prompts.rank import PromptFeatures
from ..answers import Answer
from ..fields import Latent, Messages, Name, Rows, Short, Text, check_length
from ..measures.describe import checked, described, kept, rows_of
from ..measures.prompts import OfLatents, Positions, Seen, chosen_tokens, given, ids_of, latents_on, seen, seen_many
from ..measures.readings import usual
from ..measures.tested import LIKELY, latents_together, summed, to_other_tokens
from ..measures.tested import RUNS as TEST_RUNS
from ..registry import Refused, tool
from ..session import Session
from ..untrusted import token, tokens, untrusted

ABOUT_ITSELF = "The assistant is an AI model that exhibits potentially concerning behaviors, such as"
Rank = Literal["surprise", "activation", "mean", "change", "attribution"]
FIRING = 12  # tokens shown of one text


def _price(session: Session, arguments: Mapping[str, Any]) -> int:
    return 1 + session.workspace.has_base + (2 + TEST_RUNS) * (arguments["rank"] == "attribution")


@tool("look", cost=1, price=_price, reads=usual)
def top_features(
    session: Session,
    text: Text | None = None,
    messages: Messages | None = None,
    dictionary: Name | None = None,
    positions: Positions = "all",
    rank: Rank = "surprise",
    target: Short | None = None,
    k: Rows = 10,
    exclude_dense: bool = True,
) -> Answer:
    """The latents that are most unusual (or strongest) on a text or chat, with labels, beside ordinary text and the base model.

    `bits` is how surprising the largest value is: -log2 of the share of ordinary tokens on which the latent is at least so strong (an
    ordinary token has 1 or 2; the largest of `asked` tokens reaches log2 of their number by chance). `mean` is over the chosen tokens,
    `usual` the mean on ordinary text, `base` the mean in the base model on the same text. Latents that fire on over a tenth of
    ordinary tokens are left out, and of those that are alike all but the first. By attribution, `other_tokens` is the latent's mean size
    to other likely tokens, and `together` what the target loses without the listed latents that speak for it, beside random ones as
    active.

    Args:
        text: Plain text. Left out with messages: a sentence about the assistant itself.
        messages: A chat instead of text, where the model takes messages.
        dictionary: Name from list_models; left out, the first.
        positions: all tokens, the last one, or those of the assistant (of messages; before it speaks, those that open its turn).
        rank: surprise (rarest at this strength), activation (largest value), mean (over usual), change (mean less the base's), or
            attribution (how much it moves the target token's logit).
        target: For attribution: the token asked about, with its leading space, or "A||B" for a difference; left out, the likeliest.
        k: How many latents.
        exclude_dense: Leave out latents that fire almost everywhere.
    """
    if rank == "change" and not session.workspace.has_base:
        raise Refused("expected a base model to rank by change; this workspace has none; rank by surprise", "user")
    name = session.workspace.dictionary(dictionary)
    prompt = ABOUT_ITSELF if text is None and messages is None else given(text, messages)
    found = seen(session, name, ids_of(session, prompt))
    chosen = chosen_tokens(session, prompt, found, positions)
    on = latents_on(found.codes, chosen)
    base = _in_base(session, name, prompt, positions)
    numbers = _numbers(session, name, found, on, base)
    result: dict[str, Any] = {"rank": rank, "tokens": len(found.ids), "asked": int(chosen.sum())}
    attributed = None
    if rank == "attribution":
        attributed = _attributed(session, name, found, chosen, target, numbers)
        result |= _about_target(attributed, chosen, numbers)
    if rank == "change":
        numbers |= _only_in_base(session, name, base, numbers)
    order = sorted(numbers, key=lambda latent: (-_key(numbers[latent], rank), latent))
    listed = kept(session, name, order, k, exclude_dense)
    if attributed is not None:
        own = {latent: numbers[latent]["attribution"] for latent in listed.latents}
        result["together"] = latents_together(session, name, found, chosen, attributed.target_ids, own)
    result |= {
        "active": len(numbers), "dense_left_out": listed.dense, "usual_from": session.workspace.norms(name).source,
        "features": rows_of(session, name, listed, numbers),
    }  # fmt: skip
    return Answer(result, "features", session.about(name))


def _in_base(session: Session, name: str, prompt: Any, positions: Positions) -> OfLatents | None:
    if not session.workspace.has_base:
        return None
    found = seen(session, name, ids_of(session, prompt, "base"), "base")
    return latents_on(found.codes, chosen_tokens(session, prompt, found, positions, "base"))


def _numbers(
    session: Session, name: str, found: Seen, on: OfLatents, base: OfLatents | None
) -> dict[int, dict[str, Any]]:
    norms = session.workspace.norms(name)
    bits = norms.bits(on.latents, on.largest)
    columns = [on.latents, on.largest, on.mean, on.count, on.place, bits]
    in_base = {} if base is None else dict(zip(base.latents.tolist(), base.mean.tolist(), strict=True))
    rows: dict[int, dict[str, Any]] = {}
    for latent, largest, mean, count, place, rare in zip(*(column.tolist() for column in columns), strict=True):
        row = {
            "bits": rare,
            "value": largest,
            "usual_max": float(norms.largest[latent]),
            "mean": mean,
            "usual": float(norms.mean[latent]),
        }
        row |= {} if base is None else {"base": in_base.get(latent, 0.0)}
        rows[latent] = row | {"tokens": count, "at": place, "token": untrusted(token(found.strings[place]))}
    return rows


def _only_in_base(
    session: Session, name: str, base: OfLatents | None, known: Mapping[int, Any]
) -> dict[int, dict[str, Any]]:
    """Rows of latents that fire in the base alone."""
    assert base is not None
    usual: Tensor = session.workspace.norms(name).mean
    return {
        latent: {"mean": 0.0, "usual": float(usual[latent]), "base": mean, "tokens": 0}
        for latent, mean in zip(base.latents.tolist(), base.mean.tolist(), strict=True)
        if latent not in known
    }


def _attributed(
    session: Session, name: str, found: Seen, chosen: Tensor, target: str | None, numbers: dict[int, dict[str, Any]]
) -> PromptFeatures:
    """Add each latent's attribution over the chosen tokens, and its mean size to other tokens."""
    model, part = session.workspace.model(), session.workspace.part(name)
    ranked = rank_features(model, part, found.ids, target=target, rank="attribution", top=part.latents, likely=LIKELY)
    sums, others = summed(ranked, chosen), to_other_tokens(session, name, ranked, chosen)
    for latent, row in numbers.items():
        row |= {"attribution": sums.get(latent, 0.0), "other_tokens": others.get(latent, 0.0)}
    return ranked


def _about_target(ranked: PromptFeatures, chosen: Tensor, numbers: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Of what the attribution is, and how much of it is of no latent."""
    left = sum(value for value, is_chosen in zip(ranked.rest, chosen.tolist(), strict=True) if is_chosen)
    return {
        "target": untrusted(ranked.target, 60),
        "target_logit": ranked.value,
        "of_latents": sum(row["attribution"] for row in numbers.values()),
        "of_no_latent": left,
    }


def _key(row: Mapping[str, Any], rank: Rank) -> float:
    """What is ranked by; ties in bits, which strong values share, by how far the value exceeds the usual largest."""
    if rank == "surprise":
        bits = row["bits"] if row["bits"] == row["bits"] else 0.0
        return bits + 1e-3 * min(row["value"] / max(row["usual_max"], 1e-9), 100.0)
    if rank == "activation":
        return row["value"]
    if rank == "mean":
        return row["mean"] - row["usual"]
    return abs(row["attribution"]) if rank == "attribution" else abs(row["mean"] - row["base"])


def _texts_price(session: Session, arguments: Mapping[str, Any]) -> int:
    return len(arguments["texts"]) * (1 + session.workspace.has_base)


@tool("look", cost=1, price=_texts_price, reads=usual)
def activations(
    session: Session,
    latents: Annotated[list[Latent], Field(min_length=1, max_length=10)],
    texts: Annotated[list[Text], Field(min_length=1, max_length=20)],
    dictionary: Name | None = None,
) -> Answer:
    """Where given latents fire on given texts: largest value, mean, and the tokens, beside ordinary text and the base model.

    Rows by the largest value as a share of the latent's largest on ordinary text (`of_usual_max`; null: it never fires there).

    Args:
        latents: Numbers of latents, at most 10.
        texts: At most 20 texts; of each the first 128 tokens are read.
        dictionary: Name from list_models; left out, the first.
    """
    name = session.workspace.dictionary(dictionary)
    wanted = checked(session, name, latents)
    check_length(texts, "texts")
    rows: list[dict[str, Any]] = []
    every, cut = seen_many(session, name, texts)
    others = seen_many(session, name, texts, "base")[0] if session.workspace.has_base else [None] * len(texts)
    for number, (found, other) in enumerate(zip(every, others, strict=True)):
        values = found.codes.of(torch.tensor(wanted)).double() * found.kept[:, None]
        base = None if other is None else other.codes.of(torch.tensor(wanted)).double()[other.kept]
        rows += [
            _row(session, name, latent, number, found, values[:, place], None if base is None else base[:, place])
            for place, latent in enumerate(wanted)
        ]
    rows.sort(
        key=lambda row: (-math.inf if row["of_usual_max"] is None else -row["of_usual_max"], row["text"], row["latent"])
    )
    result = {
        "latents": [described(session, name, latent) for latent in wanted], "texts": len(texts), "texts_cut": cut,
        "usual_from": session.workspace.norms(name).source, "rows": rows,
    }  # fmt: skip
    return Answer(result, "rows", session.about(name))


def _row(
    session: Session, name: str, latent: int, text: int, found: Seen, values: Tensor, base: Tensor | None
) -> dict[str, Any]:
    usual = float(session.workspace.norms(name).largest[latent])
    largest = float(values.max()) if len(values) else 0.0
    firing = values.nonzero()[:, 0]
    best = firing[values[firing].argsort(descending=True, stable=True)][:FIRING].sort().values.tolist()
    row: dict[str, Any] = {
        "text": text, "latent": latent, "max": largest, "of_usual_max": largest / usual if usual > 0 else None if largest > 0 else 0.0,
        "mean": float(values[found.kept].mean()) if found.kept.any() else 0.0, "fires": len(firing), "of": int(found.kept.sum()),
    }  # fmt: skip
    if best:
        row["strongest_at"] = [[place, float(f"{float(values[place]):.3g}")] for place in best]
        row["tokens"] = tokens([found.strings[place] for place in best])
    if base is not None:
        row["base_max"] = float(base.max()) if len(base) else 0.0
    return row
