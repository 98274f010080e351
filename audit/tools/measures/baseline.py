"""The baseline: what latents do on ordinary text, so that a number can be told beside what is usual.

About TOKENS tokens of the workspace's corpus (where it has enough documents, else of the corpus that comes with the package) are read
once per dictionary and model: the first block of documents that are spread evenly over the corpus, so that every kind of text is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....circuits.parts import Part
from ....saes import Codes, Document, UserError, bundled, resolve_site, token_strings
from ....saes.capture import capture
from ....saes.text import Block, pad_blocks, token_blocks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOKENS, CONTEXT, BATCH = 4_096, 64, 16
LEAST_DOCUMENTS = 8


@dataclass(frozen=True, eq=False)
class Baseline:
    """Codes of the kept tokens of the baseline text, with each token's id, its document and its place in the text that was read."""

    codes: Codes
    rows: Int[Tensor, "row"]
    documents: Int[Tensor, "row"]
    tokens: Int[Tensor, "token"]
    block_of: Int[Tensor, "token"]
    latents: int
    texts: int
    model: Any

    def __len__(self) -> int:
        return len(self.rows)

    def sums(self) -> Float[Tensor, "latent"]:
        """The summed activation of each latent."""
        out = torch.zeros(self.latents, dtype=torch.float64)
        return out.index_add_(0, self.codes.indices.flatten(), self.codes.values.flatten().double())

    def counts(self) -> Int[Tensor, "latent"]:
        """The tokens on which each latent fires."""
        return torch.bincount(self.codes.indices[self.codes.values > 0], minlength=self.latents)

    def largest(self) -> Float[Tensor, "latent"]:
        """The largest value of each latent."""
        out = torch.zeros(self.latents, dtype=torch.float64)
        return out.scatter_reduce_(0, self.codes.indices.flatten(), self.codes.values.flatten().double(), "amax")

    def of(self, latent: int) -> Float[Tensor, "row"]:
        """The activations of one latent, 0 where it is silent."""
        return (self.codes.values * (self.codes.indices == latent)).sum(1)

    def document_means(self) -> Float[Tensor, "document latent"]:
        """The mean activation of each latent over the kept tokens of each document."""
        out = torch.zeros(self.texts * self.latents, dtype=torch.float64)
        places = self.documents[:, None] * self.latents + self.codes.indices
        out.index_add_(0, places.flatten(), self.codes.values.flatten().double())
        tokens = torch.bincount(self.documents, minlength=self.texts).clamp_min(1)
        return out.view(self.texts, self.latents) / tokens[:, None]

    def strings(self, ids: Int[Tensor, "token"]) -> list[str]:
        """The strings of token ids."""
        return token_strings(self.model, ids)

    def window(self, row: int, before: int = 12, after: int = 4) -> tuple[list[str], int]:
        """The tokens around a row, as strings, and which of them it is; nothing beyond its block."""
        place = int(self.rows[row])
        start = max(place - before, 0)
        inside = (self.block_of[start : place + after + 1] == self.block_of[place]).nonzero()[:, 0] + start
        return self.strings(self.tokens[inside]), place - int(inside[0])


def neutral(corpus: Sequence[Document]) -> list[Document]:
    """The documents that the baseline is read on."""
    readable = [each for each in corpus if each.text and not each.text.isspace()]
    return readable if len(readable) >= LEAST_DOCUMENTS else bundled()


def read_baseline(model: TransformerBridge, part: Part, documents: Sequence[Document]) -> Baseline:
    """Read the text; UserError where the dictionary does not fit the model, or nothing of the text is kept."""
    blocks = baseline_blocks(model, documents)
    codes: list[Codes] = []
    kept: list[Tensor] = []
    for start in range(0, len(blocks), BATCH):
        found, mask = encode_blocks(model, part, blocks[start : start + BATCH])
        codes.append(found)
        kept.append(mask)
    width = max(each.values.shape[1] for each in codes)
    padded = [[torch.nn.functional.pad(half, (0, width - half.shape[1])) for half in each] for each in codes]
    values, indices = (torch.cat(column) for column in zip(*padded, strict=True))
    rows = torch.cat(kept).nonzero()[:, 0]
    if not len(rows):
        raise UserError("expected baseline text with tokens that the dictionary answers for; got none; give more text")
    block_of = torch.cat([torch.full((len(block.tokens),), number) for number, block in enumerate(blocks)])
    tokens = torch.cat([block.tokens for block in blocks])
    return Baseline(
        Codes(values[rows], indices[rows]), rows, block_of[rows], tokens, block_of, part.latents, len(blocks), model
    )


def baseline_blocks(model: TransformerBridge, documents: Sequence[Document]) -> list[Block]:
    """The first block of documents spread evenly, TOKENS tokens or a little more; a document is known by its block's number."""
    chosen = evenly(documents, TOKENS // CONTEXT)
    texts = [each.text[: CONTEXT * 40] for each in chosen]
    first: dict[int, Block] = {}
    for block in token_blocks(model, texts, min(CONTEXT, int(model.cfg.n_ctx))):
        first.setdefault(block.document, block)
    blocks = [block.tokens for block in first.values() if len(block.tokens) > 1]
    if not blocks:
        raise UserError("expected baseline text with documents of two tokens or more; got none; give longer texts")
    return [Block(tokens, number) for number, tokens in enumerate(blocks)]


def evenly(documents: Sequence[Document], number: int) -> list[Document]:
    """At most `number` of the documents, spread over all."""
    if len(documents) <= number:
        return list(documents)
    return [documents[place * len(documents) // number] for place in range(number)]


@torch.no_grad()
def encode_blocks(model: TransformerBridge, part: Part, blocks: list[Block]) -> tuple[Codes, Bool[Tensor, "row"]]:
    """The codes of the rows of a few blocks in one batch, and which rows the dictionary answers for."""
    sites = {name: resolve_site(model, name) for name in (part.read, *part.W_dec)}
    padded = pad_blocks(blocks)
    seen = capture(model, padded, list(dict.fromkeys(sites.values())))
    tokens, positions, _ = padded.rows()
    known = {name: seen[site] for name, site in sites.items()}
    x = known[part.read]
    if x.shape[1] != part.W_enc.shape[1]:
        raise UserError(
            f"expected a dictionary of width {x.shape[1]} at {part.read}; got one of {part.W_enc.shape[1]}; name another"
        )
    codes = part.encode(x.to(part.W_enc.device, part.W_enc.dtype)).cpu()
    return codes, part.kept(positions, known, tokens).cpu()
