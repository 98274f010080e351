"""Search: the latents of a store that a string leads to, best first, without a model.

    label   label, tag or note contains it: equal labels, then labels that begin with it, then that contain it, then tags,
            notes, and those with all of its words; starred ones first among equals
    text    the windows of its top examples contain it, in any case and across tokens; by how many do, then by activation
    token   it fires on the token: on exactly this one (with or without a space in front), then on tokens that contain it; by
            the share of its firings, of which the lower end of a 95 % interval counts (Wilson 1927), so that one firing of one
            is less than 900 of 1,000
    logit   it promotes the token: exactly, then containing it, by direct effect; after them those that suppress it
    any     all four: labels first, the others by Σ 1 / (60 + rank) over the kinds (reciprocal rank fusion, Cormack et al. 2009)

A query is a plain string: no patterns, nothing to escape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ...codes import Codes
from ...errors import UserError
from ...statistics import wilson
from .search_index import Index, Said, index_of

if TYPE_CHECKING:
    from ..shelf.store import FeatureStore

FUSION = 60  # the constant of reciprocal rank fusion: how little the first rank alone decides

Latents = NDArray[np.int64]


class Found(NamedTuple):
    """Latents, best first, how many they are, and in words why these (or why none)."""

    latents: Int[Tensor, "found"]
    total: int
    why: str


def search(store: FeatureStore, query: str, kind: str = "any") -> Found:
    """The latents of `store` that `query` leads to by `kind`: label, text, token, logit or any.

    The first search of a kind prepares what it needs; each further one takes under 0.1 s for 131,072 latents. Raises UserError
    for another kind, and where the store's files are damaged.
    """
    if kind not in (*KINDS, "any"):
        raise UserError(f"expected a kind of search among {', '.join(KINDS)} and any; got {kind[:40]!r}")
    if not query:
        return _found([], "nothing to search for: the query is empty")
    index = index_of(store)
    if kind != "any":
        latents, words = KINDS[kind](index, query)
        return _found(latents, words)
    answers = {name: find(index, query) for name, find in KINDS.items()}
    latents = fuse(answers["label"][0], [answers[name][0] for name in KINDS if name != "label"], index.latents)
    counts = ", ".join(f"{len(found):,} by {name}" for name, (found, _) in answers.items() if len(found))
    return _found(latents, f"{shown(query)}: {counts or 'no label, example, token or logit has it'}")


def rank_firing(
    codes: Codes, kept: Bool[Tensor, "token"], relative_to: Float[Tensor, "latent"] | None = None
) -> Int[Tensor, "found"]:
    """The latents that fire on a text, by their largest value on its kept tokens; ties: more tokens, then the lower latent.

    `relative_to` (such as `store.max_value`) ranks by share of those values instead, so that latents which are always strong
    do not come first everywhere.
    """
    values, indices = codes.values[kept].flatten(), codes.indices[kept].flatten()
    values, indices = values[values > 0].double(), indices[values > 0]
    latents, place, tokens = indices.unique(return_inverse=True, return_counts=True)
    best = torch.zeros(len(latents), dtype=torch.float64, device=values.device)
    best.scatter_reduce_(0, place, values, "amax")
    if relative_to is not None:
        best /= relative_to.to(best)[latents].clamp_min(1e-30)
    order = tokens.argsort(descending=True, stable=True)
    order = order[best[order].argsort(descending=True, stable=True)]
    return latents[order].cpu()


def by_label(index: Index, query: str) -> tuple[Latents, str]:
    """Latents of which people said it."""
    folded = query.strip().casefold() or query.casefold()
    words = folded.split()
    found = []
    for latent, said in index.said().items():
        if folded in said.all or (len(words) > 1 and all(word in said.all for word in words)):
            rank = _label_rank(said, folded, words)
            if rank is not None and latent < index.latents:
                found.append((2 * rank + (not said.is_starred)) << 32 | latent)
    latents = np.array(sorted(found), np.int64) & 0xFFFFFFFF
    return latents, _why(latents, "labels, tags or notes with", "no label, tag or note has", query)


def _label_rank(said: Said, folded: str, words: list[str]) -> int | None:
    """How well it fits, 0 best; None where it only spans two of the strings."""
    if folded in said.label:
        return 0 if said.label == folded else 1 if said.label.startswith(folded) else 2
    if any(folded in tag for tag in said.tags):
        return 3
    if folded in said.note:
        return 4
    return 5 if len(words) > 1 and all(word in said.all for word in words) else None


def by_text(index: Index, query: str) -> tuple[Latents, str]:
    """Latents whose top examples have it."""
    with index.lock:
        running, examples, values = index.running, index.examples, index.array("example_values")
    first, last = running.find(query.casefold())
    if not len(first):
        return np.empty(0, np.int64), f"the text has no {shown(query)}"
    cells = examples.holding(first, last)
    holders = cells // index.example_rows.shape[1]
    score = np.bincount(holders, minlength=index.latents).astype(np.float64)
    if values is not None:
        best = np.zeros(index.latents)
        np.maximum.at(
            best, holders, values.ravel()[cells].astype(np.float64)
        )  # a cast inside would be six times slower
        score += np.where(score > 0, _share(best), 0.0)
    none = f"none of the examples is at the {len(first):,} places of"
    return _why_ranked(score, "latents with examples of", none, query)


def by_token(index: Index, query: str) -> tuple[Latents, str]:
    """Latents that fire on the token."""
    ids, counts = index.array("token_ids", len(index.vocabulary)), index.array("token_counts")
    total = index.array("count")
    if ids is None or counts is None or total is None:  # version 1: the tokens under the top examples
        ids = np.where(index.example_rows >= 0, index.tokens[index.example_rows], -1)
        counts = (ids >= 0).astype(np.int32)
        total = counts.sum(1)
    fit = matching(index, query)[ids]
    score = np.zeros(index.latents)
    for least in (1, 2):
        cells = np.flatnonzero(fit.ravel() >= least)
        hits = np.bincount(cells // fit.shape[1], counts.ravel()[cells], index.latents)
        chosen = np.flatnonzero(hits)
        score[chosen] = 2 * least + wilson(hits[chosen], total[chosen])[0]
    return _why_ranked(score, "latents that fire on", "no latent is known to fire on", query)


def by_logit(index: Index, query: str) -> tuple[Latents, str]:
    """Latents that promote the token, then those that suppress it."""
    fits, score = matching(index, query), np.zeros(index.latents)
    for name, sign, rank in (("bottom", -1.0, 0), ("top", 1.0, 2)):
        ids, values = index.array(f"{name}_logit_tokens", len(index.vocabulary)), index.array(f"{name}_logit_values")
        if ids is None or values is None:
            return np.empty(0, np.int64), "this store has no logits: its dictionary does not write at the model's width"
        fit = fits[ids].ravel()
        cells = np.flatnonzero(fit)
        np.maximum.at(
            score, cells // ids.shape[1], rank + fit[cells] + _share(sign * values.ravel()[cells].astype(np.float64))
        )
    latents, words = _why_ranked(score, "latents that promote or suppress", "no latent's strongest logits have", query)
    return latents, f"{words} ({(score >= 3).sum():,} promote)" if len(latents) else words


KINDS = {"label": by_label, "text": by_text, "token": by_token, "logit": by_logit}


def matching(index: Index, query: str) -> NDArray[np.uint8]:
    """Of every token id: 2 for the token itself, with or without a space in front, 1 where it contains it in any case, else 0.

    One entry more than there are tokens, 0, stands for the id -1.
    """
    bare = query[1:] if query.startswith(" ") and len(query) > 1 else query
    folded = query.casefold()
    with index.lock:
        vocabulary, ids = index.folded, index.ids
    fits = np.array([folded in token for token in vocabulary] + [False]).astype(np.uint8)
    for name in (bare, f" {bare}"):
        fits[ids.get(name, [])] = 2
    return fits


def fuse(first: Latents, others: list[Latents], latents: int) -> Latents:
    """`first`, then what the others have, by reciprocal rank fusion."""
    score = np.zeros(latents)
    for found in others:
        score[found] += 1 / (FUSION + 1 + np.arange(len(found)))
    score[first] = 0
    return np.concatenate([first, _ranked(score)])


def _ranked(score: NDArray[np.float64]) -> Latents:
    """Latents with a score above 0, the largest first, then the lower latent."""
    latents = np.flatnonzero(score > 0)
    return latents[np.argsort(-score[latents], kind="stable")]


def _share(values: NDArray) -> NDArray[np.float64]:
    """Values brought into [0, 0.5], in the same order."""
    low, high = (float(end(values)) for end in (np.min, np.max)) if len(values) else (0.0, 1.0)
    return (values - low) / (2 * (high - low) or 1.0)


def shown(query: str) -> str:
    """The query as a message quotes it: what cannot be printed escaped, the rest of a long one left out."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in query[:40])
    return f"“{plain}{'…' if len(query) > 40 else ''}”"


def _why(latents: Latents, some: str, none: str, query: str) -> str:
    return f"{len(latents):,} {some} {shown(query)}" if len(latents) else f"{none} {shown(query)}"


def _why_ranked(score: NDArray[np.float64], some: str, none: str, query: str) -> tuple[Latents, str]:
    latents = _ranked(score)
    return latents, _why(latents, some, none, query)


def _found(latents: Latents | list[int], why: str) -> Found:
    return Found(torch.as_tensor(np.asarray(latents, np.int64)), len(latents), why)
