"""Documents and queries by meaning, as the target model itself has it.

A text is the mean of the residual stream after the middle block over its first FIRST tokens (the BOS is none of them: what stands there
says nothing of the text), less the mean of the corpus, which all texts share, and the score of two texts is the cosine. The model was
not trained for it: docs/audit-tools.md says how well it finds what belongs together.

Beside a query stand CONTROLS texts of the same number of tokens from documents of the corpus, drawn by the seed, as queries of their own:
what they reach with a document is what any text reaches with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ....saes import Document, UserError, model_info, to_tokens
from ....saes.capture import capture
from ....saes.text import Block, pad_blocks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FIRST, MOST, BATCH = 128, 2_048, 16
CONTROLS = 32
CHARACTERS = 8  # of a text for each token that is read: more are seldom one


@dataclass(frozen=True, eq=False)
class Meanings:
    """The corpus as directions: `numbers` says which document each row is."""

    rows: Float[Tensor, "document d"]
    mean: Float[Tensor, "d"]
    numbers: list[int]
    site: str

    def scores(self, x: Float[Tensor, "query d"]) -> Float[Tensor, "query document"]:
        """The cosine of each query with each document, the corpus' mean taken away."""
        return directions(x - self.mean) @ self.rows.T


def directions(x: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    """Rows of length 1; what is 0 stays so."""
    return torch.nn.functional.normalize(x, dim=1)


def chosen(corpus: Sequence[Document]) -> list[int]:
    """The documents that are read: all, or MOST spread evenly."""
    readable = [number for number, each in enumerate(corpus) if each.text.strip()]
    count = min(MOST, len(readable))
    return [readable[place * len(readable) // count] for place in range(count)]


def documents_read(corpus: Sequence[Document]) -> int:
    """The most tokens that reading the corpus takes."""
    return FIRST * len(chosen(corpus))


def read_meanings(model: TransformerBridge, corpus: Sequence[Document]) -> Meanings:
    """Read the corpus; UserError for fewer than 2 documents with text."""
    numbers = chosen(corpus)
    if len(numbers) < 2:
        raise UserError(
            f"expected a corpus of at least 2 documents with text; got {len(numbers)}; search by words instead"
        )
    site = f"blocks.{model_info(model).n_layers // 2}.hook_resid_post"
    x = means(model, [corpus[number].text for number in numbers], site)
    mean = x.mean(0)
    return Meanings(directions(x - mean), mean, numbers, site)


class Query(NamedTuple):
    """A text's scores with the documents, and how many of its tokens were read."""

    scores: Float[Tensor, "document"]
    tokens: int


def asked(model: TransformerBridge, known: Meanings, text: str) -> Query:
    """The scores of one text."""
    tokens = min(len(to_tokens(model, text)) - 1, FIRST)
    return Query(known.scores(means(model, [text], known.site))[0], max(tokens, 1))


@torch.no_grad()
def means(model: TransformerBridge, texts: Sequence[str], site: str, most: int = FIRST) -> Float[Tensor, "text d"]:
    """The mean activation over the first `most` tokens of each text after the BOS (or first token)."""
    known: Any = model_info(model)
    room = min(most + 1, int(model.cfg.n_ctx))
    blocks = [
        Block(to_tokens(model, text[: most * CHARACTERS])[:room].cpu(), number) for number, text in enumerate(texts)
    ]
    order = sorted(range(len(blocks)), key=lambda number: len(blocks[number].tokens))  # little padding in each batch
    found = torch.zeros(len(texts), known.d_model, dtype=torch.float64)
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        x = capture(model, pad_blocks([blocks[number] for number in some]), [site])[site].double().cpu()
        for number, rows in zip(some, x.split([len(blocks[number].tokens) for number in some]), strict=True):
            found[number] = (rows[1:] if len(rows) > 1 else rows).mean(0)
    return found


class Beside(NamedTuple):
    """What other texts reach with each document: `p` of the query's scores among theirs, and the best score of each of them.

    `chance` is how many documents have a p of at most `level` by chance.
    """

    p: Float[Tensor, "document"]
    best: Float[Tensor, "query"]
    chance: float


def beside_others(
    model: TransformerBridge, known: Meanings, corpus: Sequence[Document], query: Query, seed: int, level: float
) -> Beside:
    """The beginnings of CONTROLS documents as queries as long as this one; a text is no control with its own document."""
    order = torch.randperm(len(known.numbers), generator=torch.Generator().manual_seed(seed))[:CONTROLS]
    texts = [corpus[known.numbers[row]].text for row in order.tolist()]
    found = known.scores(means(model, texts, known.site, query.tokens))
    found[torch.arange(len(order)), order] = -torch.inf
    among = torch.full((len(known.numbers),), 1.0 + len(order), dtype=torch.float64)
    among[order] -= 1
    p = (1 + (found >= query.scores).sum(0)) / among
    return Beside(p, found.amax(1).sort().values, float(((level * among).floor() / among).sum()))
