"""Look at data: which documents of the corpus hold a text, mean the same, or make a latent fire most."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ....saes import Document, UserError
from ..answers import Answer
from ..fields import Latent, Name, Rows, Sentence
from ..measures.baseline import evenly
from ..measures.describe import checked, described
from ..measures.meaning import CONTROLS, FIRST, asked, beside_others
from ..measures.prompts import Seen, seen_many
from ..measures.readings import AT_ONCE, Reading, by_meaning, usual
from ..registry import Refused, tool
from ..session import Session
from ..untrusted import marked, untrusted

# Documents that a model reads, characters around a match, characters searched at most.
READ, AROUND, SEARCHED = 64, 90, 20_000_000
QUERY = 1 + CONTROLS * FIRST // AT_ONCE  # runs: the query, and the texts that it is compared with
LEVEL = 0.05


def _price(session: Session, arguments: Mapping[str, Any]) -> int:
    if arguments["latent"] is not None:
        return min(READ, len(session.workspace.corpus)) * (1 + session.workspace.has_base)
    return QUERY if arguments["by"] == "meaning" else 0


def _reads(session: Session, given: Mapping[str, Any]) -> list[Reading]:
    if given["latent"] is not None:
        return usual(session, given)
    return [by_meaning(session.workspace)] if given["by"] == "meaning" else []


@tool("look", cost=0, price=_price, reads=_reads)
def search_data(
    session: Session,
    query: Sentence | None = None,
    by: Literal["words", "meaning"] = "words",
    latent: Latent | None = None,
    dictionary: Name | None = None,
    k: Rows = 8,
) -> Answer:
    """The documents of the corpus that fit best: by a string, by several words, by meaning, or by how strongly a latent fires in them.

    By words, a query that stands somewhere as it is (in any case) finds those places; else its words are looked for, rare ones counting
    more. By meaning, a text is its mean in the target's middle layer (the corpus' mean taken away), over 128 tokens; `score` is the cosine,
    and `p` the share of 32 other texts of the query's length that come as near to the document: below 0.05 it is no chance.
    With a latent, documents (those of the query, if there is one, else 64 spread over the corpus) are read and ranked by its largest
    value in their first 128 tokens, beside the base model's. `documents` of `of` says how usual a match is; of `documents_cut` only the
    beginning was searched, in a corpus of over 20 million characters.

    Args:
        query: A plain string or a few words, no patterns; by meaning a sentence or more.
        by: words, or meaning (which reads the corpus once; say more than a word).
        latent: A latent's number, to rank documents by it.
        dictionary: Name from list_models, for a latent; left out, the first.
        k: How many documents.
    """
    corpus = session.workspace.corpus
    if not corpus:
        raise UserError("expected a corpus in this workspace; it has none; ask about given texts with activations")
    if query is None and latent is None:
        raise Refused("expected a query or a latent; got neither; give one", field="query")
    if by == "meaning":
        if query is None or latent is not None:
            raise Refused("expected a query alone by meaning; got a latent, or no query; give a text", field="query")
        return _by_meaning(session, query, k)
    found = {} if query is None else _found(corpus, query)
    if latent is not None:
        return _by_latent(session, latent, dictionary, found if query is not None else None, k)
    assert query is not None
    order = sorted(found, key=lambda number: (-found[number][0], number))
    kinds = Counter(corpus[number].kind for number in order)
    rows = [
        {"document": untrusted(corpus[number].id, 60), "kind": untrusted(corpus[number].kind, 30), "score": found[number][0],
         "text": untrusted(_around(corpus[number].text, unfolded(corpus[number].text, found[number][1])), 2 * AROUND + 40)}
        for number in order[:k]
    ]  # fmt: skip
    cut = sum(len(each.text) > SEARCHED // len(corpus) for each in corpus)
    result = {
        "documents": len(order), "of": len(corpus), **({"documents_cut": cut} if cut else {}),
        "kinds": untrusted(", ".join(f"{kind} ×{count}" for kind, count in kinds.most_common(5))), "rows": _unique(rows),
    }  # fmt: skip
    return Answer(result, "rows", session.about())


def _found(corpus: Sequence[Document], query: str) -> dict[int, tuple[float, int]]:
    """Documents by number → score and the place of the first match: places of the whole string, or else of its words."""
    folded = query.casefold()
    texts = _searched(corpus)
    whole = {
        number: (float(text.count(folded)), text.find(folded)) for number, text in enumerate(texts) if folded in text
    }
    if whole:
        return whole
    words = list(dict.fromkeys(re.findall(r"\w+", folded)))[:20]
    counts = {word: [text.count(word) for text in texts] for word in words}
    found: dict[int, tuple[float, int]] = {}
    for word in words:
        documents = sum(count > 0 for count in counts[word])
        rare = math.log((1 + len(texts)) / (1 + documents))
        for number, count in enumerate(counts[word]):
            if count:
                score, place = found.get(number, (0.0, texts[number].find(word)))
                found[number] = (score + rare * (1 + math.log(count)), place)
    return found


def _searched(corpus: Sequence[Document]) -> list[str]:
    """The documents folded, each as far as all together are not too long."""
    most = SEARCHED // len(corpus)
    return [document.text[:most].casefold() for document in corpus]


def unfolded(text: str, place: int) -> int:
    """Where in a text the character stands that place `place` of the folded text comes from: "ß" folds to two characters."""
    done = 0
    for number, char in enumerate(text):
        done += len(char.casefold())
        if done > place:
            return number
    return len(text)


def _around(text: str, place: int) -> str:
    start = max(place - AROUND, 0)
    return f"{'…' if start else ''}{text[start : place + AROUND]}{'…' if len(text) > place + AROUND else ''}"


def _unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the same passage once, with how many documents have it."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        same = found.setdefault(row["text"]["untrusted"], row)
        if same is not row:
            same["copies"] = same.get("copies", 1) + 1
    return list(found.values())


def _by_meaning(session: Session, query: str, k: int) -> Answer:
    """Documents by the cosine with a query, beside what other texts of its length reach."""
    model, corpus, known = session.workspace.model(), session.workspace.corpus, session.workspace.meanings()
    found = asked(model, known, query)
    beside = beside_others(model, known, corpus, found, session.seed, LEVEL)
    best = found.scores.argsort(descending=True, stable=True)
    rows = [
        {"document": untrusted(corpus[number].id, 60), "kind": untrusted(corpus[number].kind, 30), "score": float(found.scores[row]),
         "p": float(beside.p[row]), "text": untrusted(_around(corpus[number].text, 0), 2 * AROUND + 40)}
        for row in best[:k].tolist() for number in [known.numbers[row]]
    ]  # fmt: skip
    result = {
        "by": "meaning", "of": len(corpus), "read": len(known.numbers), "query_tokens": found.tokens, "site": known.site,
        "others_best": {"texts": len(beside.best), "median": float(beside.best.median()), "highest": float(beside.best[-1])},
        "near": int((beside.p <= LEVEL).sum()), "near_by_chance": beside.chance, "rows": _unique(rows),
    }  # fmt: skip
    return Answer(result, "rows", session.about(), session.seed)


def _by_latent(
    session: Session, latent: int, dictionary: str | None, found: Mapping[int, Any] | None, k: int
) -> Answer:
    """Documents by the largest value of a latent in their first tokens."""
    name = session.workspace.dictionary(dictionary)
    (latent,) = checked(session, name, [latent])
    corpus = session.workspace.corpus
    candidates = corpus if found is None else [corpus[number] for number in sorted(found)]
    documents = [each for each in evenly(candidates, READ) if each.text.strip()]
    texts = [each.text[:4_000] for each in documents]
    every = seen_many(session, name, texts)[0]
    others = seen_many(session, name, texts, "base")[0] if session.workspace.has_base else [None] * len(texts)
    rows = [
        {"document": untrusted(document.id, 60), "kind": untrusted(document.kind, 30), **_largest(latent, found, other)}
        for document, found, other in zip(documents, every, others, strict=True)
    ]
    rows.sort(key=lambda row: (-row["value"], row["document"]["untrusted"]))
    fires = sum(row["value"] > 0 for row in rows)
    result = {
        **described(session, name, latent), "usual_max": float(session.workspace.norms(name).largest[latent]),
        "usual_from": session.workspace.norms(name).source, "read": len(documents),
        "of": len(candidates), "fires_in": fires, "rows": _unique([row for row in rows if row["value"] > 0][:k]),
    }  # fmt: skip
    return Answer(result, "rows", session.about(name))


def _largest(latent: int, found: Seen, other: Seen | None) -> dict[str, Any]:
    """Where a latent is largest on a document, in the target and in the base."""
    values = _values(latent, found)
    place = int(values.argmax())
    start = max(place - 12, 0)
    marks = {each - start for each in values.nonzero()[:, 0].tolist() if start <= each < place + 8}
    row: dict[str, Any] = {
        "value": float(values[place]),
        "fires": int((values > 0).sum()),
        "tokens": int(found.kept.sum()),
    }
    if other is not None:
        row["base_value"] = float(_values(latent, other).max())
    return row | {"text": marked(found.strings[start : place + 8], marks, 2 * AROUND + 40)}


def _values(latent: int, found: Seen) -> Float[Tensor, "token"]:
    return found.codes.of(torch.tensor([latent]))[:, 0].double() * found.kept
