"""Language models through one protocol: an endpoint (endpoint.py), a local model, a scripted one for tests.

    complete        chats → what the model writes, one text each
    probabilities   chats → P("1") against "0" as the next token, which needs no parsing; None where neither was offered. Only where
                    `reads_probability` is True

Both take many chats, so that a backend may work on several at once. A chat is a sequence of {"role", "content"}. What a model writes
is untrusted: `one_line` is all that is ever made of it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from ...saes import UserError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Chat = Sequence[Mapping[str, str]]
LONGEST = 400  # characters of an explanation that are kept


@runtime_checkable
class LanguageModel(Protocol):
    """What explaining and judging need of a language model; `name` goes into the record of what was made with it."""

    name: str
    reads_probability: bool

    def complete(self, chats: Sequence[Chat], tokens: int) -> list[str]:
        """What the model writes, at most `tokens` tokens a chat."""
        ...

    def probabilities(self, chats: Sequence[Chat]) -> list[float | None]:
        """P("1") / (P("0") + P("1")) of the next token of each chat."""
        ...


class Scripted:
    """A model that is a function from a chat to text, and to a probability where `chance` is given. For tests."""

    name = "scripted"

    def __init__(self, write: Callable[[Chat], str], chance: Callable[[Chat], float | None] | None = None):
        self.write, self.chance = write, chance
        self.reads_probability = chance is not None
        self.asked: list[Chat] = []

    def complete(self, chats: Sequence[Chat], tokens: int) -> list[str]:
        """The function's texts."""
        self.asked += chats
        return [self.write(chat) for chat in chats]

    def probabilities(self, chats: Sequence[Chat]) -> list[float | None]:
        """The function's probabilities."""
        self.asked += chats
        return [None if self.chance is None else self.chance(chat) for chat in chats]


class LocalModel:
    """A model in this process (a TransformerBridge); its chat template where it has one, else plain text.

    A small one leans to one digit whatever it is shown: its balanced accuracy is then 0.5, and only its AUC tells what it knows.
    """

    reads_probability = True

    def __init__(self, model: TransformerBridge):
        self.model, self.name = model, str(model.cfg.model_name)
        self._ids = [self._digit(digit) for digit in "01"]

    def _digit(self, digit: str) -> list[int]:
        """The single tokens that spell a digit, with and without a space before it."""
        tokenizer: Any = self.model.tokenizer
        spelled = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (digit, f" {digit}")]
        found = list(dict.fromkeys(ids[-1] for ids in spelled if len(ids) in (1, 2)))
        found = [token for token in found if tokenizer.decode([token]).strip() == digit]
        if not found:
            raise UserError(
                f"expected a tokenizer with a token for {digit}; that of {self.name} has none; judge with another model"
            )
        return found

    def _prompt(self, chat: Chat) -> Any:
        from ...circuits.prompts.text import has_chat, prompt_ids

        if has_chat(self.model):
            return prompt_ids(self.model, chat)
        return prompt_ids(self.model, "\n\n".join(each["content"] for each in chat) + "\n")

    @torch.no_grad()
    def complete(self, chats: Sequence[Chat], tokens: int) -> list[str]:
        """Greedy writing, one chat after the other."""
        from ...circuits.prompts.stream import stream
        from ...saes.models import special_ids

        markers = set(special_ids(self.model))
        return [
            "".join(
                each.text for each in stream(self.model, self._prompt(chat), tokens=tokens) if each.token not in markers
            )
            for chat in chats
        ]

    @torch.no_grad()
    def probabilities(self, chats: Sequence[Chat]) -> list[float | None]:
        """From the logits of the two digits, however unlikely both are; never None."""
        found: list[float | None] = []
        for chat in chats:
            logits = self.model(self._prompt(chat)[None])[0, -1].double()
            zero, one = (logits[ids].logsumexp(0) for ids in self._ids)
            found.append(float(torch.sigmoid(one - zero)))
        return found


def one_line(text: str, longest: int = LONGEST) -> str:
    """Text of a model as one line without control characters, cut at `longest`; empty if nothing is left."""
    plain = "".join(" " if char.isspace() else char for char in text)
    plain = "".join(char for char in plain if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    plain = " ".join(plain.split())
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"
