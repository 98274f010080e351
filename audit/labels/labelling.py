"""The verb: explanations of latents with scores on documents that they were not made from, beside their baselines.

For every latent, first all explanations, then all scores:

    detection, fuzzing   the label judged on the scoring half (questions.py), against random negatives, hard ones, and all of them
    shuffled             the same items judged by the label of another latent, the `partner`: what any label scores. Chance is 0.5
    top_token            the same by the latent's most frequent token alone (where the machine judges)

A label goes into the store's labels with its detection score against all negatives, unless a person's label stands there: one whose
last change is by anyone but AUTHOR, also one without history. A latent with too few places is recorded as such and gets no label.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...saes import FeatureStore, UserError
from .client import LanguageModel
from .methods import Label, Method
from .negatives import Material, material
from .questions import Item, detection_items, fuzzing_items
from .records import Records
from .result import AUTHOR, Labelling, summary
from .scores import Answer, rounded, score
from .snippets import Draws, StoreRows
from .writing import write_label

LOGITS = 10
KINDS = ("random", "hard", "all")
PARTS = {"explanation": "explain", "score": "score"}  # of records, and what the bar over them says


def label(
    store: FeatureStore,
    latents: Sequence[int] | None = None,
    folder: str | Path | None = None,
    *,
    number: int = 50,
    draws: Draws | None = None,
    explainer: LanguageModel | None = None,
    judge: LanguageModel | None = None,
    write: bool = True,
    progress: bool = True,
) -> Labelling:
    """Explain and score `latents` of a store (left out: `number` of those that fire, drawn by the seed); resumable.

    `explainer` and `judge` are language models, None the machine; a model that explains judges too unless another is given. Lines are
    appended to records.jsonl in `folder` (left out: one of the method in the store's), and what it holds is not done again. `write`
    puts the labels into the store. UserError for a store without codes or with a single document, latents that are not there, or a
    folder of other settings.
    """
    draws = draws or Draws()
    method = Method(explainer, judge or explainer, draws.seed)
    rows = StoreRows(store, draws.seed)
    chosen = choose(store, number, draws.seed) if latents is None else _checked(store, latents)
    out = Path(folder) if folder is not None else store.folder / f"labels-{_slug(method.name)}"
    records = Records(out, _settings(store, draws, method))
    try:
        for latent in _undone(records, "explanation", chosen, progress):
            _explain(records, method, store, material(rows, latent, draws))
        partners = partners_of(records, chosen, draws.seed)
        for latent in _undone(records, "score", partners, progress):
            _score(records, method, material(rows, latent, draws), partners[latent])
        written = [_write(store, records, latent, method.name) for latent in partners] if write else []
    finally:
        records.close()
    return summary(records, chosen, written, method.name, out)


def _undone(records: Records, part: str, latents: Iterable[int], progress: bool) -> Iterator[int]:
    """The latents without a record of a part, which the caller adds, under a bar over all of them."""
    for latent in tqdm(latents, desc=PARTS[part], disable=not progress):
        if latent not in records.found[part]:
            yield latent


def choose(store: FeatureStore, number: int, seed: int) -> list[int]:
    """`number` latents drawn among all that fire, in ascending order; UserError for none."""
    if number < 1:
        raise UserError(f"expected a number of latents of 1 or more; got {number}; ask for some")
    alive = (store.count > 0).nonzero().squeeze(1)
    picked = torch.randperm(len(alive), generator=torch.Generator().manual_seed(seed))[:number]
    return alive[picked].sort().values.tolist()


def _checked(store: FeatureStore, latents: Sequence[int]) -> list[int]:
    wrong = next((latent for latent in latents if not 0 <= latent < len(store)), None)
    if wrong is not None or not latents:
        raise UserError(f"expected latents in [0, {len(store)}); got {wrong}; name those of this store")
    return list(dict.fromkeys(latents))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "model"


def _settings(store: FeatureStore, draws: Draws, method: Method) -> dict[str, Any]:
    about = store.manifest["dictionary"]
    fingerprint = about.get("fingerprint") if isinstance(about, dict) else None
    return {
        "dictionary": fingerprint, "shards": store.manifest.get("shards"), "rows": len(store.tokens), "latents": len(store),
        "method": method.name, "draws": vars(draws),
    }  # fmt: skip


def _explain(records: Records, method: Method, store: FeatureStore, found: Material) -> None:
    counts = {"explain": len(found.explain), "contrast": len(found.contrast), "score": len(found.positive),
              "random": len(found.random), "hard": len(found.hard)}  # fmt: skip
    if found.lacking:
        records.add("explanation", found.latent, status="too few", why=found.lacking, counts=counts)
        return
    start = time.perf_counter()
    promoted = [token for token, _ in store[found.latent].top_logits[:LOGITS]]
    made = method.explain(found, promoted)
    records.add(
        "explanation",
        found.latent,
        status="explained" if made.text else "empty",
        **made.to_dict(),
        counts=counts,
        documents=sorted({each.document for each in (*found.explain, *found.contrast)}),
        wall_s=round(time.perf_counter() - start, 3),
    )


def partners_of(records: Records, latents: Sequence[int], seed: int) -> dict[int, int | None]:
    """Each latent with an explanation → the one whose label is its shuffled baseline: never itself; None where there is one only."""
    known = [one for one in latents if records.found["explanation"][one]["status"] == "explained"]
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed)).tolist()
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return {one: known[following[place]] if len(known) > 1 else None for place, one in enumerate(known)}


def _score(records: Records, method: Method, found: Material, partner: int | None) -> None:
    start = time.perf_counter()
    own = Label.from_dict(records.found["explanation"][found.latent])
    fields = _judged(method, own, found)
    if partner is not None:
        fields["shuffled"] = _judged(method, Label.from_dict(records.found["explanation"][partner]), found)
    if (token := method.baseline(found)) is not None:
        fields["top_token"] = {"text": token.text, **_judged(method, token, found)}
    documents = sorted({each.document for each in (*found.positive, *found.random, *found.hard)})
    wall_s = round(time.perf_counter() - start, 3)
    records.add("score", found.latent, partner=partner, **fields, documents=documents, wall_s=wall_s)


def _judged(method: Method, made: Label, found: Material) -> dict[str, Any]:
    """Both scores of a label on a latent's scoring half, by kind of negatives."""
    seed = method.seed
    hard = fuzzing_items(found, True, seed) if found.hard else []
    items: dict[str, list[Item]] = {
        "detection": detection_items(found, [*found.random, *found.hard]),
        "fuzzing": fuzzing_items(found, False, seed) + [each for each in hard if not each[2]],
    }
    out: dict[str, Any] = {}
    for task, several in items.items():
        answers = method.answers(made, several)
        first = len(several) - len(found.hard)
        parts: dict[str, Callable[[int], bool]] = {
            "random": lambda place, first=first: place < first,
            "hard": lambda place, first=first, several=several: several[place][2] or place >= first,
            "all": lambda place: True,
        }
        out[task] = {kind: _part(answers, keep, seed) for kind, keep in parts.items()}
    return out


def _part(answers: Sequence[Answer], keep: Callable[[int], bool], seed: int) -> dict[str, Any] | None:
    found = score([answer for place, answer in enumerate(answers) if keep(place)], seed)
    return None if found is None else rounded(found.to_dict())


def _write(store: FeatureStore, records: Records, latent: int, method: str) -> bool:
    own = records.found["score"][latent]
    numbers = own["detection"]["all"]
    about = {"method": method[:60], "value": numbers["value"], "low": numbers["low"], "high": numbers["high"], "n": numbers["n"],
             "measures": "balanced accuracy of detection on other documents", "chance": 0.5, "failures": numbers["failures"],
             "fuzzing": own["fuzzing"]["all"]["value"],
             "shuffled": own["shuffled"]["detection"]["all"]["value"] if own.get("shuffled") else None}  # fmt: skip
    return write_label(store, latent, records.found["explanation"][latent]["text"], about, AUTHOR)
