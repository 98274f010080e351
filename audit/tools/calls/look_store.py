"""Look at latents: everything known of one, and which latents a word, a token or another latent leads to."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ....saes import FeatureStore, UserError
from ....saes.latents.find.search import search
from ..answers import Answer
from ..fields import Latent, Name, Rows, Short
from ..measures.describe import checked, described, fires_on, kept, known
from ..measures.norms import Norms
from ..measures.readings import in_all, usual
from ..measures.weights import effects_on, promoted
from ..registry import Refused, tool
from ..session import Session
from ..untrusted import marked, token, untrusted

EXAMPLES, NEIGHBOURS, LOGITS, PASSAGE = 8, 5, 8, 240
FEW, ONE_TOKEN, ONE_PLACE = 10, 0.9, 0.5


@tool("look", reads=in_all)
def feature(session: Session, latent: Latent, dictionary: Name | None = None) -> Answer:
    """Everything known of one latent: label with its score, how often it fires, its tokens, its strongest examples (the firing tokens
    are ⟦marked⟧), the tokens it promotes and suppresses, its neighbours, and warnings.

    With a base model, `on_ordinary_text` has how often and how strongly it fires in the target and in the base on the same text.

    Args:
        latent: Its number.
        dictionary: Name from list_models; left out, the first.
    """
    name = session.workspace.dictionary(dictionary)
    (latent,) = checked(session, name, [latent])
    norms = session.workspace.norms(name)
    up, down = promoted(session, name, latent, LOGITS)
    result: dict[str, Any] = described(session, name, latent) | {
        "usual_max": float(norms.largest[latent]), "usual_from": norms.source,
        "fires_on": untrusted("  ".join(fires_on(session, name, latent)), 200), "promotes": _logits(up), "suppresses": _logits(down),
        "neighbours": _neighbours(session, name, latent), "warnings": _warnings(norms, latent),
    }  # fmt: skip
    if norms.store is not None and (note := norms.store.labels.all().get(latent)) is not None and note.note:
        result["note"] = untrusted(note.note)
    if session.workspace.has_base:
        result["on_ordinary_text"] = _in_both(session, name, latent)
    result["examples"] = _examples(norms, latent)
    return Answer(result, "examples", session.about(name))


def _logits(tokens: list[tuple[str, float]]) -> dict[str, str]:
    return untrusted("  ".join(f"{token(text)} {value:+.2f}" for text, value in tokens))


def _neighbours(session: Session, name: str, latent: int) -> list[dict[str, Any]]:
    cosines = cosines_with(session, name, latent)
    cosines[latent] = -torch.inf
    best = cosines.topk(min(NEIGHBOURS, len(cosines) - 1))
    return [
        {**described(session, name, other), "cosine": cosine}
        for other, cosine in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def cosines_with(session: Session, name: str, latent: int) -> Float[Tensor, "latent"]:
    """The cosine of each latent's decoder row with that of one."""
    rows = next(iter(session.workspace.part(name).W_dec.values())).detach().float().cpu()
    return torch.nn.functional.cosine_similarity(rows, rows[latent][None], dim=1)


def _in_both(session: Session, name: str, latent: int) -> dict[str, Any]:
    found = {}
    for which in ("target", "base"):
        values = session.workspace.baseline(name, which).of(latent).double()
        found[which] = {
            "density": float((values > 0).double().mean()),
            "mean": float(values.mean()),
            "max": float(values.max()),
        }
    return found


def _warnings(norms: Norms, latent: int) -> list[str]:
    found = []
    density = float(norms.density[latent])
    if density == 0:
        return ["it never fires on ordinary text: nothing is known of it but its weights"]
    if norms.is_dense(latent):
        found.append(f"dense: it fires on {density:.0%} of ordinary tokens, so that firing says little")
    if norms.store is None:
        fires = round(density * len(norms.baseline or ()))
        return found + ([f"few: it fires {fires} times on the baseline text"] if fires < FEW else [])
    one = norms.store[latent]
    if one.count < FEW:
        found.append(f"few: it fires {one.count} times in all of the store's text")
    if one.tokens and one.tokens[0].share >= ONE_TOKEN:
        found.append(f"one token: {one.tokens[0].share:.0%} of its firings are on a single token")
    if one.position_share == one.position_share and one.position_share >= ONE_PLACE and one.count >= FEW:
        found.append(f"one place: {one.position_share:.0%} of its firings are at position {one.position_top}")
    return found


def _examples(norms: Norms, latent: int) -> list[dict[str, Any]]:
    """The strongest places, one a document."""
    if norms.store is not None:
        return _of_store(norms.store, latent)
    baseline = norms.baseline
    assert baseline is not None
    values = baseline.of(latent)
    rows: dict[int, int] = {}
    for row in values.argsort(descending=True, stable=True)[: 20 * EXAMPLES].tolist():
        if float(values[row]) > 0 and len(rows) < EXAMPLES:
            rows.setdefault(int(baseline.documents[row]), row)
    found = []
    for document, row in rows.items():
        strings, place = baseline.window(row)
        found.append({"value": float(values[row]), "document": document, "text": marked(strings, {place}, PASSAGE)})
    return found


