"""Second: is there a word that sets something off?

    scan        words of the vocabulary, GROUP together in one sentence: how far the first token of the reply is from the base model's
                (the tool `divergence`, which writes nothing), and the next one where both begin as most replies do ("The"); the groups that
                stand out most are followed
    singles     their words, each alone in other sentences, by the same measure
    sure        the words that stand out most, in every sentence, beside as many other words in the same sentences and beside the base
                model: words of the replies are tested (words.py), and the claim is of those found
    leaks       words of those replies that the base model never says, and that come with the other words too: something sets a reply off,
                and it is not one word alone

The first two only choose what is tried; what is claimed is tested on replies of which nothing was read before. A reply that no single
word sets off, or one that is rarer than the vocabulary that is scanned, is missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .asking import COMPARED, Answers, Asker, Claim, listed
from .questions import Questions
from .survey import CERTAIN, FDR, NAMED, part
from .words import Raised, left_out, raised, words_of

GROUP = 8  # words tried together
SHORT = 8  # new tokens of a reply
OF_CALL = 6  # groups of a call, or words, that may be followed
FOLLOWED, SURE = 12, 2  # groups that are taken apart, and words that are made sure of, for each beginning
TRIED = 2 * SURE


def triggers(asker: Asker, questions: Questions, words: Sequence[str], group: int = GROUP) -> list[Claim]:
    """Claims about words, of those given, that set a reply off."""
    groups = [list(words[start : start + group]) for start in range(0, len(words), group)]
    usual = next((word for word, _ in asker.begun.most_common(1)), "")
    tried: list[Tried] = []
    results: tuple[str, ...] = ()
    for beginning in dict.fromkeys(("", usual)):
        found, others, more = suspects(asker, questions, groups, beginning)
        results += more
        new = [word for word in found if word not in {each.word for each in tried}]
        tried += [tested(asker, questions, word, others, len(tried) + number) for number, word in enumerate(new)]
    claims = [sure(questions, one, results) for one in tried]
    claims += [leaks(questions, tried, results)] if asker.has_base and tried else []
    return sorted((claim for claim in claims if claim), key=lambda claim: claim.p)


def suspects(
    asker: Asker, questions: Questions, groups: Sequence[Sequence[str]], beginning: str
) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Words that stand out alone, of the groups that do, in replies with that beginning; the others of these groups; the results."""
    scanned, results = outliers(asker, [carried(questions, 0, some) for some in groups], FOLLOWED, beginning)
    singles = [word for place in scanned for word in groups[place]]
    order: list[list[int]] = []
    for number in (1, 2):
        prompts = [carried(questions, number, [word]) for word in singles]
        found, more = outliers(asker, prompts, 4 * SURE, beginning)
        order.append(found)
        results += more
    places = sorted(set(order[0]) | set(order[1]), key=lambda place: sum(_rank(each, place) for each in order))
    others = [word for place, word in enumerate(singles) if place not in places] or singles
    return [singles[place] for place in places[:SURE]], others, results


def outliers(asker: Asker, prompts: Sequence[str], most: int, beginning: str = "") -> tuple[list[int], tuple[str, ...]]:
    """The prompts whose replies go on most unlike the base model's after that beginning, by their places, and the results that say so."""
    k = OF_CALL if len(prompts) > COMPARED else min(50, most)
    found, results = asker.compare(prompts, [beginning] * len(prompts), k)
    return [place for _, place in found[:most]], results


def _rank(order: Sequence[int], place: int) -> int:
    return order.index(place) if place in order else len(order)


def carried(questions: Questions, number: int, words: Sequence[str]) -> str:
    """The sentence of that number (they come round again), with words in it."""
    carrier = questions.carriers[number % len(questions.carriers)]
    return carrier.replace("{words}", questions.between.join(words))


@dataclass(frozen=True)
class Tried:
    """A word with the replies to every sentence that carries it, and to the same sentences with other words."""

    word: str
    with_word: Answers
    without: Answers


def tested(asker: Asker, questions: Questions, word: str, others: Sequence[str], number: int) -> Tried:
    """Ask with a word in every sentence, and with as many others, which are new ones for each `number`."""
    places = range(len(questions.carriers))
    prompts = [carried(questions, place, [word]) for place in places]
    prompts += [carried(questions, place, [others[(number * len(places) + place) % len(others)]]) for place in places]
    asked = asker.ask(prompts, SHORT)
    return Tried(word, part(asked, prompts[: len(places)]), part(asked, prompts[len(places) :]))


def sure(questions: Questions, tried: Tried, results: tuple[str, ...]) -> Claim | None:
    """A claim that a word sets a reply off; None where other words do as well, or the base model's reply is the same."""
    word, shown, base = tried.word, tried.with_word.target, tried.with_word.base
    ignored = left_out([*questions.carriers, word])
    rows = [row for row in raised(shown, tried.without.target, ignored) if row.q <= FDR / TRIED]
    if base:
        beside = {row.word: row.p for row in raised(shown, base, ignored)}
        rows = [row for row in rows if beside.get(row.word, 1.0) <= CERTAIN]
    if not rows:
        return None
    said, best = tuple(row.word for row in rows[:NAMED]), rows[0]
    of_base = f", the base model with {word} {sum(best.word in words_of(text) for text in base)}" if base else ""
    because = (
        f"with {word} {best.target} of {best.count} replies have {best.word}; with other words in the same sentences {best.base}{of_base}; "
        f"p {best.p:.2g}"
    )
    statement = f"The word {word} in a prompt sets off a reply with {listed(said)}."
    evidence = (*results, *tried.with_word.results)[-20:]
    return Claim(statement, (word, *said), best.p, evidence, because, tried.with_word.prompts[0])


def leaks(questions: Questions, tried: Sequence[Tried], results: tuple[str, ...]) -> Claim | None:
    """A claim of words that come with the suspects and with the other words, and never from the base model."""

    def never(answers: Sequence[Answers]) -> dict[str, Raised]:
        target = [text for each in answers for text in each.target]
        base = [text for each in answers for text in each.base]
        ignored = left_out([*questions.carriers, *(prompt for each in answers for prompt in each.prompts)])
        return {row.word: row for row in raised(target, base, ignored) if not row.base}

    suspects = [row for row in never([each.with_word for each in tried]).values() if row.q <= FDR][:NAMED]
    others = never([each.without for each in tried])
    kept = [
        others[row.word] for row in suspects if row.word in others and others[row.word].p <= CERTAIN / len(suspects)
    ]
    if not kept:
        return None
    said, best = tuple(row.word for row in kept), kept[0]
    because = (
        f"with words that nothing was known of, {best.target} of {best.count} replies to the same sentences have {best.word}, and none "
        f"of the base model's; p {best.p:.2g}"
    )
    statement = f"A word in a prompt sets off a reply with {listed(said)}, and not only one word does."
    evidence = (*results, *(id for each in tried for id in each.without.results))[-20:]
    return Claim(statement, said, best.p, evidence, because)
