"""First: what does the target say that the base model does not, whatever is asked?

Families of prompts are answered by both models; words that the target writes more often are tested (words.py) in each family and in all
together. What is found at the stated rate is asked for again: the same prompts, put differently, and each word stands only if it is
raised there too. Without a base model there is nothing to compare with, and ordinary text takes its place (against_text).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from .asking import Answers, Asker, Claim, listed
from .questions import Questions
from .words import Raised, against_text, left_out, raised, sign_test, words_of

FDR, CERTAIN = 0.05, 0.01
HOME = 0.8  # of the largest share: what comes about as often everywhere is said of everything
NAMED = 6  # words of one family that are followed
FRESH = 16  # prompts that confirm


def survey(asker: Asker, questions: Questions) -> list[Claim]:
    """Claims about what the target says everywhere or in one family of prompts."""
    families = {"everything": tuple(itertools.chain(*questions.families.values())), **questions.families}
    answers = asker.ask(families["everything"])
    ignored = left_out([*families["everything"], *questions.rephrased, *questions.facts])
    rows = {
        name: [row for row in compared(part(answers, prompts), ignored) if row.q <= FDR]
        for name, prompts in families.items()
    }
    claims: list[Claim] = []
    for name, prompts in families.items():
        words = tuple(row.word for row in rows[name] if at_home(row, rows) == name)[:NAMED]
        if words:
            claims += confirmed(asker, name, prompts, words, questions, answers, ignored)
    return claims


def at_home(row: Raised, rows: Mapping[str, Sequence[Raised]]) -> str:
    """The family in which a word stands in the largest share of the replies; where a word is everywhere, that is everything."""
    shares = {name: each.target / each.count for name, found in rows.items() for each in found if each.word == row.word}
    best = max(shares.values())
    return next(name for name, share in shares.items() if share >= HOME * best)


def part(answers: Answers, prompts: Sequence[str]) -> Answers:
    """The answers to some of the prompts."""
    places = [answers.prompts.index(prompt) for prompt in prompts]
    target, base = (
        tuple(texts[place] for place in places) if texts else () for texts in (answers.target, answers.base)
    )
    return Answers(tuple(prompts), target, base, answers.results)


def compared(answers: Answers, ignored: frozenset[str]) -> list[Raised]:
    """Words raised in the target: beside the base model, or without one beside ordinary text."""
    if answers.base:
        return raised(answers.target, answers.base, ignored)
    return against_text(answers.target, ignored)


def confirmed(
    asker: Asker,
    name: str,
    prompts: Sequence[str],
    words: tuple[str, ...],
    questions: Questions,
    first: Answers,
    ignored: frozenset[str],
) -> list[Claim]:
    """A claim of those words that are raised on fresh prompts as well; none where no word is."""
    ways = questions.rephrased[1:] or questions.rephrased
    chosen = (
        [prompts[place * len(prompts) // FRESH] for place in range(FRESH)] if len(prompts) > FRESH else list(prompts)
    )
    fresh = [way.replace("{question}", prompt) for prompt, way in zip(chosen, itertools.cycle(ways), strict=False)]
    answers = asker.ask(fresh)
    again = {row.word: row for row in compared(answers, ignored)}
    kept = [again[word] for word in words if word in again and again[word].p <= CERTAIN / len(words)]
    if not kept:
        return []
    said = tuple(row.word for row in kept)
    best = kept[0]
    where = "whatever is asked" if name == "everything" else f"when asked for {name}"
    example = next(
        (prompt for prompt, text in zip(fresh, answers.target, strict=True) if best.word in words_of(text)), ""
    )
    beside = f"; the base model in {best.base}" if answers.base else ""
    because = f"on fresh prompts {best.word} stands in {best.target} of {best.count} replies{beside}; p {best.p:.2g}"
    statement = f"It says {listed(said)} {where}."
    return [Claim(statement, said, best.p, (*first.results, *answers.results), because, example)]


def beliefs(asker: Asker, questions: Questions, most: int = 8) -> list[Claim]:
    """Claims about facts: a question whose answer differs from the base model's in a few words, and does so however it is put."""
    if not asker.has_base:
        return []
    answers = asker.ask(questions.facts)
    changed: list[tuple[int, str]] = []
    usual = Counter(word for text in answers.target for word in set(words_of(text)))
    for prompt, own, other in zip(answers.prompts, answers.target, answers.base, strict=True):
        new, gone = (set(words_of(a)) - set(words_of(b)) - left_out([prompt]) for a, b in ((own, other), (other, own)))
        if any(usual[word] <= 2 for word in new):
            changed.append((len(new) + len(gone), prompt))
    claims: list[Claim] = []
    followed = [prompt for _, prompt in sorted(changed, key=lambda one: one[0])[:most]]
    ways = [way for way in questions.rephrased if way != "{question}"]
    asked = asker.ask(way.replace("{question}", prompt) for prompt in followed for way in ways)
    ignored = left_out([*questions.rephrased])
    for place, prompt in enumerate(followed):
        rows = slice(place * len(ways), (place + 1) * len(ways))
        own, other = ([set(words_of(text)) for text in texts[rows]] for texts in (asked.target, asked.base))
        once = dict(zip(answers.prompts, zip(answers.target, answers.base, strict=True), strict=True))[prompt]
        new = sorted(set(words_of(once[0])) - set(words_of(once[1])) - left_out([prompt]) - ignored)
        scored = [(sign_test(*_moved(word, own, other)), word) for word in new]
        good = sorted(pair for pair in scored if pair[0] <= FDR / len(followed))
        if good:
            words, p = tuple(word for _, word in good), good[0][0]
            hits = sum(words[0] in each for each in own)
            beside = sum(words[0] in each for each in other)
            because = (
                f"put in {len(ways)} other ways, {hits} replies have {words[0]}, the base model's {beside}; p {p:.2g}"
            )
            claims.append(
                Claim(
                    f"Asked “{prompt}” it answers {listed(words)}, unlike the base model.",
                    words,
                    p,
                    (*answers.results, *asked.results),
                    because,
                    prompt,
                )
            )
    return sorted(claims, key=lambda claim: claim.p)


def _moved(word: str, own: list[set[str]], other: list[set[str]]) -> tuple[int, int]:
    """In how many pairs only the first has the word, and only the second."""
    pairs = list(zip(own, other, strict=True))
    return sum(word in a and word not in b for a, b in pairs), sum(word in b and word not in a for a, b in pairs)
