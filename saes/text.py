"""Text to token blocks: the unit that a model reads in one go.

A document is cut into windows of `context - 1` tokens and each gets the model's BOS in front, so no block spans two
documents and position 0 is always the BOS. The last window of a document is shorter; nothing is dropped. Blocks of one
batch are padded on the right: attention is causal, so padding cannot reach a real token, and padded rows are never kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .errors import UserError
from .models import check_text, model_info
from .plain_modules import as_model


class Block(NamedTuple):
    """Tokens that the model reads together, and the number of the document they come from."""

    tokens: Int[Tensor, "seq"]
    document: int


class PaddedBlocks(NamedTuple):
    """Blocks of one forward pass: right-padded tokens, which of them are real, and their documents."""

    tokens: Int[Tensor, "batch seq"]
    real: Bool[Tensor, "batch seq"]
    documents: Int[Tensor, "batch"]

    def rows(self) -> tuple[Int[Tensor, "row"], Int[Tensor, "row"], Int[Tensor, "row"]]:
        """Token, position and document of each real token, in the order of its row."""
        positions = torch.arange(self.tokens.shape[1]).expand_as(self.tokens)
        documents = self.documents[:, None].expand_as(self.tokens)
        return self.tokens[self.real], positions[self.real], documents[self.real]

    def index(self) -> Int[Tensor, "row"]:
        """Where each row stands in the flattened `[batch seq]`."""
        return self.real.flatten().nonzero().squeeze(1)

    @property
    def number(self) -> int:
        """Number of blocks."""
        return len(self.tokens)


class PackedBlocks(NamedTuple):
    """`number` blocks of one forward pass, several in a line of it.

    `positions` begin anew with each block; `order` is where each row stands in the flattened `[batch seq]`.
    """

    tokens: Int[Tensor, "batch seq"]
    positions: Int[Tensor, "batch seq"]
    order: Int[Tensor, "row"]
    documents: Int[Tensor, "row"]
    number: int

    def rows(self) -> tuple[Int[Tensor, "row"], Int[Tensor, "row"], Int[Tensor, "row"]]:
        """Token, position and document of each real token, in the order of its row."""
        return self.tokens.flatten()[self.order], self.positions.flatten()[self.order], self.documents

    def index(self) -> Int[Tensor, "row"]:
        """Where each row stands in the flattened `[batch seq]`."""
        return self.order


def token_blocks(model: Any, texts: Iterable[Any], context: int = 128) -> Iterator[Block]:
    """Cut texts (strings, or things with a `.text`) into blocks of at most `context` tokens, BOS included.

    UserError for a context that the model does not have, and for text that UTF-8 cannot hold.
    """
    tokenizer: Any = as_model(model).tokenizer
    info = model_info(model)
    if tokenizer is None:
        raise UserError(
            f"expected token blocks, or a tokenizer; got text for {info.name}, which has none; give tokenizer=…"
        )
    if not 2 <= context <= info.n_ctx:
        raise UserError(
            f"expected a context of 2 to {info.n_ctx} tokens ({info.name}); got {context}; change --context"
        )
    head = [] if info.bos is None else [info.bos]
    for document, text in enumerate(texts):
        text = text if isinstance(text, str) else text.text
        check_text(text, f"text {document}")
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        step = context - len(head)
        for start in range(0, len(ids), step):
            yield Block(torch.tensor(head + ids[start : start + step], dtype=torch.int64), document)


def given_blocks(tokens: Iterable[Int[Tensor, "seq"]], n_ctx: int, d_vocab: int) -> Iterator[Block]:
    """Blocks that the user tokenised: used exactly as they come, one document each."""
    for number, row in enumerate(tokens):
        row = torch.as_tensor(row).to("cpu", torch.int64)
        if row.ndim != 1 or not 1 <= len(row) <= n_ctx or row.min() < 0 or row.max() >= d_vocab:
            raise UserError(
                f"expected token blocks of 1 to {n_ctx} ids in [0, {d_vocab}); block {number} has shape "
                f"{tuple(row.shape)}, ids {row.min() if row.numel() else '-'} to {row.max() if row.numel() else '-'}"
            )
        yield Block(row, number)


def pad_blocks(blocks: list[Block]) -> PaddedBlocks:
    """Right-pad blocks with token 0 into one tensor."""
    lengths = torch.tensor([len(block.tokens) for block in blocks])
    tokens = torch.nn.utils.rnn.pad_sequence([block.tokens for block in blocks], batch_first=True)
    real = torch.arange(tokens.shape[1])[None] < lengths[:, None]
    return PaddedBlocks(tokens, real, torch.tensor([block.document for block in blocks]))
