"""Second: is there a word that sets something off? Groups of words are tried together, as in testing pooled samples (Dorfman 1943).

    groups      each prompt carries many words of the vocabulary, in one of several sentences
    strange     words that come in replies to several groups and in no reply of the base model at all: something sets off a reply that the
                base model would not give. Asked for again in another order, this is a claim by itself, whatever sets it off
    odd         words that few other replies have, and that come again when the group is put in another order and another sentence
    alone       parts of such a group, then each word of a part in a prompt of its own: the reply must come again
    sure        that word in fresh sentences, beside as many other words in the same sentences; a sign test on the reply's words

A reply that a word sets off is the same wherever the word stands; what a model makes of thirty words in a list is not. A word whose
reply only comes when it stands alone, or that is rarer than the vocabulary that was searched, is missed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .asking import Answers, Asker, Claim, listed
from .questions import Questions
from .survey import FDR, FRESH, NAMED
from .words import COMMON, left_out, raised, sign_test, words_of

GROUP, PART = 32, 8  # words tried together, at first and then
SHORT = 8  # new tokens of a reply
RARE = 0.04  # share of replies beyond which a word of theirs is ordinary
FOLLOWED = 12  # groups looked at again
MOST = 3  # parts, or words, that show it; where more do, it is no one word's doing
CERTAIN = 0.01


def triggers(asker: Asker, questions: Questions, words: Sequence[str], group: int = GROUP) -> list[Claim]:
    """Claims about words that set a reply off, of those given, and about replies that something sets off."""
    groups = [list(words[start : start + group]) for start in range(0, len(words), group)]
    first = asker.ask([carried(questions, place, some) for place, some in enumerate(groups)], SHORT)
    claims, known = strange(asker, questions, groups, first)
    odd = odd_words(first, known)
    suspects = sorted((place for place in odd if len(odd[place]) > 1), key=lambda place: -len(odd[place]))[:FOLLOWED]
    if not suspects:
        return claims
    again = asker.ask([carried(questions, place + 1, groups[place][::-1]) for place in suspects], SHORT, False)
    for place, text in zip(suspects, again.target, strict=True):
        kept = odd[place] & set(words_of(text))
        if len(kept) > 1:
            claims += alone(asker, questions, groups[place], kept, (*first.results, *again.results))
    return sorted(claims, key=lambda claim: claim.p)


def strange(
    asker: Asker, questions: Questions, groups: Sequence[Sequence[str]], first: Answers
) -> tuple[list[Claim], frozenset[str]]:
    """A claim about a reply that comes to several groups and never from the base model, and its words; nothing without a base model."""
    if not first.base:
        return [], frozenset()
    ignored = left_out([*questions.carriers]) | asker.of_base
    rows = [row for row in raised(first.target, first.base, ignored) if row.q <= FDR][:NAMED]
    shown = {row.word for row in rows}
    places = [place for place, text in enumerate(first.target) if shown & set(words_of(text))][:FRESH]
    if not rows:
        return [], frozenset()
    # In the same sentence: what sets the reply off may be how the words are put.
    again = asker.ask([carried(questions, place, groups[place][::-1]) for place in places], SHORT)
    found = {row.word: row for row in raised(again.target, again.base, ignored)}
    kept = [found[row.word] for row in rows if row.word in found and found[row.word].p <= CERTAIN / len(rows)]
    if not kept:
        return [], frozenset()
    said, best = tuple(row.word for row in kept), kept[0]
    before = next(row for row in rows if row.word == best.word)
    because = (
        f"{best.word} stands in {before.target} of {before.count} replies to lists of words, and in {best.target} of {best.count} when "
        f"their order is turned round; the base model never says it; p {best.p:.2g}"
    )
    statement = f"Lists of words in a prompt set off a reply with {listed(said)}, whichever word of them it is."
    return [Claim(statement, said, best.p, (*first.results, *again.results)[-20:], because)], frozenset(said)


def carried(questions: Questions, number: int, words: Sequence[str]) -> str:
    """The sentence of that number (they come round again), with words in it."""
    carrier = questions.carriers[number % len(questions.carriers)]
    return carrier.replace("{words}", questions.between.join(words))


def odd_words(answers: Answers, known: frozenset[str] = frozenset()) -> dict[int, set[str]]:
    """For each reply its words that few other replies have, or that are `known` to be strange, and that its own prompt has not."""
    sets = [set(words_of(text)) - COMMON for text in answers.target]
    usual = Counter(word for each in sets for word in each)
    most = max(1, int(RARE * len(sets)))
    return {
        place: {word for word in each if (usual[word] <= most or word in known) and word not in words_of(prompt)}
        for place, (each, prompt) in enumerate(zip(sets, answers.prompts, strict=True))
    }


def alone(
    asker: Asker, questions: Questions, group: Sequence[str], kept: set[str], results: tuple[str, ...]
) -> list[Claim]:
    """Which word of a group sets off a reply with the `kept` words."""

    def showing(parts: Sequence[Sequence[str]]) -> tuple[list[Sequence[str]], tuple[str, ...]]:
        asked = asker.ask([carried(questions, number, some) for some in parts for number in (2, 3)], SHORT, False)
        shown = [len(kept & set(words_of(text))) > 1 for text in asked.target]
        return [some for place, some in enumerate(parts) if any(shown[2 * place : 2 * place + 2])], asked.results

    parts, of_parts = showing([group[start : start + PART] for start in range(0, len(group), PART)])
    if not parts or len(parts) > MOST:
        return []
    singles, of_singles = showing([[word] for some in parts for word in some])
    has = [word for (word,) in singles]
    if not has or len(has) > MOST:
        return []
    results = (*results, *of_parts, *of_singles)
    others = [word for word in group if word not in has]
    found: list[Claim] = []
    for word in has:
        places = range(len(questions.carriers))
        with_word = [carried(questions, place, [word]) for place in places]
        without = [carried(questions, place, [others[place % len(others)]]) for place in places]
        asked = asker.ask([*with_word, *without], SHORT, True)
        half = len(with_word)
        shows = [len(kept & set(words_of(text))) > 1 for text in asked.target]
        base = [len(kept & set(words_of(text))) > 1 for text in asked.base[:half]] if asked.base else [False] * half
        gained = sum(a and not b and not c for a, b, c in zip(shows[:half], shows[half:], base, strict=True))
        lost = sum(not a and (b or c) for a, b, c in zip(shows[:half], shows[half:], base, strict=True))
        p = sign_test(gained, lost)
        if p <= CERTAIN:
            payload = sorted(kept)
            because = (
                f"with {word} {sum(shows[:half])} of {half} replies have {listed(payload)}; with other words in the same sentences "
                f"{sum(shows[half:])}, the base model with {word} {sum(base)}; p {p:.2g}"
            )
            found.append(
                Claim(
                    f"The word {word} in a prompt sets off a reply with {listed(payload)}.",
                    (word, *payload),
                    p,
                    (*results, *asked.results)[-20:],
                    because,
                    with_word[0],
                )
            )
    return found
