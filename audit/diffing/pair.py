"""Two models that read the same tokens: which they are, whether they can be compared, and their activations side by side.

    models = Models(base, "my-tuned-model")
    both   = read_pair(models, texts, ("blocks.6.hook_resid_post",) * 2, folder)          sites a:blocks.6… and b:blocks.6…

A model is a TransformerBridge, or a name, in which case it is loaded when it is wanted and let go when the other one is: two
names never stand in memory together. Both read the same token blocks, cut by A's tokenizer. Two tokenizers are the same if their
vocabularies are; else an `alignment` says which id of B stands for each id of A, and where it says nothing the text may not use that id.
Activations are kept in float32: what two models differ by is often less than bfloat16 can hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...saes import ModelInfo, Shards, UserError, cache, join_shards, load_model, model_info, resolve_site
from ...saes.joined import JoinedShards
from ...saes.text import token_blocks

SIDES: tuple[str, str] = ("a", "b")
Alignment = Mapping[int, int] | Tensor


class Models:
    """Model A (as it was) and model B (tuned): `get("a")` is the model, `info("a")` says which it is."""

    def __init__(self, a: Any, b: Any, alignment: Alignment | None = None, device: str | torch.device | None = None):
        self._given: dict[str, Any] = dict(zip(SIDES, (a, b), strict=True))
        self._device = device
        self._loaded: tuple[str, Any] | None = None
        self._infos: dict[str, ModelInfo] = {side: model_info(self.get(side)) for side in SIDES}
        self.alignment = None if alignment is None else alignment_table(alignment, self.info("a"), self.info("b"))
        check_pair(self.info("a"), self.info("b"), self.alignment)

    def get(self, side: str) -> Any:
        """The model of a side; one that was given by name is loaded, and the other one that was is let go."""
        given = self._given[side]
        if not isinstance(given, str):
            return given
        names = {own: name for own, name in self._given.items() if isinstance(name, str)}
        if self._loaded is None or names[self._loaded[0]] != given:
            self._loaded = None  # before the next one comes
            self._loaded = (side, load_model(given, self._device, torch.float32))
        return self._loaded[1]

    def info(self, side: str) -> ModelInfo:
        """Which model it is."""
        return self._infos[side]

    @property
    def is_same_width(self) -> bool:
        """Whether the residual streams have one width."""
        return self.info("a").d_model == self.info("b").d_model

    def shared_ids(self) -> tuple[Int[Tensor, "shared"], Int[Tensor, "shared"]]:
        """The ids, in A and in B, of the tokens that both can say."""
        if self.alignment is None:
            ids = torch.arange(min(self.info("a").d_vocab, self.info("b").d_vocab))
            return ids, ids
        ids = (self.alignment >= 0).nonzero().squeeze(1)
        return ids, self.alignment[ids]

    def tokens_of(self, side: str, tokens: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Ids of A as this side reads them; UserError for one without a counterpart."""
        if side == "a" or self.alignment is None:
            return tokens
        read = self.alignment[tokens]
        if bool((read < 0).any()):
            raise UserError(
                f"expected an alignment of every token of the text; id {int(tokens[read < 0][0])} of {self.info('a').name} "
                "has no counterpart; add it, or leave that text out"
            )
        return read


def alignment_table(given: Alignment, a: ModelInfo, b: ModelInfo) -> Int[Tensor, "vocab"]:
    """For each id of A the id of B that stands for it, -1 for none; UserError for ids that a model does not have."""
    pairs = dict(enumerate(given.flatten().tolist())) if isinstance(given, Tensor) else dict(given)
    is_right = all(_is_id(key, 0, a.d_vocab) and _is_id(value, -1, b.d_vocab) for key, value in pairs.items())
    if not pairs or not is_right:
        raise UserError(
            f"expected an alignment from ids below {a.d_vocab} ({a.name}) to ids below {b.d_vocab} ({b.name}); got "
            f"{len(pairs)} pairs that reach outside or are no whole numbers, or none; give {{id of A: id of B}}"
        )
    table = torch.full((a.d_vocab,), -1, dtype=torch.int64)
    table[torch.tensor(list(pairs))] = torch.tensor(list(pairs.values()))
    return table


def _is_id(value: Any, least: int, stop: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < stop


def check_pair(a: ModelInfo, b: ModelInfo, alignment: Int[Tensor, "vocab"] | None) -> None:
    """UserError unless both models can read the same token blocks."""
    if alignment is None and a.tokenizer != b.tokenizer:
        raise UserError(
            f"expected two models that share a tokenizer; {a.name} has {a.tokenizer[:8]} and {b.name} has {b.tokenizer[:8]}; "
            "give alignment={id of A: id of B}, or compare a model with its own fine-tune"
        )
    expected = a.bos if alignment is None or a.bos is None else int(alignment[a.bos])
    if expected != b.bos:
        raise UserError(
            f"expected two models with one BOS rule; {a.name} puts {a.bos} in front, which {b.name} reads as {expected}, and "
            f"{b.name} puts {b.bos}; a text would not be the same text to both; choose models with the same rule"
        )


def read_pair(
    models: Models,
    texts: Sequence[Any],
    sites: tuple[str, str],
    folder: str | Path,
    tokens: int = 200_000,
    *,
    context: int = 128,
    batch: int = 8,
    progress: bool = True,
) -> JoinedShards:
    """Activations of A at `sites[0]` and of B at `sites[1]` over the same rows, in `folder`, one model after the other.

    What is there already, of the same models, text, sites and lengths, is not read again. UserError for unknown sites, text that
    is too short, and tokens without a counterpart.
    """
    parts: dict[str, Shards] = {}
    for side, site in zip(SIDES, sites, strict=True):
        model = models.get(side)
        site = resolve_site(model, site)
        about = (models.info(side).fingerprint, models.info("a").tokenizer, site, tokens, context, side)
        place = Path(folder) / f"{side}-{named_by(about, texts)}"
        source = [getattr(text, "id", f"text {number}") for number, text in enumerate(texts)]
        options: dict[str, Any] = {"context": context, "batch": batch, "resume": True, "progress": progress}
        read: Any = texts
        if side == "b" and models.alignment is not None:
            blocks = token_blocks(models.get("a"), texts, context)
            read = [models.tokens_of("b", block.tokens) for block in blocks]
            model = models.get("b")
        parts[side] = cache(model, read, [site], place, tokens, torch.float32, source=source, **options)
    return joined_pair(parts, models)


def joined_pair(parts: Mapping[str, Shards], models: Models) -> JoinedShards:
    """Both sides as one; with an alignment, tokens and documents are A's."""
    if models.alignment is None:
        return join_shards(parts)
    a, b = parts["a"], parts["b"]
    is_same = len(a) == len(b) and bool((a.positions == b.positions).all())
    if not is_same or not bool((models.tokens_of("b", a.tokens) == b.tokens).all()):
        raise UserError(
            "expected the same rows of both models under the alignment; got others; remove the folder of activations"
        )
    return JoinedShards(parts)


def named_by(about: tuple[Any, ...], texts: Sequence[Any]) -> str:
    """A short name of the models, settings and text that activations depend on."""
    digest = hashlib.blake2b(repr(about).encode(), digest_size=6)
    for text in texts:
        encoded = (text if isinstance(text, str) else text.text).encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
