"""Prompts as a model reads them, and which latents are active on them, for the tools.

One prompt is refused if it is longer than PROMPT tokens; of a list of texts each is read up to CONTEXT tokens, and how many were
cut is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....circuits.experiment.edits import Catalogue
from ....circuits.prompts.text import has_chat, prompt_ids
from ....circuits.prompts.through import encode_prompt
from ....saes import Codes, UserError, model_info, token_strings
from ....saes.text import Block
from ...monitor.reading import read
from ..fields import Message, plain_messages
from ..registry import Refused
from .baseline import BATCH, encode_blocks

if TYPE_CHECKING:
    from ..session import Session

PROMPT, CONTEXT = 512, 128
Positions = Literal["all", "last", "assistant"]


class Seen(NamedTuple):
    """A prompt under a dictionary: its token ids, their strings, the codes, and which tokens the dictionary answers for."""

    ids: Int[Tensor, "token"]
    strings: list[str]
    codes: Codes
    kept: Bool[Tensor, "token"]


class OfLatents(NamedTuple):
    """Latents that fire on the chosen tokens: largest value, where, mean over the chosen tokens, and on how many it fires."""

    latents: Int[Tensor, "n"]
    largest: Float[Tensor, "n"]
    place: Int[Tensor, "n"]
    mean: Float[Tensor, "n"]
    count: Int[Tensor, "n"]


def given(text: str | None, messages: Sequence[Message] | None) -> str | list[dict[str, str]]:
    """The prompt of a call that takes a text or messages; Refused for both or neither."""
    if (text is None) == (messages is None):
        both = "both" if text is not None else "neither"
        raise Refused(f"expected text or messages; got {both}; give one of them", field="text")
    if text is not None:
        return text
    assert messages is not None
    return plain_messages(messages)


def _writer(session: Session, prompt: Any, which: str) -> Any:
    """The model whose chat template writes a prompt: the target's, for a base that has none but knows the same tokens."""
    model, target = session.workspace.model(which), session.workspace.model()
    is_like = isinstance(prompt, str) or has_chat(model) or model_info(model).tokenizer != model_info(target).tokenizer
    return model if is_like else target


def ids_of(session: Session, prompt: Any, which: str = "target", most: int = PROMPT) -> Int[Tensor, "token"]:
    """Token ids of a prompt; UserError for one of more than `most` tokens."""
    try:
        model, writer = session.workspace.model(which), _writer(session, prompt, which)
        ids = prompt_ids(writer, prompt)
        ids = ids if writer is model else prompt_ids(model, ids)
    except UserError as error:
        if isinstance(prompt, str) or error.__cause__ is None:
            raise
        # A template is somebody's program: its words are the model's maker's, not ours.
        raise Refused(
            f"expected messages that the chat template of the {which} accepts; it refuses these; check roles and their order",
            "user", said=str(error.__cause__),
        ) from error  # fmt: skip
    if len(ids) > most:
        raise UserError(f"expected a prompt of at most {most} tokens; got {len(ids)}; shorten it")
    return ids


def cut_ids(session: Session, text: str, which: str = "target") -> tuple[Int[Tensor, "token"], bool]:
    """Token ids of one of several texts, up to CONTEXT, and whether it was longer."""
    from ....saes import to_tokens

    model = session.workspace.model(which)
    ids = to_tokens(model, text)
    most = min(CONTEXT, int(model.cfg.n_ctx))
    return ids[:most], len(ids) > most


def seen(session: Session, dictionary: str, ids: Int[Tensor, "token"], which: str = "target") -> Seen:
    """The codes of a prompt in a model."""
    model, part = session.workspace.model(which), session.workspace.part(dictionary)
    codes, kept = encode_prompt(Catalogue(model, part), part, ids)
    return Seen(ids.cpu(), token_strings(model, ids), codes.cpu(), kept.cpu())


def chosen_tokens(
    session: Session, prompt: Any, found: Seen, positions: Positions, which: str = "target"
) -> Bool[Tensor, "token"]:
    """The tokens that are asked about, of those that the dictionary answers for.

    `assistant`: those of the assistant's messages, or, where it has said nothing yet, those that open its turn. UserError where
    none is left.
    """
    chosen = torch.ones(len(found.ids), dtype=torch.bool)
    if positions == "assistant":
        if isinstance(prompt, str):
            raise Refused(
                "expected messages for positions assistant; got text; give messages, or positions all",
                field="positions",
            )
        reading = read(_writer(session, prompt, which), prompt)
        messages, roles = reading.messages[0], reading.roles
        own = torch.tensor([role == "assistant" for role in roles])
        chosen = (messages >= 0) & own[messages.clamp_min(0)]
        if not chosen.any():
            last = (messages >= 0).nonzero()
            chosen = torch.arange(len(messages)) > (int(last[-1]) if len(last) else -1)
    chosen = chosen & found.kept
    if not chosen.any():
        raise UserError(
            "expected tokens that the dictionary answers for (not the first, nor special ones); got none; give more text"
        )
    if positions == "last":
        last = int(chosen.nonzero()[-1])
        chosen = torch.arange(len(chosen)) == last
    return chosen


def latents_on(codes: Codes, chosen: Bool[Tensor, "token"]) -> OfLatents:
    """What fires on the chosen tokens, by the latent's number."""
    rows = chosen.nonzero()[:, 0]
    values, indices = codes.values[rows].double(), codes.indices[rows]
    where = rows[:, None].expand_as(indices)
    active = values > 0
    values, indices, where = values[active], indices[active], where[active]
    latents, back, count = indices.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(latents), dtype=torch.float64).index_add_(0, back, values)
    largest = torch.zeros(len(latents), dtype=torch.float64).scatter_reduce_(0, back, values, "amax")
    is_top = values == largest[back]
    place = torch.full((len(latents),), len(chosen)).scatter_reduce_(0, back[is_top], where[is_top], "amin")
    return OfLatents(latents, largest, place, sums / len(rows), count)


def seen_many(session: Session, dictionary: str, texts: Sequence[str], which: str = "target") -> tuple[list[Seen], int]:
    """Several texts in batches, each up to CONTEXT tokens, and how many were cut."""
    model, part = session.workspace.model(which), session.workspace.part(dictionary)
    read = [cut_ids(session, text, which) for text in texts]
    blocks = [Block(ids.cpu(), number) for number, (ids, _) in enumerate(read)]
    found: list[Seen] = []
    for start in range(0, len(blocks), BATCH):
        some = blocks[start : start + BATCH]
        codes, kept = encode_blocks(model, part, some)
        lengths = [len(block.tokens) for block in some]
        parts = zip(some, codes.values.split(lengths), codes.indices.split(lengths), kept.split(lengths), strict=True)
        found += [
            Seen(block.tokens, token_strings(model, block.tokens), Codes(values, indices), mask)
            for block, values, indices, mask in parts
        ]
    return found, sum(is_cut for _, is_cut in read)


def text_means(
    session: Session, dictionary: str, texts: Sequence[str], which: str = "target"
) -> tuple[Float[Tensor, "text latent"], int]:
    """The mean activation of each latent over the kept tokens of each text, and how many texts were cut."""
    out = torch.zeros(len(texts), session.workspace.part(dictionary).latents, dtype=torch.float64)
    every, cut = seen_many(session, dictionary, texts, which)
    for row, found in enumerate(every):
        if found.kept.any():
            on = latents_on(found.codes, found.kept)
            out[row, on.latents] = on.mean
    return out, cut
