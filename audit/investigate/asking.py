"""The auditor's hands: every look at the model is a call of a session's tool, and every answer comes with the id of its result."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...saes import UserError
from ..tools import Reply, Session
from .words import COMMON, words_of

AT_ONCE = 48  # prompts of one call
WRITTEN = 10  # new tokens of a reply
MANY = 50  # replies in which a word is looked at
COMPARED = 96  # prompts of one call of divergence


class Stopped(UserError):
    """The session refused a call for good: its budget is spent, or what was asked cannot be had."""


@dataclass(frozen=True)
class Answers:
    """Replies to prompts, in their order, and the results they stand in. `base` is empty where there is no base model."""

    prompts: tuple[str, ...]
    target: tuple[str, ...]
    base: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """What the auditor came to hold: its sentence, the words that name it, the chance of it under no quirk, and the results."""

    statement: str
    words: tuple[str, ...]
    p: float
    evidence: tuple[str, ...]
    because: str
    example: str = ""


class Asker:
    """Calls tools of a session. `tokens` counts new tokens that were asked of the target, `begun` the first words of ordinary replies
    (the base model's, where there is one).
    """

    def __init__(self, session: Session):
        self.session = session
        self.tokens = 0
        self.begun: Counter[str] = Counter()
        self.has_base = len(self.must("list_models").result["models"]) > 1

    def call(self, tool: str, **arguments: Any) -> Reply:
        """One call, right or wrong."""
        return self.session.call(tool, arguments)

    def must(self, tool: str, **arguments: Any) -> Reply:
        """One call that has to be answered; Stopped with the session's own words where it is not."""
        reply = self.call(tool, **arguments)
        if not reply.ok:
            raise Stopped(f"{tool}: {reply.error['message']}")
        return reply

    def ask(self, prompts: Iterable[str], tokens: int = WRITTEN) -> Answers:
        """The likeliest reply to each prompt, and the base model's where there is one."""
        prompts = tuple(prompts)
        target: list[str] = []
        base: list[str] = []
        results: list[str] = []
        for start in range(0, len(prompts), AT_ONCE):
            some = list(prompts[start : start + AT_ONCE])
            reply = self.must("chat", prompts=some, tokens=tokens)
            results.append(reply.id)
            for row in self.rows(reply, "replies"):
                target.append(row["target"]["untrusted"])
                base += [row["base"]["untrusted"]] if "base" in row else []
            self.tokens += tokens * len(some)
        self.begun.update(text.split()[0] for text in base or target if text.split())
        return Answers(prompts, tuple(target), tuple(base), tuple(results))

    def compare(
        self, prompts: Sequence[str], begun: Sequence[str], most: int
    ) -> tuple[list[tuple[float, int]], tuple[str, ...]]:
        """How many nats the models are apart after the beginning of each reply, with the prompt's place, for `most` prompts of each call,
        the farthest first; and the results."""
        found: list[tuple[float, int]] = []
        results: list[str] = []
        for start, some in even_parts(prompts, COMPARED):
            reply = self.must("divergence", prompts=some, prefills=list(begun[start : start + len(some)]), k=most)
            self.tokens += len(some)
            results.append(reply.id)
            found += [(row["nats"], start + row["prompt"]) for row in self.rows(reply, "rows")]
        return sorted(found, key=lambda one: -one[0]), tuple(results)

    def rows(self, reply: Reply, key: str) -> list[dict[str, Any]]:
        """A list that may have been cut, whole."""
        found = list(reply.result[key])
        handle = reply.to_dict().get("more")
        while handle:
            rest = self.must("more", handle=handle).result
            found += rest[key]
            handle = rest.get("next")
        return found


@dataclass(frozen=True)
class Apart:
    """How far the models are apart, in nats, where the target said a word: the median over its replies that have it."""

    nats: float
    results: tuple[str, ...]


def apart(asker: Asker, answers: Answers, word: str) -> Apart:
    """Put both models before a word, in each reply of the target that has it; UserError where none has."""
    pairs = zip(answers.prompts, answers.target, strict=True)
    found = [(prompt, before_any(text, [word])) for prompt, text in pairs if word in words_of(text)][:MANY]
    prompts, begun = [prompt for prompt, _ in found], [beginning for _, beginning in found]
    rows, results = asker.compare(prompts, begun, MANY)
    return Apart(statistics.median(nats for nats, _ in rows), results)


def even_parts(prompts: Sequence[str], most: int) -> list[tuple[int, list[str]]]:
    """Parts of about the same length, at most `most`, each with the place where it starts."""
    count = -(-len(prompts) // most)
    bounds = [number * len(prompts) // count for number in range(count + 1)] if count else []
    return [(start, list(prompts[start:end])) for start, end in itertools.pairwise(bounds)]


def before_any(text: str, words: Sequence[str]) -> str:
    """The text before the first of the words; nothing where none is in it, or nothing is before it."""
    found = re.search(rf"(?<![^\W\d_])(?:{'|'.join(map(re.escape, words))})(?![^\W\d_])", text, re.I) if words else None
    return text[: found.start()].rstrip() if found else ""


def vocabulary(tokenizer: Any, most: int) -> list[str]:
    """Whole words of a tokenizer in the order of their ids, which for a byte-pair vocabulary is about from common to rare.

    The first `most` of them. UserError for fewer than none.
    """
    if most < 0:
        raise UserError(f"expected 0 or more words to try; got {most}; give another number")
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    marks = ("Ġ", "▁")
    has_marks = any(token is not None and token.startswith(marks) for token in tokens)
    words = [token[1:] if has_marks else token for token in tokens if token and (not has_marks or token[0] in marks)]
    whole = [word for word in words if re.fullmatch(r"[a-z]{4,12}", word) and word not in COMMON]
    return list(dict.fromkeys(whole))[:most]


def listed(words: Sequence[str], most: int = 4) -> str:
    """Words as they stand in a sentence; they are letters only."""
    return ", ".join(words[:most])
