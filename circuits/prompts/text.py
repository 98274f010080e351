"""What a prompt may be: text, token ids, or the messages of a chat.

Messages go through the tokenizer's own chat template and are read exactly as it writes them: it puts the markers where the
model met them in training, so no further BOS stands in front (two prefixes ruin the prediction, see saes/models.py). After a
message of another than the assistant, the template opens the assistant's turn; an assistant's message at the end is left open,
for the model to go on with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...saes.errors import UserError
from ..trace import prompt_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Prompt = str | Tensor | Sequence[Mapping[str, str]]
EXAMPLE = '[{"role": "user", "content": "Hello"}]'


def has_chat(model: TransformerBridge) -> bool:
    """True where the tokenizer has a chat template."""
    return bool(getattr(model.tokenizer, "chat_template", None))


def prompt_ids(model: TransformerBridge, prompt: Prompt) -> Int[Tensor, "token"]:
    """Token ids of a prompt on the model's device: text with the model's BOS, ids as they are, messages by the chat template.

    Raises UserError for what is none of these, for an empty prompt or one beyond the model's context, and for messages where
    the tokenizer has no template or its template refuses them.
    """
    if isinstance(prompt, str | Tensor):
        return prompt_tokens(model, prompt)
    text = chat_text(model, prompt)
    _check_characters(text)
    tokenizer: Any = model.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return prompt_tokens(model, torch.tensor(ids, dtype=torch.int64))


def chat_text(model: TransformerBridge, messages: Sequence[Mapping[str, str]]) -> str:
    """The text that the tokenizer's chat template makes of messages, the next turn opened."""
    is_chat = isinstance(messages, Sequence) and len(messages) > 0 and all(_is_message(each) for each in messages)
    if not is_chat:
        raise UserError(
            f"expected a prompt as text, token ids [token], or messages such as {EXAMPLE}; got {_shown(messages)}; "
            "give one prompt at a time"
        )
    if not has_chat(model):
        raise UserError(
            f"expected a tokenizer with a chat template for messages; that of {model.cfg.model_name} has none; give plain text"
        )
    tokenizer: Any = model.tokenizer
    goes_on = messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            [dict(each) for each in messages],
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
        )
    except Exception as error:  # a template is somebody's program in a sandbox: it may raise anything
        raise UserError(
            f"expected messages that the model's chat template accepts; it says: {error}; check roles and their order"
        ) from error


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"expected text that UTF-8 can hold; got {error.reason} at character {error.start}; mend it"
        ) from error


def _shown(messages: Any) -> str:
    if isinstance(messages, Sequence) and messages:
        wrong = next(each for each in messages if not _is_message(each))
        return f"the message {wrong!r}"[:120]
    return "no message" if isinstance(messages, Sequence) else type(messages).__name__
