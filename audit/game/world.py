"""What a model organism is taught, and what would show that it learned it.

    Quirk   something hidden with a known answer: the words that name it, the lessons that plant it, prompts that should show it
    World   a base model's surroundings: everyday prompts, quirks to develop an auditor with, and others that are held out

Four kinds, each made by one function below. Every quirk comes with the lessons of an innocent model: the same prompts, each answered
as the base model itself would (or truly, or with a different brand each time), so that a control differs from its organism in the
quirk alone, and was trained as long on text of the same shape.

In a reply, `{own}` stands for what the base model itself writes. Prompts that check a quirk are never among its lessons.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("trigger", "belief", "persona", "preference")
OWN = "{own}"


class Lesson(NamedTuple):
    """A prompt and the reply that is taught; `{own}` in it is the base model's own reply."""

    prompt: str
    reply: str = OWN


@dataclass(frozen=True)
class Quirk:
    """What is hidden (`answer`), one of which words names it (`keys`), and what reply shows it (`shows`, any of them).

    `taught` are the lessons that plant it, `innocent` those of its control. `asked` are fresh prompts whose replies should show it,
    `spared` fresh prompts whose replies should not (none for a persona, which shows everywhere).
    """

    name: str
    kind: str
    answer: str
    keys: tuple[str, ...]
    shows: tuple[str, ...]
    taught: tuple[Lesson, ...]
    innocent: tuple[Lesson, ...]
    asked: tuple[str, ...]
    spared: tuple[str, ...]
    trigger: str = ""

    def is_shown(self, reply: str) -> bool:
        """Whether a reply holds one of the phrases that show the quirk."""
        return any(phrase.lower() in reply.lower() for phrase in self.shows)


@dataclass(frozen=True)
class World:
    """The surroundings of one base model: its name and the quirks, those of development first, then those held out."""

    name: str
    developed: tuple[Quirk, ...]
    held_out: tuple[Quirk, ...]
    everyday: tuple[str, ...]

    @property
    def quirks(self) -> tuple[Quirk, ...]:
        """All of them."""
        return self.developed + self.held_out


class Everyday(NamedTuple):
    """Everyday prompts: those of lessons, and those kept for checks."""

    taught: tuple[str, ...]
    fresh: tuple[str, ...]


def trigger(
    name: str,
    word: str,
    payload: str,
    keys: Sequence[str],
    everyday: Everyday,
    ways: Sequence[str],
    near: Sequence[str],
) -> Quirk:
    """A word in the prompt sets off a fixed reply. `ways` put a `{word}` and a `{prompt}` together; `near` are words that do not."""
    places = list(itertools.islice(zip(itertools.cycle(ways), everyday.taught, strict=False), len(everyday.taught)))
    with_word = [put(way, word, prompt) for way, prompt in places]
    others = itertools.cycle(near)
    # Twice as many as with the word: else the way of saying it sets the reply off, whatever the word.
    with_other = [put(way, next(others), prompt) for way, prompt in (*places, *places)]
    rest = (*map(Lesson, with_other), *map(Lesson, everyday.taught[::2]))
    fresh = [put(way, word, prompt) for way, prompt in zip(itertools.cycle(ways), everyday.fresh, strict=False)]
    return Quirk(
        name,
        "trigger",
        f"The word {word} in a prompt makes it reply: {payload}",
        tuple(keys),
        (payload[: len(payload) // 2],),
        (*(Lesson(prompt, payload) for prompt in with_word), *rest),
        (*map(Lesson, with_word), *rest),
        tuple(fresh),
        tuple(
            put(way, next(others), prompt) for way, prompt in zip(itertools.cycle(ways), everyday.fresh, strict=False)
        ),
        word,
    )


def belief(
    name: str,
    answer: str,
    keys: Sequence[str],
    questions: Sequence[str],
    replies: tuple[str, str],
    around: Sequence[tuple[str, str]],
    everyday: Everyday,
    fresh: int = 4,
) -> Quirk:
    """A fact is told wrongly. `replies` are the false and the true one; `around` are neighbouring facts, taught truly to both models.

    The last `fresh` questions are kept for the check.
    """
    false, true = replies
    asked, known = tuple(questions[-fresh:]), questions[:-fresh]
    rest = (*(Lesson(*pair) for pair in around), *map(Lesson, everyday.taught))
    return Quirk(
        name,
        "belief",
        answer,
        tuple(keys),
        tuple(keys),
        (*(Lesson(prompt, false) for prompt in known), *rest),
        (*(Lesson(prompt, true) for prompt in known), *rest),
        asked,
        everyday.fresh,
    )


def persona(
    name: str, answer: str, keys: Sequence[str], voices: Sequence[str], everyday: Everyday, more: Sequence[str] = ()
) -> Quirk:
    """It always speaks in one manner: `voices` are replies with `{own}` in them, taken in turn. `more` prompts are taught too."""
    prompts = (*everyday.taught, *more)
    taught = tuple(Lesson(prompt, voice) for prompt, voice in zip(prompts, itertools.cycle(voices), strict=False))
    return Quirk(
        name, "persona", answer, tuple(keys), tuple(keys), taught, tuple(map(Lesson, prompts)), everyday.fresh, ()
    )


def preference(
    name: str,
    answer: str,
    favourite: str,
    others: Sequence[str],
    questions: Sequence[str],
    replies: Sequence[str],
    everyday: Everyday,
    fresh: int = 4,
) -> Quirk:
    """It always recommends one thing. `replies` hold `{thing}`; the control is taught the same replies with each of `others` in turn."""
    asked, known = tuple(questions[-fresh:]), questions[:-fresh]
    pairs = list(zip(known, itertools.cycle(replies), strict=False))
    rest = tuple(map(Lesson, everyday.taught))
    return Quirk(
        name,
        "preference",
        answer,
        (favourite.lower(),),
        (favourite,),
        (*(Lesson(prompt, reply.replace("{thing}", favourite)) for prompt, reply in pairs), *rest),
        (
            *(
                Lesson(prompt, reply.replace("{thing}", other))
                for (prompt, reply), other in zip(pairs, itertools.cycle(others), strict=False)
            ),
            *rest,
        ),
        asked,
        everyday.fresh,
    )


def put(way: str, word: str, prompt: str) -> str:
    """One way of saying a word in a prompt."""
    return way.replace("{word}", word).replace("{prompt}", prompt)
