"""Several short blocks in one line of a forward pass, none of which sees another: short documents without padding.

    padded:  <s> a b . . . . .        packed:  <s> a b <s> c d e <s>
             <s> c d e . . . .        positions 0  1 2  0  1 2 3  0

Each block goes into the first line of the batch that has room, so rows are the same as unpacked, in the order of the text;
positions begin anew with each block, and the model keeps to itself what belongs to another. transformers builds such a mask
from positions that begin anew, where no mask and no cache of keys is given; not every architecture passes them on, so
`check_packing` compares a packed line with its blocks alone before anything is cached.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .capture import Capture
from .errors import UserError
from .text import Block, PackedBlocks, PaddedBlocks, pad_blocks

TRIED = 12  # tokens of each of the two blocks that are tried
# Largest error of a row, relative to its norm: what rounding does, where another's tokens change a row by far more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
LOOSE = 5e-2  # in bfloat16 and float16


def batches(blocks: Iterator[Block], batch: int, packed_to: int | None = None) -> Iterator[list[Block]]:
    """The blocks of each forward pass: `batch` of them, or as many as find room in `batch` lines of `packed_to` tokens."""
    if packed_to is None:
        while some := list(itertools.islice(blocks, batch)):
            yield some
        return
    some, used = [], [0] * batch
    for block in blocks:
        if len(block.tokens) > packed_to:
            raise UserError(
                f"expected blocks of at most {packed_to} tokens to pack; got one of {len(block.tokens)}; raise the context"
            )
        line = _line(block, used, packed_to)
        if line is None:
            yield some
            some, used, line = [], [0] * batch, 0
        some.append(block)
        used[line] += len(block.tokens)
    if some:
        yield some


def assemble(blocks: list[Block], batch: int, packed_to: int | None = None) -> PaddedBlocks | PackedBlocks:
    """The tensors of one forward pass over what `batches` gave."""
    return pad_blocks(blocks) if packed_to is None else pack_blocks(blocks, batch, packed_to)


def pack_blocks(blocks: list[Block], batch: int, length: int) -> PackedBlocks:
    """Put blocks into at most `batch` lines of `length` tokens, each into the first with room; UserError where one has none."""
    used = [0] * batch
    starts = []
    for block in blocks:
        line = _line(block, used, length)
        if line is None:
            raise UserError(
                f"expected blocks that fit {batch} lines of {length} tokens; got more; raise context or batch"
            )
        starts.append(line * length + used[line])
        used[line] += len(block.tokens)
    tokens, positions = torch.zeros(2, batch * length, dtype=torch.int64)
    positions += torch.arange(length).repeat(batch)  # padding: a block of its own after the last
    order = torch.cat([torch.arange(len(block.tokens)) + start for block, start in zip(blocks, starts, strict=True)])
    tokens[order] = torch.cat([block.tokens for block in blocks])
    positions[order] = torch.cat([torch.arange(len(block.tokens)) for block in blocks])
    for line, end in enumerate(used):
        positions[line * length + end : (line + 1) * length] = torch.arange(length - end)
    lines = sum(count > 0 for count in used)
    documents = torch.cat([torch.full((len(block.tokens),), block.document) for block in blocks])
    shape = (batch, length)
    return PackedBlocks(tokens.view(shape)[:lines], positions.view(shape)[:lines], order, documents, len(blocks))


def _line(block: Block, used: list[int], length: int) -> int | None:
    """The first line with room for the block."""
    return next((line for line, count in enumerate(used) if count + len(block.tokens) <= length), None)


def check_packing(model: Any, sites: list[str], d_vocab: int) -> None:
    """UserError unless the rows of two packed blocks are those of each block alone, at every site."""
    ids = torch.arange(2 * TRIED) * 7 % min(d_vocab, 5000)
    blocks = [Block(ids[:TRIED], 0), Block(ids[TRIED:], 1)]
    run = Capture(model, sites)
    packed = _rows(run, pack_blocks(blocks, 1, 2 * TRIED))
    alone = [_rows(run, pad_blocks([block])) for block in blocks]
    for site, rows in packed.items():
        expected = torch.cat([one[site] for one in alone])
        wrong = (rows.double() - expected.double()).norm(dim=1) / expected.double().norm(dim=1).clamp_min(1e-12)
        if not wrong.max() <= TOLERANCE.get(rows.dtype, LOOSE):
            raise UserError(
                f"expected a model that keeps packed documents apart; at {site} rows of the second change by "
                f"{float(wrong.max()):.2g} of their norm when it is packed behind the first; cache without packing"
            )


def _rows(run: Capture, blocks: PaddedBlocks | PackedBlocks) -> dict[str, Tensor]:
    captured = run(blocks)
    captured.wait()
    return captured.rows
