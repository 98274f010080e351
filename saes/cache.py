"""Text → Shards: run the model as far as the deepest site, keep the activations, write shards that cannot be half there.

Steps, in the order of the code: cut the text into blocks; skip the blocks that an interrupted run already wrote (their
tokens must be the same); run batches of blocks with hooks at the sites, stopping after the last needed layer; drop the
padded rows; hand the rows to the writer, whose thread refuses what is not finite, closes a shard at `shard_mib` and then
renews the manifest, while the model reads on.

Position 0 and other massive activations *are* cached: leaving them out is a rule of training (`keep.py`), and
evaluation, statistics and tracing need to see what was left out.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .capture import Capture, capture
from .corpus import BUNDLED, Document, bundled
from .errors import UserError
from .models import ModelInfo, model_info, special_ids
from .packing import assemble, batches, check_packing
from .plain_modules import as_model
from .runs.stopping import Stopping
from .shards.folder import Shards
from .shards.split import Processes
from .shards.writer import ShardWriter
from .sites import resolve_site
from .text import Block, given_blocks, token_blocks

__all__ = ["TextNames", "cache", "capture"]

MOST_NAMES = 32
JSON_LINE = re.compile(r"(.+\.jsonl(?:\.gz)?):\d+")


def cache(
    model: Any,
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
    tokenizer: Any = None,
    pack: bool = False,
    statistics: bool = False,
) -> Shards:
    """Cache activations of `sites` for at most `tokens` tokens (rows) of text into `folder`; return the opened Shards.

    `model` is a TransformerBridge, a Hugging Face causal language model or any torch module that takes tokens `[batch seq]`
    (plain_modules.py), with its `tokenizer` where there is text to cut. `texts_or_token_blocks`: strings, Documents, or
    integer tensors `[seq]` (or one `[batch seq]`) that are used exactly as given. `folder` is a path or an fsspec URL.
    `dtype` is the stored one, `torch.int8` with a scale a row. `context` is the block length in tokens with BOS, `batch` the
    number of blocks in one forward pass, `shard_mib` the size at which a shard is closed. With `resume`, an unfinished folder
    goes on where it stopped. Fewer rows than `tokens` are written when the text is shorter; the manifest says how many.
    `source` says in the manifest what text it was; left out, Documents tell their files, or that they are the bundled ones.
    With `pack`, short documents share a line of `context` tokens, none seeing another (packing.py). With `statistics`, mean,
    variance and the number of massive rows of each site are kept beside the shards (shards/statistics.py). Under torchrun the
    processes share the work (shards/split.py).

    SIGTERM and Ctrl-C end it after the batch under way, with what is written ready for `resume`. Raises UserError for an
    unknown site, empty text, a folder that is in use, another model or text on resume, non-finite activations, a full or
    read-only disk, and a model that cannot be packed; what was written before stays usable with `resume`.
    """
    if tokens < 1 or batch < 1:
        raise UserError(
            f"expected at least one token and one block a batch; got tokens={tokens}, batch={batch}; raise it"
        )
    model = as_model(model, tokenizer)
    names = list(dict.fromkeys(resolve_site(model, site) for site in sites))
    if not names:
        raise UserError("expected at least one site; got none; for example blocks.12.hook_resid_post")
    text = TextNames(source)
    info = model_info(model)
    if pack:
        check_packing(model, names, info.d_vocab)
    with contextlib.ExitStack() as stack:
        processes = Processes.here()
        stack.callback(processes.leave)
        writer = processes.writer(
            folder, info, names, dtype, tokens, context, shard_mib, resume, text.about,
            special=special_ids(model), packed=pack, statistics=statistics,
        )  # fmt: skip
        stack.callback(writer.close)
        if not writer.is_finished:
            blocks = writer.skip_written(_blocks(model, info, texts_or_token_blocks, context, text))
            run = Capture(model, names)
            if processes.world > 1:
                writer.set_widths(run.widths())
            hidden = not progress or processes.rank > 0
            bar = tqdm(total=tokens, initial=writer.rows, unit="tok", unit_scale=True, desc="cache", disable=hidden)
            _run_all(run, writer, blocks, batch, context if pack else None, stack.enter_context(bar))
    return Shards.open(folder)


def _run_all(
    run: Capture, writer: ShardWriter, blocks: Iterator[Block], batch: int, packed_to: int | None, bar: Any
) -> None:
    """Read the blocks and hand over their rows, to the end or until a signal asks to stop."""
    with Stopping() as stopping:
        for some in writer.share(batches(blocks, batch, packed_to)):
            padded = assemble(some, batch, packed_to)
            captured = run(padded)
            writer.add(captured.rows, padded, captured.wait)
            bar.update(writer.rows - bar.n)
            if stopping.signal:
                writer.stop()
                stopping.leave()
        writer.finish()


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


def _blocks(model: Any, info: ModelInfo, source: Iterable[Any], context: int, text: TextNames) -> Iterator[Block]:
    source = iter([source] if isinstance(source, str) else source)
    first = next(source, None)
    if first is None:
        raise UserError("expected text to cache; got none; give texts, Documents or token blocks")
    source = itertools.chain([first], source)
    if isinstance(first, str) or hasattr(first, "text"):
        return token_blocks(model, text.passing(source), context)
    return given_blocks(source, info.n_ctx, info.d_vocab)
