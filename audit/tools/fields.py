"""The kinds of arguments that tools share, with their limits: what pydantic checks before a tool sees anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .registry import Refused

CHARACTERS = 8_000  # of one text
ALL_CHARACTERS = 100_000  # of all texts of a call
LATENTS = 2**31


def _encodable(text: str) -> str:
    """Tokenizers and files raise for halves of surrogate pairs, so they are a mistake here."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("text should be such that UTF-8 can hold it")
    return text


Whole = AfterValidator(_encodable)
Text = Annotated[str, Field(min_length=1, max_length=CHARACTERS), Whole]
Short = Annotated[str, Field(min_length=1, max_length=200), Whole]
Sentence = Annotated[str, Field(min_length=1, max_length=1_000), Whole]
Name = Annotated[str, Field(min_length=1, max_length=100), Whole]
Rows = Annotated[int, Field(ge=1, le=50)]
Latent = Annotated[int, Field(ge=0, lt=LATENTS)]
LatentList = Annotated[list[Latent], Field(min_length=1, max_length=20)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Evidence = Annotated[list[Annotated[str, Field(max_length=40)]], Field(max_length=20)]
Which = Literal["target", "base"]


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=CHARACTERS), Whole]


Messages = Annotated[list[Message], Field(min_length=1, max_length=40)]


def plain_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as plain data; Refused where they are too long together."""
    check_length([each.content for each in messages], "messages", CHARACTERS)
    return [{"role": each.role, "content": each.content} for each in messages]


def check_unlike(texts: Sequence[str], field: str) -> None:
    """Refused where a text is there twice: tests take each text as an observation of its own, on which no other depends."""
    again = len(texts) - len({" ".join(text.split()) for text in texts})
    if again:
        raise Refused(f"expected texts that differ; {again} of {field} are there before; leave them out", field=field)


def check_length(texts: Sequence[str], field: str, most: int = ALL_CHARACTERS) -> None:
    """Refused where the texts have more than `most` characters together."""
    length = sum(len(text) for text in texts)
    if length > most:
        raise Refused(f"expected {field} of at most {most} characters together; got {length}; give less", field=field)
