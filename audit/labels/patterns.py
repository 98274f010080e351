"""Clauses: what a token and its surroundings can be said to be, mechanically.

A clause is (kind, text) and holds or does not hold at a place of a snippet:

    token       the token itself, as it is spelled                      (" Paris")
    word        the token without white space, in lower case            ("paris")
    ending      the last three letters of a word                        ("ing")
    class       its kind of spelling: digits, Capitalised, …            (see `spelling`)
    after       the word before it                                      ("of" before the place)
    pair        the word before it and its own                          ("of paris")
    near        a word among the eight before it
    next        the token after it is one that the latent promotes      (text is "promoted")
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

BEFORE = 8
PROMOTED = "promoted"


class Clause(NamedTuple):
    """One thing that can be true of a place in a text."""

    kind: str
    text: str

    def says(self) -> str:
        """The clause in words; text of the corpus is quoted, so that it cannot pass for the label's own words."""
        quoted = repr(self.text)
        return {
            "token": f"the token {quoted}",
            "word": f"the word {quoted}",
            "ending": f"words ending in {quoted}",
            "class": self.text,
            "after": f"after {quoted}",
            "pair": f"the words {quoted}",
            "near": f"shortly after {quoted}",
            "next": "before a token that it promotes",
        }[self.kind]


def clauses_at(tokens: Sequence[str], place: int, promoted: frozenset[str] = frozenset()) -> set[Clause]:
    """Every clause that holds at `place`."""
    token, word = tokens[place], bare(tokens[place])
    found = {Clause("token", token), Clause("class", spelling(token))}
    if word:
        found.add(Clause("word", word))
        if len(word) > 4 and word.isalpha():
            found.add(Clause("ending", word[-3:]))
    if place:
        previous = bare(tokens[place - 1]) or tokens[place - 1]
        found |= {Clause("after", previous), Clause("pair", f"{previous} {word or token}")}
    earlier = {bare(each) for each in tokens[max(place - BEFORE, 0) : place]}
    found |= {Clause("near", each) for each in earlier if len(each) > 2}
    if place + 1 < len(tokens) and tokens[place + 1] in promoted:
        found.add(Clause("next", PROMOTED))
    return found


def bare(token: str) -> str:
    """A token without the white space around it, in lower case."""
    return token.strip().lower()


def spelling(token: str) -> str:
    """The kind of spelling of a token."""
    word = token.strip()
    if not word:
        return "line breaks" if "\n" in token else "white space"
    if any(char.isdigit() for char in word):
        return "numbers"
    if not any(char.isalpha() for char in word):
        return "punctuation"
    if not word.isascii():
        letter = next(char for char in word if char.isalpha())
        return f"letters of the {unicodedata.name(letter, 'unknown').split()[0].capitalize()} script beyond ASCII"
    if "_" in word or (word[1:] != word[1:].lower() and not word.isupper()):
        return "names in code"
    if word.isupper() and len(word) > 1:
        return "words in capitals"
    if word[0].isupper():
        return "capitalised words"
    return "words" if token[0].isspace() else "parts of words"
