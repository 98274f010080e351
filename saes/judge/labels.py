"""What kind of token each row is, computed from the text itself: the label sets that probes are trained on.

    language        English or another language                    the document, by its letter triples (text_kinds.py); no code
    code            program code or prose                          the document, by its signs
    quotation       inside double quotation marks or outside       marks are paired within a paragraph, in documents that have some; no code
    number          a token with a digit in it or without
    noun, verb, adjective, function word                           whole words of a list (words.py), against the list's other words;
                                                                   English prose only

A row is True, False or left out. Tokens that no text belongs to (BOS) are left out everywhere. Nothing is downloaded,
so labels are simple: they say whether latents carry such properties, not that a dictionary is good for any task of yours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .text_kinds import is_code, language
from .words import CLASSES

OPENS, CLOSES, STRAIGHT = "“„«", "”»", '"'
LABELS = ("language", "code", "quotation", "number", *CLASSES)


class Label(NamedTuple):
    """One label set: which rows have the property, and which rows are of the set at all."""

    name: str
    is_true: Bool[Tensor, "row"]
    is_known: Bool[Tensor, "row"]


def label_rows(
    strings: Sequence[str], positions: Int[Tensor, "row"], documents: Int[Tensor, "row"], has_bos: bool
) -> list[Label]:
    """The label sets of rows in text order; `strings` is each row's token as text."""
    true = {name: [False] * len(strings) for name in LABELS}
    known = {name: [False] * len(strings) for name in LABELS}
    bounds = (documents.diff() != 0).nonzero().squeeze(1).add(1).tolist()
    places = positions.tolist()
    for start, stop in zip([0, *bounds], [*bounds, len(strings)], strict=True):
        rows = [row for row in range(start, stop) if not (has_bos and places[row] == 0)]
        for name, found in document_labels([strings[row] for row in rows]).items():
            for row, value in zip(rows, found, strict=True):
                known[name][row] = value is not None
                true[name][row] = bool(value)
    return [Label(name, torch.tensor(true[name]), torch.tensor(known[name])) for name in LABELS]


def document_labels(tokens: list[str]) -> dict[str, list[bool | None]]:
    """The labels of one document's tokens: True, False, or None for left out."""
    text = "".join(tokens)
    nothing: list[bool | None] = [None] * len(tokens)
    program = is_code(text)
    english = not program and language(text) == "eng"
    found: dict[str, list[bool | None]] = dict.fromkeys(LABELS, nothing)
    found["code"] = [program] * len(tokens)
    found["number"] = [any(char.isdigit() for char in token) if token.strip() else None for token in tokens]
    if not program:
        found["language"] = [english] * len(tokens)
        found["quotation"] = quoted(tokens)
    if english:
        found |= word_classes(tokens)
    return found


def quoted(tokens: list[str]) -> list[bool | None]:
    """Inside or outside quotation marks; None for the marks, after an unpaired one, and where a document has none."""
    inside, out, any_inside = False, [], False
    for token in tokens:
        if "\n\n" in token:
            inside = False
        marks = [char for char in token if char in OPENS + CLOSES + STRAIGHT]
        out.append(None if marks else inside)
        for mark in marks:
            inside = mark in OPENS or (mark == STRAIGHT and not inside)
        any_inside = any_inside or inside
    return out if any_inside else [None] * len(tokens)


def word_classes(tokens: list[str]) -> dict[str, list[bool | None]]:
    """Whether a token that is a whole word of the list is of each class; None for all others."""
    classes = {word: name for name, words in CLASSES.items() for word in words}
    own = [classes.get(token.strip().lower()) if is_word(tokens, place) else None for place, token in enumerate(tokens)]
    return {name: [None if one is None else one == name for one in own] for name in CLASSES}


def is_word(tokens: list[str], place: int) -> bool:
    """Whether a token is a word by itself: it begins one, and the next token does not go on with it."""
    token = tokens[place]
    begins = token[:1].isspace() or not place or not tokens[place - 1][-1:].isalnum()
    ends = place + 1 >= len(tokens) or not tokens[place + 1][:1].isalnum()
    return begins and ends
