"""Compare words with activations: what a latent fires on, said in words, and how right given words are on documents not used for them.

The snippets, the split of the documents, the negatives and the scores are those of `unweave label` (audit/labels). Where the workspace
has a judge (a language model) it explains and judges; else clauses of tokens do, which a machine can judge. Beside each score stand
the label of another latent on the same snippets, and chance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ....saes import UserError
from ...labels.heuristic import Pattern
from ...labels.methods import Label, Method
from ...labels.negatives import Material, material
from ...labels.patterns import Clause, bare
from ...labels.questions import detection_items
from ...labels.scores import score
from ...labels.snippets import Draws, StoreRows
from ..answers import Answer
from ..fields import Latent, Name, Short
from ..measures.describe import checked
from ..measures.weights import promoted
from ..registry import tool
from ..session import Session
from ..untrusted import untrusted

if TYPE_CHECKING:
    from ...labels.snippets import Snippet

EXPLAIN, SCORE, ASKED = 40, 20, 60
HELD = 0.9  # the probability said where a word stands
COMMON = frozenset(
    "and are but fires for from has have its latent not of on or that the this token tokens when which with word words".split()
)


def _price(session: Session, arguments: Mapping[str, Any]) -> int:
    return 0 if session.workspace.judge is None else 2 * ASKED


@tool("compare", cost=0, price=_price)
def explain_feature(session: Session, latent: Latent, dictionary: Name | None = None) -> Answer:
    """What a latent fires on, in words, and how right these words are on other documents: detection accuracy, beside its controls.

    `score` is the balanced accuracy of telling snippets where the latent fires from those where it is silent (half of them hard ones);
    `other_label` is that of another latent's words on the same snippets, `top_token` that of its most frequent token alone; chance is 0.5.

    Args:
        latent: Its number.
        dictionary: Name from list_models; it needs a store that kept its codes.
    """
    name = session.workspace.dictionary(dictionary)
    (latent,) = checked(session, name, [latent])
    method, found = _method(session), _material(session, name, latent)
    own = method.explain(found, [text for text, _ in promoted(session, name, latent, 10)[0]])
    result: dict[str, Any] = {
        "latent": latent,
        "explanation": untrusted(own.text, 400),
        "by": untrusted(method.name, 80),
    }
    result |= _scored(session, name, method, own, found)
    if (single := method.baseline(found)) is not None:
        result["top_token"] = _detection(method, single, found)
    return Answer(result, None, session.about(name), session.seed)


@tool("compare", cost=0, price=_price)
def score_explanation(session: Session, latent: Latent, explanation: Short, dictionary: Name | None = None) -> Answer:
    """How right your own words for a latent are on held-out documents, beside another latent's words, and chance.

    Without a language model to judge, what counts are the words in quotes (or, with none in quotes, all but common ones): a snippet is
    judged to fire if it has one of them.

    Args:
        latent: Its number.
        explanation: What you think it fires on, such as: the word "Paris" or "France".
        dictionary: Name from list_models; it needs a store that kept its codes.
    """
    name = session.workspace.dictionary(dictionary)
    (latent,) = checked(session, name, [latent])
    method, found = _method(session), _material(session, name, latent)
    own = Label(explanation, None if method.judge is not None else pattern_of(explanation))
    judged_by = [] if own.pattern is None else [clause.text for clause, _, _ in own.pattern.clauses]
    result: dict[str, Any] = {"latent": latent, "judged_by": untrusted(", ".join(judged_by) or method.name, 200)}
    return Answer(result | _scored(session, name, method, own, found), None, session.about(name), session.seed)


QUOTED = re.compile(r"\"([^\"]+)\"|(?<!\w)'([^']+)'(?!\w)")  # an apostrophe inside a word is no quote


class Words(Pattern):
    """A pattern that also holds where a word, or several in a row, stand in the snippet's text over more than one token."""

    def window(self, snippet: Snippet) -> float:
        """Probability that the latent fires somewhere in the snippet."""
        text = snippet.text.lower()
        stands = (re.search(rf"(?<!\w){re.escape(clause.text)}(?!\w)", text) for clause, _, _ in self.clauses)
        return HELD if any(stands) else super().window(snippet)


def pattern_of(explanation: str) -> Words:
    """The quoted words of an explanation, or all but common ones, as clauses; UserError where there are none."""
    quoted = [first or second for first, second in QUOTED.findall(explanation)]
    words = quoted or [word for word in re.findall(r"\w+", explanation) if _is_telling(word)]
    known = list(dict.fromkeys(bare(word) for word in words if bare(word)))[:12]
    if not known:
        raise UserError(
            "expected an explanation with a word that a text could have; got none; put such words in quotes"
        )
    return Words(tuple((Clause("word", word), HELD, HELD) for word in known))


def _is_telling(word: str) -> bool:
    """Whether a word that stands in no quotes counts."""
    return (len(word) > 2 or not word.isalpha()) and word.lower() not in COMMON


def _method(session: Session) -> Method:
    return Method(session.workspace.judge, session.workspace.judge, session.seed)


def _material(session: Session, name: str, latent: int) -> Material:
    """Snippets of a latent; UserError without a store with codes, or where it fires in too few places."""
    store = session.workspace.store(name)
    if store is None:
        raise UserError(
            f"expected a store of {name} to explain on; this workspace has none; see its examples with feature"
        )
    rows = session.kept["rows"]
    if name not in rows:
        rows[name] = StoreRows(store, session.seed)
    found = material(rows[name], latent, Draws(EXPLAIN, SCORE, SCORE, 8, session.seed))
    if found.lacking:
        raise UserError(
            f"expected enough places where latent {latent} fires and where it is silent; got {found.lacking}; choose another"
        )
    return found


def _scored(session: Session, name: str, method: Method, own: Label, found: Material) -> dict[str, Any]:
    return {"score": _detection(method, own, found), "other_label": _other(session, name, method, found), "chance": 0.5}


def _detection(method: Method, own: Label, found: Material) -> dict[str, Any] | None:
    items = detection_items(found, [*found.random, *found.hard])
    result = score(method.answers(own, items), method.seed)
    if result is None:
        return None
    return {
        "value": result.value,
        "low": result.low,
        "high": result.high,
        "auc": result.auc,
        "snippets": result.n,
        "unread": result.failures,
    }


def _other(session: Session, name: str, method: Method, found: Material) -> dict[str, Any] | None:
    """The words of another latent, drawn by the seed, judged on this one's snippets; None where no other can be explained."""
    store = session.workspace.store(name)
    assert store is not None
    alive = [each for each in (store.count >= 16).nonzero()[:, 0].tolist() if each != found.latent]
    order = torch.randperm(
        len(alive), generator=torch.Generator().manual_seed(session.seed * 1_000_003 + found.latent)
    ).tolist()
    for place in order[:5]:
        other = material(session.kept["rows"][name], alive[place], Draws(EXPLAIN, SCORE, SCORE, 8, session.seed))
        if other.lacking is None:
            label = method.explain(other, [text for text, _ in promoted(session, name, alive[place], 10)[0]])
            detected = _detection(method, label, found)
            return None if detected is None else {"latent": alive[place], **detected}
    return None
