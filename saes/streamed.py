"""Activations straight from the model, never on disk: one forward pass feeds a training run, or all the runs of a sweep.

    train_many(configs, stream(model, texts, ["blocks.4.hook_resid_post"]))

A stream can be gone through once and cannot be wound forward, so what is trained on one cannot be resumed; and its rows come in the
order of the text, so give documents in random order. Both are what Shards are for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .cache import capture
from .errors import UserError
from .models import model_info
from .shards import Batch
from .sites import resolve_site
from .text import pad_blocks, token_blocks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Stream:
    """An iterable of Batches; `about` is the provenance that a dictionary trained on it gets."""

    def __init__(self, batches: Iterator[Batch], about: dict[str, Any]):
        self._batches, self.about = batches, about

    def __iter__(self) -> Iterator[Batch]:
        return self._batches


def stream(
    model: TransformerBridge, texts: Iterable[Any], sites: Iterable[str], *, context: int = 128, batch: int = 8
) -> Stream:
    """Activations of `sites` on texts (strings, or things with a `.text`), `batch` blocks of `context` tokens a forward pass.

    The sites are called what they are called here. UserError for a site that the model lacks, and for non-finite activations.
    """
    named = {site: resolve_site(model, site) for site in sites}
    if not named or batch < 1:
        raise UserError(f"expected at least one site and one block a batch; got {len(named)} and {batch}; name a site")
    about = {"model": model_info(model).dict(), "context": context}
    return Stream(_batches(model, token_blocks(model, texts, context), named, batch), about)


def _batches(model: TransformerBridge, blocks: Iterator[Any], named: dict[str, str], size: int) -> Iterator[Batch]:
    while some := list(itertools.islice(blocks, size)):
        padded = pad_blocks(some)
        rows = capture(model, padded, list(dict.fromkeys(named.values())))
        yield Batch({name: rows[site] for name, site in named.items()}, *padded.rows())
