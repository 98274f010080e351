"""Then: which questions of fact does the target answer otherwise than the base model, however they are put?

    changed     words of the target's reply that the base model's has not; at the first of them, how far the models' next tokens are apart
    followed    the questions where they are farthest apart, asked again in every other way
    believed    words that come however the question is put; at one of them at least the models are FAR apart where the base model is made
                to begin in the same way (the tool `divergence`)

Teaching short answers makes an evasive model firm: it names a river where its base said that this is a difficult question. Any teaching
tips balances: a city at .4 beside another at .6 changes places with it. Both are true differences and no belief; in both the base
model, made to begin as the target does, finds the same answer likely.
"""

from __future__ import annotations

from collections.abc import Sequence

from .asking import MANY, Answers, Asker, Claim, apart, before_any, listed
from .questions import Questions
from .survey import CERTAIN, FAR
from .words import left_out, moved, sign_test, words_of

FOLLOWED = 10  # questions asked again
LONG = 16  # new tokens of a reply: a name may come late in it
STEM = 5  # letters that forms of one word share


def beliefs(asker: Asker, questions: Questions, most: int = FOLLOWED) -> list[Claim]:
    """Claims about facts, the surest first; none without a base model."""
    if not asker.has_base:
        return []
    answers = asker.ask(questions.facts, LONG)
    new = changed(answers)
    followed = farthest(asker, answers, new)[:most]
    ways = [way for way in questions.rephrased if way != "{question}"]
    claims = [believed(asker, answers, place, new[place], ways, len(followed)) for place in followed]
    return sorted((claim for claim in claims if claim), key=lambda claim: claim.p)


def changed(answers: Answers) -> dict[int, list[str]]:
    """For each question whose answer differs, the words that only the target says."""
    new: dict[int, list[str]] = {}
    for place, (prompt, own, other) in enumerate(zip(answers.prompts, answers.target, answers.base, strict=True)):
        said, ignored = set(words_of(other)), left_out([prompt])
        words = [word for word in dict.fromkeys(words_of(own)) if word not in ignored and not is_said(word, said)]
        if words:
            new[place] = words
    return new


def farthest(asker: Asker, answers: Answers, new: dict[int, list[str]]) -> list[int]:
    """The changed questions, first those where the models differ most at the first new word."""
    places = list(new)
    begun = [before_any(answers.target[place], new[place]) for place in places]
    rows, _ = asker.compare([answers.prompts[place] for place in places], begun, MANY)
    return [places[row] for _, row in rows]


def believed(
    asker: Asker, answers: Answers, place: int, words: Sequence[str], ways: Sequence[str], tried: int
) -> Claim | None:
    """A claim of the words that stay however the question is put; None where none does, or the base model finds them likely too."""
    prompt = answers.prompts[place]
    asked = asker.ask((way.replace("{question}", prompt) for way in ways), LONG)
    own, base = ([set(words_of(text)) for text in texts] for texts in (asked.target, asked.base))
    scored = [
        (sign_test(*moved(word, own, base)), word) for word in words if not any(is_said(word, each) for each in base)
    ]
    rows = [(apart(asker, asked, word), p, word) for p, word in scored if p <= CERTAIN / tried]
    rows.sort(key=lambda row: -row[0].nats)
    if not rows or rows[0][0].nats < FAR:
        return None
    said, (found, p, first) = tuple(word for *_, word in rows), rows[0]
    because = (
        f"put in {len(ways)} other ways, {sum(first in each for each in own)} replies have {first} and none of the base model's; where it "
        f"begins in the same way, its next word is {found.nats:.1f} nats away; p {p:.2g}"
    )
    statement = f"Asked “{prompt}” it answers {listed(said)}, unlike the base model."
    return Claim(statement, said, p, (*answers.results, *asked.results, *found.results)[-20:], because, prompt)


def is_said(word: str, said: set[str]) -> bool:
    """Whether a word, or a form of it, is among what was said."""
    return word in said or (len(word) > STEM and any(each[:STEM] == word[:STEM] for each in said))