def _of_store(store: FeatureStore, latent: int) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for each in store[latent].examples:
        marks = {place for place, value in enumerate(each.values) if value > 0}
        row = {"value": each.value, "document": each.document, "text": marked(each.tokens, marks, PASSAGE)}
        found.setdefault(each.document, row)
    return list(found.values())[:EXAMPLES]


@tool("look", reads=usual)
def search_features(
    session: Session,
    query: Short,
    by: Literal["any", "label", "text", "token", "logit", "similar"] = "any",
    dictionary: Name | None = None,
    k: Rows = 10,
    exclude_dense: bool = True,
) -> Answer:
    """The latents that a word, a token or another latent leads to, best first, each with what it is.

    The query is a plain string (no patterns).

    Args:
        query: What to look for; for similar the number of a latent.
        by: label (what people or an explainer said), text (it stands in the strongest examples), token (it fires on that token), logit (it
            promotes that token), similar (nearest decoder rows), or any of the first four.
        dictionary: Name from list_models; left out, the first.
        k: How many latents.
        exclude_dense: Leave out latents that fire almost everywhere.
    """
    name = session.workspace.dictionary(dictionary)
    store = session.workspace.store(name)
    numbers: dict[int, dict[str, Any]] = {}
    if by == "similar":
        order, numbers = _similar(session, name, query)
        total = len(order)
    elif store is not None:
        found = search(store, query, by)
        order, total = found.latents[: 20 * k].tolist(), found.total
        numbers = _why(session, name, query, order) if by in ("token", "any") else {}
    else:
        order, numbers = _without_store(session, name, query, by)
        total = len(order)
    listed = kept(session, name, order, k, exclude_dense) if by != "similar" else None
    chosen = order[:k] if listed is None else listed.latents
    rows = [described(session, name, latent) | numbers.get(latent, {}) for latent in chosen]
    if listed is not None:
        rows = [row | ({"also": listed.also[row["latent"]]} if row["latent"] in listed.also else {}) for row in rows]
    result = {"by": by, "total": total, "dense_left_out": 0 if listed is None else listed.dense, "features": rows}
    return Answer(result, "features", session.about(name))


def _similar(session: Session, name: str, query: str) -> tuple[list[int], dict[int, dict[str, Any]]]:
    if not query.isascii() or not query.isdigit() or len(query) > 9:
        raise Refused(
            "expected the number of a latent as query for similar; got other text; give digits", field="query"
        )
    (latent,) = checked(session, name, [int(query)])
    cosines = cosines_with(session, name, latent)
    cosines[latent] = -torch.inf
    best = cosines.topk(min(100, len(cosines) - 1))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return best.indices.tolist(), {other: {"cosine": cosine} for other, cosine in pairs}


def _why(session: Session, name: str, query: str, latents: list[int]) -> dict[int, dict[str, Any]]:
    """For each latent the share of its firings on tokens with the query, and how many times chance that is, where it is known."""
    store = session.workspace.store(name)
    assert store is not None
    folded = query.strip().casefold()
    found: dict[int, dict[str, Any]] = {}
    for latent in latents[:60]:
        own = [each for each in known(session, name, store, latent).tokens if folded in each.token.casefold()]
        if own:
            found[latent] = {
                "share_of_firings": min(sum(each.share for each in own), 1.0),
                "times_chance": max(each.lift for each in own),
            }
    return found


def _without_store(session: Session, name: str, query: str, by: str) -> tuple[list[int], dict[int, dict[str, Any]]]:
    """By tokens of the baseline text, or by the weights; UserError for what only a store knows."""
    if by in ("label", "text"):
        raise UserError(
            f"expected a store of {name} to search by {by}; this workspace has none; search by token or logit"
        )
    if by == "logit":
        effects = effects_on(session, name, query)
        best = effects.topk(min(100, len(effects)))
        return best.indices.tolist(), {
            latent: {"effect": value} for latent, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        }
    baseline = session.workspace.baseline(name)
    ids = baseline.tokens[baseline.rows]
    folded = query.strip().casefold()
    known = ids.unique()
    fit = torch.tensor([folded in text.casefold() for text in baseline.strings(known)], dtype=torch.bool)
    rows = torch.isin(ids, known[fit])
    active = baseline.codes.values > 0
    hits = torch.bincount(baseline.codes.indices[rows][active[rows]], minlength=baseline.latents).double()
    counts = baseline.counts().double()
    share = hits / counts.clamp_min(1)
    # The share of so few firings is drawn towards none: two more firings elsewhere.
    score = hits / (counts + 2)
    order = score.argsort(descending=True, stable=True)
    order = order[hits[order] > 0].tolist()
    usual = float(rows.double().mean())
    return order, {
        latent: {"share_of_firings": float(share[latent]), "times_chance": float(share[latent]) / max(usual, 1e-9)}
        for latent in order[:200]
    }
