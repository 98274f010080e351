"""Act: train a probe on texts that one has written, and read it on others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from ....saes import UserError, model_info
from ...monitor.probes import mean_activation, train_probe
from ...monitor.signals import Probe
from ..answers import Answer
from ..fields import Text, check_length, check_unlike
from ..measures.baseline import evenly, neutral
from ..measures.prompts import CONTEXT
from ..registry import Refused, tool
from ..session import Session
from ..untrusted import shown, untrusted

PROBES, ORDINARY = 20, 32  # probes of a session, ordinary texts that scores are compared with
Label = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$")]


def _train_price(session: Session, arguments: Mapping[str, Any]) -> int:
    return len(arguments["positive"]) + len(arguments["negative"])


@tool("act", cost=16, price=_train_price, reads_only=False)
def probe_train(
    session: Session,
    name: Label,
    positive: Annotated[list[Text], Field(min_length=8, max_length=64)],
    negative: Annotated[list[Text], Field(min_length=8, max_length=64)],
    layer: Annotated[int, Field(ge=0, le=1_000)] | None = None,
    kind: Literal["logistic", "means"] = "logistic",
) -> Answer:
    """Train a linear probe on the residual stream that tells two kinds of texts apart, and keep it under a name.

    `auc` is on the half of the texts that it was not fitted on, with its 95 % interval; `shuffled` is the mean of probes fitted with
    shuffled labels and `shuffled_most` their best. Believe it only where auc's interval lies above both.

    Args:
        name: A name to apply it by: letters, digits, - and _.
        positive: At least 8 texts of the one kind.
        negative: At least 8 of the other, alike in all else.
        layer: The block after which the stream is read; left out, the middle one.
        kind: logistic, or the difference of means.
    """
    model = session.workspace.model()
    layers = model_info(model).n_layers
    number = layers // 2 if layer is None else layer
    if number >= layers:
        raise Refused(f"expected a layer below {layers}; got {number}; choose one", field="layer")
    probes = session.kept["probes"]
    if name not in probes and len(probes) >= PROBES:
        raise UserError(f"expected at most {PROBES} probes in a session; got another; use the name of an old one")
    check_length([*positive, *negative], "the texts")
    for texts, field in ((positive, "positive"), (negative, "negative")):
        check_unlike(texts, field)  # one half is tested on what the other was fitted on
    if same := set(positive) & set(negative):
        raise Refused(f"expected texts of one kind each; {len(same)} are of both; leave them out", field="negative")
    site = f"blocks.{number}.hook_resid_post"
    found = train_probe(model, site, _read(positive), _read(negative), kind, session.seed)
    probes[name] = found
    return Answer(
        {"probe": name, "layer": number, "kind": kind, "quality": dict(found.quality or {})},
        None,
        session.about(),
        session.seed,
    )


def _read(texts: list[str]) -> list[str]:
    """The texts; one of white space alone is a mistake."""
    if not all(text.strip() for text in texts):
        raise UserError("expected texts with a visible character; got one without; leave it out")
    return list(texts)


def _apply_price(session: Session, arguments: Mapping[str, Any]) -> int:
    return len(arguments["texts"]) * (1 + session.workspace.has_base) + ORDINARY


@tool("act", cost=1 + ORDINARY, price=_apply_price)
def probe_apply(
    session: Session, name: Label, texts: Annotated[list[Text], Field(min_length=1, max_length=32)]
) -> Answer:
    """The scores of a trained probe on texts, highest first, beside ordinary texts and the base model.

    `above_ordinary` is the share of ordinary texts that score lower (0.5 is nothing special); `base` is the same probe's score in the base.

    Args:
        name: The name given to probe_train.
        texts: At most 32 texts.
    """
    if name not in session.kept["probes"]:
        known = ", ".join(session.kept["probes"]) or "none"
        raise Refused(f"expected the name of a probe ({known}); got {shown(name, 40)!r}; train one first", field="name")
    probe: Probe = session.kept["probes"][name]
    check_length(texts, "texts")
    ordinary = _ordinary(session, name, probe)
    rows = []
    for number, text in enumerate(_read(texts)):
        score = _score(session, probe, text)
        row: dict[str, Any] = {
            "text": number,
            "score": score,
            "above_ordinary": float((ordinary < score).double().mean()),
        }
        if session.workspace.has_base:
            row["base"] = _score(session, probe, text, "base")
        rows.append(row | {"begins": untrusted(text, 60)})
    rows.sort(key=lambda row: (-row["score"], row["text"]))
    middle = {"median": float(ordinary.median()), "highest": float(ordinary.max()), "texts": len(ordinary)}
    result = {"probe": name, "site": probe.site, "quality": dict(probe.quality or {}), "ordinary": middle, "rows": rows}
    return Answer(result, "rows", session.about())


def _score(session: Session, probe: Probe, text: str, which: str = "target") -> float:
    x = mean_activation(session.workspace.model(which), probe.site, text)[None]
    nothing = torch.zeros(1, dtype=torch.int64)
    return float(probe.scores({probe.site: x}, nothing, nothing)[0])


def _ordinary(session: Session, name: str, probe: Probe) -> torch.Tensor:
    """The probe's scores of ordinary texts."""
    documents = evenly(neutral(session.workspace.corpus), ORDINARY)
    texts = [each.text[: 4 * CONTEXT] for each in documents if each.text[: 4 * CONTEXT].strip()]
    return torch.tensor([_score(session, probe, text) for text in texts], dtype=torch.float64)
