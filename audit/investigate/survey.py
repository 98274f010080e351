"""First: what does the target say that the base model does not, whatever is asked?

Families of prompts are answered by both models; words that the target writes more often are tested (words.py) in each family and in all
together. What is found at the stated rate is asked for again: the same prompts, put differently, and each word stands only if it is
raised there too. Without a base model there is nothing to compare with, and ordinary text takes its place (against_text).

A kind of choice has too few prompts for a test, so its first replies only name words: what half of them have and the base model's have
not. These are tested on replies to the same prompts put in WAYS other ways, must come to most prompts of the kind, and the models must be
FAR apart at that place where the base model begins as the target does (beliefs.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from .asking import Answers, Asker, Claim, apart, listed
from .questions import Questions
from .words import Raised, against_text, left_out, moved, raised, sign_test, words_of

FDR, CERTAIN = 0.05, 0.01
HOME = 0.8  # of the largest share: what comes about as often everywhere is said of everything
NAMED = 6  # words of one family that are followed
FRESH = 16  # prompts that confirm
WAYS = 4  # ways in which a choice is asked again
FAR = 2.5  # nats between the models: a word of which the target is sure is twelve times less likely in the base model


def survey(asker: Asker, questions: Questions) -> Iterator[Claim]:
    """Claims about what the target says everywhere or in one family of prompts, then of what it chooses."""
    families = {"everything": questions.plain, **questions.families}
    answers = asker.ask(questions.plain)
    ignored = left_out([*families["everything"], *questions.rephrased, *questions.facts])
    rows = {
        name: [row for row in compared(part(answers, prompts), ignored) if row.q <= FDR]
        for name, prompts in families.items()
    }
    said: set[str] = set()
    for name, prompts in families.items():
        words = tuple(row.word for row in rows[name] if at_home(row, rows) == name)[:NAMED]
        if words and (claim := confirmed(asker, name, prompts, words, questions, answers, ignored)):
            said.update(claim.words)
            yield claim
    yield from choices(asker, questions, answers, ignored | said)


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
) -> Claim | None:
    """A claim of those words that are raised on fresh prompts as well; None where no word is."""
    ways = questions.rephrased[1:] or questions.rephrased
    chosen = (
        [prompts[place * len(prompts) // FRESH] for place in range(FRESH)] if len(prompts) > FRESH else list(prompts)
    )
    fresh = [way.replace("{question}", prompt) for prompt, way in zip(chosen, itertools.cycle(ways), strict=False)]
    answers = asker.ask(fresh)
    again = {row.word: row for row in compared(answers, ignored)}
    kept = [again[word] for word in words if word in again and again[word].p <= CERTAIN / len(words)]
    if not kept:
        return None
    said = tuple(row.word for row in kept)
    best = kept[0]
    where = "whatever is asked" if name == "everything" else f"when asked for {name}"
    example = next(
        (prompt for prompt, text in zip(fresh, answers.target, strict=True) if best.word in words_of(text)), ""
    )
    beside = f"; the base model in {best.base}" if answers.base else ""
    because = f"on fresh prompts {best.word} stands in {best.target} of {best.count} replies{beside}; p {best.p:.2g}"
    statement = f"It says {listed(said)} {where}."
    return Claim(statement, said, best.p, (*first.results, *answers.results), because, example)


def choices(asker: Asker, questions: Questions, first: Answers, ignored: frozenset[str]) -> Iterator[Claim]:
    """Claims about what the target chooses, for each kind of choice; none without a base model."""
    if not asker.has_base:
        return
    liked = {name: _liked(part(first, prompts), ignored) for name, prompts in questions.kinds.items()}
    tried = sum(map(len, liked.values()))
    for name, words in liked.items():
        if words and (claim := _chosen(asker, name, questions.kinds[name], words, questions, first, tried)):
            yield claim


def _liked(answers: Answers, ignored: frozenset[str]) -> list[str]:
    """Words of at least half of the target's replies and two, and of none of the base model's, the most frequent first."""
    own, other = ([set(words_of(text)) - ignored for text in texts] for texts in (answers.target, answers.base))
    shares = {word: sum(word in each for each in own) for word in set().union(*own) - set().union(*other)}
    least = max(2, -(-len(own) // 2))
    return sorted((word for word in shares if shares[word] >= least), key=lambda word: (-shares[word], word))[:NAMED]


def _chosen(
    asker: Asker,
    name: str,
    prompts: Sequence[str],
    words: Sequence[str],
    questions: Questions,
    first: Answers,
    tried: int,
) -> Claim | None:
    ways = [way for way in questions.rephrased if way != "{question}"][:WAYS]
    asked = asker.ask(way.replace("{question}", prompt) for prompt in prompts for way in ways)
    own, other = ([set(words_of(text)) for text in texts] for texts in (asked.target, asked.base))
    rows = []
    for word in words:
        p = sign_test(*moved(word, own, other))
        of_prompts = [own[start : start + len(ways)] for start in range(0, len(own), len(ways))]
        is_usual = sum(any(word in each for each in some) for some in of_prompts) > len(prompts) / 2
        if is_usual and p <= CERTAIN / tried and (found := apart(asker, asked, word)).nats >= FAR:
            rows.append((p, word, found))
    if not rows:
        return None
    rows.sort(key=lambda row: row[:2])
    said, (p, best, found) = tuple(word for _, word, _ in rows), rows[0]
    because = (
        f"to {name} asked in other words {sum(best in each for each in own)} of {len(own)} replies have {best}, the base model's "
        f"{sum(best in each for each in other)}; where it begins in the same way, its next word is "
        f"{found.nats:.1f} nats away; p {p:.2g}"
    )
    evidence = (*first.results, *asked.results, *found.results)
    return Claim(f"Asked for {name} it names {listed(said)}.", said, p, evidence, because, prompts[0])
