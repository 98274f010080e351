"""Two stores compared: which latent of one is which of the other.

| path | answer |
|---|---|
| `compare/A/B` | what can be compared and how, and what is known: shares matched both ways, histograms, what chance gives |
| `compare/A/B/latents/J` | the best partners of latent J of A by each method |
| `compare/A/B/pairs/I-J,I-J,…` | cosine and activity of up to a hundred pairs |
| `compare/A/B/pairs/I-J/texts` | texts on which one of the pair is strong, with the activations of both |
| `stores/A/columns/METHOD_PART_B` | PART of all latents of A: best `match` and its `score`, `mutual`, one-to-one `pair`, `pair_score` |

METHOD is `cosine` or `correlation`. A matching that takes longer than a few seconds is not made here, but by the action
`match`, which keeps it (saes/latents/across/matches.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...saes import FeatureStore
from ...saes.errors import UserError
from ...saes.latents.across.matches import METHODS, pair_activity
from ...saes.latents.shelf.store import Example
from ..text import number, readable
from .maps import float_bytes
from .match_numbers import LEVELS, PARTS, match_values, summary
from .matchings import decoder, known_matching, why_not
from .parts import store_at
from .registry import path

if TYPE_CHECKING:
    from ..things import Things

TEXTS = 4  # examples of either side


@path(r"compare/(\d{1,6})/(\d{1,6})")
def compare(things: Things, place_a: int, place_b: int) -> dict[str, Any]:
    """What is known of two stores together."""
    a, b = two(things, place_a, place_b)
    return {
        "a": _named(things, place_a),
        "b": _named(things, place_b),
        "is_text": why_not(things, a, b, "correlation") is None,
        "is_site": _site(a) == _site(b),
        "is_model": _is_same_model(a, b),
        "methods": {method: _method(things, a, b, method) for method in METHODS},
        "levels": list(LEVELS),
    }


def two(things: Things, place_a: int, place_b: int) -> tuple[FeatureStore, FeatureStore]:
    """Two different stores; KeyError otherwise."""
    if place_a == place_b:
        raise KeyError(place_b)
    return store_at(things, place_a), store_at(things, place_b)


def _site(store: FeatureStore) -> Any:
    about = _part(store, "dictionary")
    return about.get("site_out") or about.get("site")


def _is_same_model(a: FeatureStore, b: FeatureStore) -> bool:
    """By the fingerprints of the weights, by the names where a store has none."""
    models = [_part(store, "model") for store in (a, b)]
    name = "fingerprint" if all(model.get("fingerprint") for model in models) else "name"
    return models[0].get(name) == models[1].get(name)


def _part(store: FeatureStore, name: str) -> dict[str, Any]:
    found = store.manifest.get(name)
    return found if isinstance(found, dict) else {}


def _named(things: Things, place: int) -> dict[str, Any]:
    store = store_at(things, place)
    return {
        "place": place,
        "name": readable(list(things.stores)[place]),
        "latents": len(store),
        "silent": int((store.count == 0).sum()),
        "site": readable(_site(store) or ""),
        "model": readable(_part(store, "model").get("name", "")),
        "tokens": len(store.tokens),
    }


def _method(things: Things, a: FeatureStore, b: FeatureStore, method: str) -> dict[str, Any]:
    """Whether two stores can be matched so (`why` not), and the matching in numbers, null until it is made."""
    try:
        found = known_matching(things, a, b, method)
    except UserError as error:
        return {"why": readable(error, 400), "found": None}
    why = None if found is not None else why_not(things, a, b, method)
    return {
        "why": None if why is None else readable(why, 400),
        "found": None if found is None else summary(found, a, b),
    }


@path(rf"stores/(\d{{1,6}})/columns/({'|'.join(METHODS)})_({'|'.join(PARTS)})_(\d{{1,6}})")
def match_column(things: Things, place_a: int, method: str, part: str, place_b: int) -> bytes:
    """One part of the matching, for all latents of A, as little-endian float32; NaN where there is no partner."""
    a, b = two(things, place_a, place_b)
    found = known_matching(things, a, b, method)
    if found is None:
        raise KeyError(method)
    return float_bytes(match_values(found, part))


@path(r"compare/(\d{1,6})/(\d{1,6})/latents/(\d{1,9})")
def partners(things: Things, place_a: int, place_b: int, latent: int) -> dict[str, Any]:
    """The best partners of one latent of A by each method that is known."""
    a, b = two(things, place_a, place_b)
    store_at(things, place_a, latent)
    out: dict[str, Any] = {}
    for method in METHODS:
        found = known_matching(things, a, b, method)
        if found is None:
            continue
        ends = [
            (j, s) for j, s in zip(found.a.best[latent].tolist(), found.a.score[latent].tolist(), strict=True) if j >= 0
        ]
        out[method] = [
            {
                "latent": j,
                "score": number(score, 3),
                "is_mutual": int(found.b.best[j, 0]) == latent,
                "is_pair": int(found.pair_a[latent]) == j,
                "label": _label(b, j),
            }
            for j, score in ends
        ]
    return out


def _label(store: FeatureStore, latent: int) -> str | None:
    label = store.label(latent)
    return None if label is None else readable(label)


@path(r"compare/(\d{1,6})/(\d{1,6})/pairs/(\d{1,9}-\d{1,9}(?:,\d{1,9}-\d{1,9}){0,99})")
def pairs(things: Things, place_a: int, place_b: int, wanted: str) -> dict[str, Any]:
    """What is known of pairs of latents, by "I-J": cosine of the decoder rows, activity on the shared text; null where neither is."""
    return _pairs(things, (place_a, place_b), wanted.split(","))


def _pairs(things: Things, ends: tuple[int, int], names: list[str]) -> dict[str, Any]:
    a, b = two(things, *ends)
    rows = None
    if why_not(things, a, b, "cosine") is None:
        rows = decoder(things, a), decoder(things, b)
    is_text = why_not(things, a, b, "correlation") is None
    out = {}
    for name in names:
        i, j = map(int, name.split("-"))
        if i >= len(a) or j >= len(b):
            raise KeyError(name)
        out[name] = pair_payload(a, b, (i, j), rows, is_text)
    return out


def pair_payload(
    a: FeatureStore, b: FeatureStore, ends: tuple[int, int], rows: tuple[Tensor, Tensor] | None, is_text: bool
) -> dict[str, Any]:
    """One pair: `cosine`; rows on which `both`, `only_a`, `only_b` fire; their `correlation`."""
    cosine = None
    if rows is not None:
        cosine = float(
            torch.nn.functional.cosine_similarity(rows[0][ends[0]].double(), rows[1][ends[1]].double(), dim=0)
        )
    activity = pair_activity(a, b, *ends) if is_text else None
    known = {} if activity is None else activity._asdict()
    return {
        "cosine": number(cosine, 3),
        **{name: known.get(name) for name in ("both", "only_a", "only_b")},
        "correlation": number(known.get("correlation"), 3),
    }


@path(r"compare/(\d{1,6})/(\d{1,6})/pairs/(\d{1,9})-(\d{1,9})/texts")
def texts(things: Things, place_a: int, place_b: int, i: int, j: int) -> dict[str, Any]:
    """The strongest examples of either latent, the activations of both on them; null where the stores have no text in common."""
    a, b = two(things, place_a, place_b)
    store_at(things, place_a, i)
    store_at(things, place_b, j)
    if why_not(things, a, b, "correlation") is not None:
        return {"texts": None}
    return {"texts": pair_texts(a, b, i, j), "most": [number(float(s.max_value[n])) for s, n in ((a, i), (b, j))]}


def pair_texts(a: FeatureStore, b: FeatureStore, i: int, j: int) -> list[dict[str, Any]]:
    """Texts around the strongest examples of both, those of A first, each row once."""
    rows = {
        example.row: side
        for side, store, latent in (("b", b, j), ("a", a, i))
        for example in store[latent].examples[:TEXTS]
    }
    found = []
    for row, side in sorted(rows.items(), key=lambda item: item[1]):
        example = a.example_at(i, row)
        first = row - example.focus
        others = b.codebook.values(j, first, first + len(example.tokens)).tolist() if b.codebook else []
        found.append(_text(example, side, others))
    return found


def _text(example: Example, side: str, others: list[float]) -> dict[str, Any]:
    return {
        "from": side,
        "row": example.row,
        "document": example.document,
        "position": example.position,
        "focus": example.focus,
        "tokens": [readable(token) for token in example.tokens],
        "a": [number(value, 3) for value in example.values],
        "b": [number(value, 3) for value in others],
    }


def frozen_compare(things: Things, carried: dict[int, list[int]], most: int = 16) -> Iterator[tuple[str, Any]]:
    """What a page carries of the first two stores compared, both ways; nothing unless they were matched or that is quick.

    `carried` are the latents of each store that the page has cards of. At most `most` pairs a way come with texts, those of which
    both have cards first.
    """
    if len(things.stores) < 2:
        return
    for place_a, place_b in ((0, 1), (1, 0)):
        answer = compare(things, place_a, place_b)
        methods = [method for method in METHODS if answer["methods"][method]["found"]]
        if methods:
            yield f"compare/{place_a}/{place_b}", answer
            yield from _frozen_way(things, (place_a, place_b), carried, methods, most)


def _frozen_way(
    things: Things, ends: tuple[int, int], carried: dict[int, list[int]], methods: list[str], most: int
) -> Iterator[tuple[str, Any]]:
    base, stores = f"compare/{ends[0]}/{ends[1]}", two(things, *ends)
    chosen = torch.tensor(carried[ends[0]], dtype=torch.int64)
    best: dict[str, None] = {}
    for method in methods:
        found = known_matching(things, *stores, method)
        assert found is not None
        for part in PARTS:
            values = match_values(found, part)[chosen].tolist()
            yield f"stores/{ends[0]}/columns/{method}_{part}_{ends[1]}", [number(value, 8) for value in values]
        partner = found.a.best[chosen, 0].tolist()
        best |= {f"{i}-{j}": None for i, j in zip(carried[ends[0]], partner, strict=True) if j >= 0}
    if best:
        yield f"{base}/pairs", _pairs(things, ends, list(best))
    for latent in carried[ends[0]]:
        yield f"{base}/latents/{latent}", partners(things, *ends, latent)
    known = set(carried[ends[1]])
    for name in sorted(best, key=lambda name: int(name.split("-")[1]) not in known)[:most]:
        yield f"{base}/pairs/{name}/texts", texts(things, *ends, *map(int, name.split("-")))
