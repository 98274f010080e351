"""Text → Shards: run the model as far as the deepest site, keep the activations, write shards that cannot be half there.

Steps, in the order of the code: cut the text into blocks; skip the blocks that an interrupted run already wrote (their
tokens must be the same); run batches of blocks with hooks at the sites, stopping after the last needed layer; drop the
padded rows, refuse non-finite values; hand the rows to the writer, which closes a shard at `shard_mib` and then renews
the manifest.

Position 0 and other massive activations *are* cached: leaving them out is a rule of training (`keep.py`), and
evaluation, statistics and tracing need to see what was left out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from .corpus import BUNDLED, Document, bundled
from .errors import UserError
from .models import model_info
from .shards import Shards
from .sites import resolve_site, stop_layer
from .text import Block, PaddedBlocks, given_blocks, pad_blocks, token_blocks
from .writer import ShardWriter

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MOST_NAMES = 32
JSON_LINE = re.compile(r"(.+\.jsonl(?:\.gz)?):\d+")


def cache(
    model: TransformerBridge,
    texts_or_token_blocks: Iterable[Any],
    sites: Iterable[str],
    folder: str | Path,
    tokens: int = 1_000_000,
    dtype: torch.dtype = torch.bfloat16,
    *,
    context: int = 128,
    batch: int = 8,
    shard_mib: int = 128,
    resume: bool = False,
    progress: bool = True,
    source: str | Sequence[str] | None = None,
) -> Shards:
    """Cache activations of `sites` for at most `tokens` tokens (rows) of text into `folder`; return the opened Shards.

    `texts_or_token_blocks`: strings, Documents, or integer tensors `[seq]` (or one `[batch seq]`) that are used exactly
    as given. `dtype` is the stored one. `context` is the block length in tokens with BOS, `batch` the number of blocks
    in one forward pass, `shard_mib` the size at which a shard is closed. With `resume`, an unfinished folder goes on
    where it stopped. Fewer rows than `tokens` are written when the text is shorter; the manifest says how many. `source`
    says in the manifest what text it was; left out, Documents tell their files, or that they are the bundled ones.

    Raises UserError for an unknown site, empty text, a folder that is in use, another model or text on resume, and
    non-finite activations; what was written before stays usable with `resume`.
    """
    if tokens < 1 or batch < 1:
        raise UserError(
            f"expected at least one token and one block a batch; got tokens={tokens}, batch={batch}; raise it"
        )
    names = list(dict.fromkeys(resolve_site(model, site) for site in sites))
    if not names:
        raise UserError("expected at least one site; got none; for example blocks.12.hook_resid_post")
    text = TextNames(source)
    info = model_info(model)
    writer = ShardWriter(Path(folder), info, names, dtype, tokens, context, shard_mib, resume, text.about)
    if writer.manifest["finished"]:
        return Shards.open(folder)
    blocks = writer.skip_written(_blocks(model, texts_or_token_blocks, context, text))
    bar = tqdm(total=tokens, initial=writer.rows, unit="tok", unit_scale=True, desc="cache", disable=not progress)
    while writer.rows < tokens and (some := list(itertools.islice(blocks, batch))):
        padded = pad_blocks(some)
        before = writer.rows
        writer.add(capture(model, padded, names), padded)
        bar.update(writer.rows - before)
    bar.close()
    writer.finish()
    return Shards.open(folder)


class TextNames:
    """What text it was, for the manifest: what the caller calls it, else the names of the documents that pass.

    Notes at most MOST_NAMES + 1 of them, however many documents there are.
    """

    def __init__(self, source: str | Sequence[str] | None = None):
        self._given = [source] if isinstance(source, str) else source
        self._first: dict[str, int] = {}
        self._bundled: frozenset[Any] = frozenset()

    def passing(self, documents: Iterable[Any]) -> Iterator[Any]:
        """The same documents, each noted as it passes."""
        for number, document in enumerate(documents):
            if len(self._first) <= MOST_NAMES and isinstance(getattr(document, "id", None), str):
                self._first.setdefault(self._name(document), number)
            yield document

    def _name(self, document: Any) -> str:
        self._bundled = self._bundled or frozenset(bundled())
        if isinstance(document, Document) and document in self._bundled:
            return BUNDLED
        line = JSON_LINE.fullmatch(document.id)
        return line[1] if line else document.id

    def about(self, last: int) -> dict[str, Any]:
        """`names`, `more_names` (whether there are others) and `documents` of the text up to the document `last`."""
        names = self._given
        if names is None:
            names = [name for name, first in self._first.items() if first <= last]
        shown = [name[:200].encode("utf-8", "replace").decode() for name in names[:MOST_NAMES]]
        return {"names": shown, "more_names": len(names) > MOST_NAMES, "documents": last + 1}


def _blocks(model: TransformerBridge, source: Iterable[Any], context: int, text: TextNames) -> Iterator[Block]:
    source = iter([source] if isinstance(source, str) else source)
    first = next(source, None)
    if first is None:
        raise UserError("expected text to cache; got none; give texts, Documents or token blocks")
    source = itertools.chain([first], source)
    if isinstance(first, str) or hasattr(first, "text"):
        return token_blocks(model, text.passing(source), context)
    info = model_info(model)
    return given_blocks(source, info.n_ctx, info.d_vocab)


@torch.no_grad()
def capture(model: TransformerBridge, blocks: PaddedBlocks, sites: list[str]) -> dict[str, Tensor]:
    """Activations `[row d]` of `sites` (canonical names) at the real tokens of one batch, in the model's dtype."""
    device = next(model.parameters()).device
    real = blocks.real.to(device)
    rows: dict[str, Tensor] = {}

    def keep(site: str) -> Any:
        def hook(value: Tensor, hook: Any) -> None:
            if value.shape[:2] != real.shape or value.ndim < 3:
                raise UserError(
                    f"expected {site} to be [batch seq …]; got {list(value.shape)}; choose a site with one row a token"
                )
            rows[site] = value.flatten(2)[real].cpu()

        return hook

    hooks: list[Any] = [(site, keep(site)) for site in sites]
    model.run_with_hooks(blocks.tokens.to(device), fwd_hooks=hooks, stop_at_layer=stop_layer(sites))
    for site in sites:
        if site not in rows:
            raise UserError(f"expected {site} to be computed in a forward pass; it never fired; choose another site")
        if not torch.isfinite(rows[site]).all():
            raise UserError(f"expected finite activations at {site}; got NaN or infinity; load the model in float32")
    return rows
