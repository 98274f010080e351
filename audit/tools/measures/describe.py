"""How latents are shown: which of a ranking are kept, and what each is, in few words.

kept      dense latents left out, and of those that write nearly the same direction (cosine of the decoder rows at least ALIKE) all
          but the first; the others are named with it as `also`
told      the label with its held-out score where there is one, else the tokens that it fires on most; how often it fires; in ranked
          lists also the tokens that it promotes
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ....saes import FeatureStore, UserError
from ....saes.latents.shelf.feature import TokenShare
from ..untrusted import token, tokens, untrusted

if TYPE_CHECKING:
    from ..session import Session

ALIKE, TOKENS = 0.9, 8
LABEL, FIRES, PROMOTES = 120, 5, 4  # characters of a label, tokens shown in its place, tokens it promotes


class Kept(NamedTuple):
    """Latents in rank order, for each those left out for being alike, and how many dense ones were left out."""

    latents: list[int]
    also: dict[int, list[int]]
    dense: int


def checked(session: Session, dictionary: str, latents: Iterable[int]) -> list[int]:
    """Each latent once; UserError for one that the dictionary has not."""
    count = session.workspace.part(dictionary).latents
    found = list(dict.fromkeys(latents))
    wrong = next((each for each in found if not 0 <= each < count), None)
    if wrong is not None:
        raise UserError(f"expected latents below {count} of {dictionary}; got {wrong}; name others")
    return found


def kept(session: Session, dictionary: str, ranked: Sequence[int], k: int, exclude_dense: bool = True) -> Kept:
    """The first `k` of `ranked`."""
    norms = session.workspace.norms(dictionary)
    rows = next(iter(session.workspace.part(dictionary).W_dec.values()))
    chosen: list[int] = []
    also: dict[int, list[int]] = {}
    directions = torch.zeros(0, rows.shape[1])
    dense = 0
    for latent in dict.fromkeys(ranked):
        if exclude_dense and norms.is_dense(latent):
            dense += 1
            continue
        own = torch.nn.functional.normalize(rows[latent].detach().float().cpu(), dim=0)
        near = (directions @ own >= ALIKE).nonzero()[:, 0].tolist()
        if near:
            also.setdefault(chosen[near[0]], []).append(latent)
        elif len(chosen) < k:
            chosen.append(latent)
            directions = torch.cat([directions, own[None]])
        else:
            break
    return Kept(chosen, {latent: others[:5] for latent, others in also.items()}, dense)


def described(session: Session, dictionary: str, latent: int) -> dict[str, Any]:
    """{"latent", "label", "label_score"} or {"latent", "fires_on"}, with "density"."""
    norms = session.workspace.norms(dictionary)
    found: dict[str, Any] = {"latent": latent}
    mark = None if norms.store is None else norms.store.labels.all().get(latent)
    if mark is not None and mark.label:
        found["label"] = untrusted(mark.label, LABEL)
        if mark.score:
            found["label_score"] = {name: mark.score[name] for name in ("value", "low", "high")} | {"chance": 0.5}
    elif fires := fires_on(session, dictionary, latent):
        found["fires_on"] = untrusted("  ".join(fires[:FIRES]), 100)
    return found | {"density": float(norms.density[latent])}


class Known(NamedTuple):
    """What a store knows of a latent, less its examples: tokens that it fires on, tokens that it promotes and suppresses."""

    tokens: list[TokenShare]
    up: list[tuple[str, float]]
    down: list[tuple[str, float]]


def known(session: Session, dictionary: str, store: FeatureStore, latent: int) -> Known:
    """The same each time: reading it also makes the examples, which takes a while."""
    kept = session.kept["described"].setdefault(dictionary, {})
    if latent not in kept:
        own = store[latent]
        kept[latent] = Known(own.tokens, own.top_logits[:10], own.bottom_logits[:10])
    return kept[latent]


def fires_on(session: Session, dictionary: str, latent: int) -> list[str]:
    """The tokens on which it fires most on ordinary text, most first, each as `␣cat ×12`."""
    norms = session.workspace.norms(dictionary)
    if norms.store is not None:
        shares = known(session, dictionary, norms.store, latent).tokens[:TOKENS]
        return [f"{token(each.token)} ×{each.count}" for each in shares]
    assert norms.baseline is not None
    own = norms.baseline.tokens[norms.baseline.rows[norms.baseline.of(latent) > 0]]
    ids, counts = own.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:TOKENS]
    names = norms.baseline.strings(ids[order]) if len(order) else []
    return [f"{token(name)} ×{count}" for name, count in zip(names, counts[order].tolist(), strict=True)]


def rows_of(session: Session, dictionary: str, found: Kept, numbers: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kept latent: what it is, its numbers, and the latents that are alike."""
    from .weights import prepare, promoted

    prepare(session, dictionary, found.latents)
    rows = []
    for latent in found.latents:
        row = described(session, dictionary, latent)
        if up := promoted(session, dictionary, latent, PROMOTES)[0]:
            row["promotes"] = tokens([text for text, _ in up])
        row |= numbers[latent]
        rows.append(row | ({"also": found.also[latent]} if latent in found.also else {}))
    return rows
