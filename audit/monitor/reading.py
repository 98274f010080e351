"""What a monitor reads: a text, or a chat; as token blocks, with the message that every token belongs to.

A text is one message. Longer than `context` tokens it is cut into blocks, each with the model's BOS in front. A chat is read as the
tokenizer's chat template writes it, whole; only the tokens of what was said belong to a message, the template's markers (and a
system prompt that it adds) to none. Where a message stands in the rendered chat is found between what the template writes for the
messages before it and the end of the message itself, so that a message that spells a marker is not mistaken for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ...circuits.prompts.text import chat_text
from ...saes import UserError, model_info
from ...saes.models import check_text
from ...saes.text import token_blocks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Item = str | Sequence[Mapping[str, str]]
"""A text, or the messages of a chat: {"role", "content"} each."""


class Reading(NamedTuple):
    """Blocks of token ids, and for each token the number of its message, -1 for markers and BOS."""

    blocks: list[Int[Tensor, "token"]]
    messages: list[Int[Tensor, "token"]]
    roles: list[str]


def read(model: TransformerBridge, item: Item, context: int = 512) -> Reading:
    """The tokens of a text or chat.

    UserError for an empty one, messages that the template refuses or changes beyond recognition, a chat beyond the model's context,
    and for chats where the tokenizer has no template.
    """
    if isinstance(item, str):
        return read_texts(model, [item], context)[0]
    ids, messages = _chat(model, item)
    info = model_info(model)
    if len(ids) > info.n_ctx:
        raise UserError(
            f"expected a chat of at most {info.n_ctx} tokens (the context of {info.name}); got {len(ids)}; leave out its beginning"
        )
    return Reading([ids], [messages], [each["role"] for each in item])


def read_texts(model: TransformerBridge, texts: Sequence[str], context: int = 512) -> list[Reading]:
    """`read` of each text."""
    if not all(text.strip() for text in texts):
        raise UserError("expected text with a visible character; got none; leave it out")
    info = model_info(model)
    readings = [Reading([], [], ["text"]) for _ in texts]
    for block in token_blocks(model, texts, min(context, info.n_ctx)):
        message = torch.zeros(len(block.tokens), dtype=torch.int64)
        if info.bos is not None:
            message[0] = -1
        readings[block.document].blocks.append(block.tokens)
        readings[block.document].messages.append(message)
    return readings


def _chat(model: TransformerBridge, chat: Sequence[Mapping[str, str]]) -> tuple[Tensor, Tensor]:
    tokenizer: Any = model.tokenizer
    if not tokenizer.is_fast:
        raise UserError(
            f"expected a tokenizer that tells where its tokens stand in the text; {model_info(model).name}'s does not; give plain text"
        )
    text = chat_text(model, chat)
    check_text(text, "messages")
    spans = message_spans(model, chat, text)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    messages = torch.full((len(found["input_ids"]),), -1)
    for number, (start, stop) in enumerate(spans):
        for place, (first, last) in enumerate(found["offset_mapping"]):
            if first < stop and last > start:
                messages[place] = number
    return torch.tensor(found["input_ids"], dtype=torch.int64), messages


def message_spans(model: TransformerBridge, chat: Sequence[Mapping[str, str]], text: str) -> list[tuple[int, int]]:
    """Where each message's content stands in the rendered chat: first character and the one after the last; (n, n) if it is empty."""
    spans: list[tuple[int, int]] = []
    cursor = 0
    for number, message in enumerate(chat):
        content = message["content"].strip()
        end = _rendered(model, chat[: number + 1], text)
        if end is None and number == len(chat) - 1:
            end = len(text)  # an assistant's message at the end is left open
        start = -1
        if end is not None:
            start = text.rfind(content, cursor, end)
        if start < 0:
            start = text.find(content, cursor)
        if start < 0:
            raise UserError(
                f"expected the chat template to write message {number} as it is; its text is not there; give plain text instead"
            )
        spans.append((start, start + len(content)))
        cursor = max(spans[-1][1], end or 0)
    return spans


def _rendered(model: TransformerBridge, chat: Sequence[Mapping[str, str]], text: str) -> int | None:
    """How far the template has come after these messages, None where it writes them otherwise than in the whole chat."""
    tokenizer: Any = model.tokenizer
    try:
        prefix = tokenizer.apply_chat_template([dict(each) for each in chat], tokenize=False)
    except Exception:  # a template is somebody's program, and may refuse the beginning of a chat
        return None
    return len(prefix) if text.startswith(prefix) else None
