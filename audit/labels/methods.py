"""How labels are made and judged: by clauses and a machine, by a language model, or the one made and the other judging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...saes import UserError
from . import heuristic, questions
from .client import LanguageModel
from .heuristic import Pattern
from .negatives import Material
from .questions import Item
from .scores import Answer


class Label(NamedTuple):
    """An explanation in words; with the pattern that a machine can judge where a machine made it."""

    text: str
    pattern: Pattern | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"text": self.text, "pattern": None if self.pattern is None else self.pattern.to_dict()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Label:
        """The label of such data."""
        return Label(data["text"], None if data["pattern"] is None else Pattern.from_dict(data["pattern"]))


class Method:
    """`explainer` and `judge` are language models; None is the machine, which can judge only what it made."""

    def __init__(self, explainer: LanguageModel | None, judge: LanguageModel | None, seed: int):
        if explainer is not None and judge is None:
            raise UserError("expected a language model to judge what a language model explains; got none; give one")
        self.explainer, self.judge, self.seed = explainer, judge, seed

    @property
    def name(self) -> str:
        """Of both, as it stands in records and scores."""
        made = "heuristic" if self.explainer is None else self.explainer.name
        judged = "machine" if self.judge is None else self.judge.name
        return made if made == judged else f"{made}, judged by {judged}"

    def explain(self, found: Material, promoted: Sequence[str]) -> Label:
        """A label from the explaining half; its text is empty if a model wrote none."""
        if self.explainer is not None:
            return Label(questions.explanation(self.explainer, found, promoted))
        pattern = heuristic.explain(found, promoted)
        return Label(pattern.says(), pattern)

    def answers(self, label: Label, items: Sequence[Item]) -> list[Answer]:
        """The judge's verdict on every item."""
        if self.judge is not None:
            return questions.judged(self.judge, label.text, items, self.seed)
        assert label.pattern is not None
        return mechanical(label.pattern, items)

    def baseline(self, found: Material) -> Label | None:
        """The label of the latent's most frequent token and nothing else; None where a language model would have to judge it."""
        if self.judge is not None:
            return None
        pattern = heuristic.explain(found, only_token=True)
        return Label(pattern.says(), pattern)


def mechanical(pattern: Pattern, items: Sequence[Item]) -> list[Answer]:
    """The machine's verdicts: does the pattern hold in the snippet, or at its marks."""
    answers = []
    for snippet, marks, is_true in items:
        chance = pattern.window(snippet) if marks is None else pattern.places(snippet, marks)
        answers.append(Answer(is_true, chance > 0.5, chance, snippet.document))
    return answers
