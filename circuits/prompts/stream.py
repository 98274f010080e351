"""The model goes on writing, handed out token by token as it writes: unmodified, with edits, or both side by side.

As `generate`, with which it agrees token for token: one pass over the prompt, then one new token at a time through the key-value
cache; edits at positions of the prompt act once, edits with an open slice at every new token; attention can be frozen for the
prompt only. The hooks stand in the model only while a token is made, so that between two tokens the model is free for others, and
an iterator that is closed or dropped leaves nothing behind.

A token may end inside a character of several bytes. Its piece then is empty, and the character comes with the token that completes
it: the pieces of one run, joined, are the text that `generate` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...saes.errors import UserError
from ..experiment.constrained import freezing, hold
from ..experiment.edits import Catalogue, Edit, edit_list
from ..experiment.generate import _check, _draw
from ..experiment.interventions import Editing, resolve
from ..tracing.frozen import quiet
from .text import Prompt, prompt_ids

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RUNS = ("base", "changed")


class Piece(NamedTuple):
    """One new token: of which run, its text (empty while a character is incomplete), id, and probability at temperature 1."""

    run: str
    text: str
    token: int
    probability: float


def stream(
    model: TransformerBridge,
    text: Prompt,
    edits: Edit | Iterable[Edit] = (),
    dictionaries: Any = None,
    *,
    tokens: int = 20,
    freeze_attention: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
    runs: Iterable[str] = ("changed",),
) -> Iterator[Piece]:
    """At most `tokens` new tokens per run, each as soon as it is made; a run stops after the tokenizer's end-of-text token.

    `runs`: "changed" (with the edits), "base" (without), or both, which then take turns; each draws with `seed`, so that they part
    only where the edits change something. What does not fit raises UserError here, before the first token is asked for.
    """
    wanted = tuple(runs)
    if not wanted or not set(wanted) <= set(RUNS) or len(set(wanted)) < len(wanted):
        raise UserError(
            f"expected runs of {' and '.join(RUNS)}; got {', '.join(map(str, wanted)) or 'none'}; name each once"
        )
    catalogue, ids = Catalogue(model, dictionaries), prompt_ids(model, text)
    _check(model, len(ids), tokens, temperature, False)
    given = edit_list(edits)
    plans = {name: resolve(catalogue, ids, [given if name == "changed" else []]) for name in wanted}

    def writers() -> list[_Writer]:
        held = (
            hold(catalogue, ids, freezing(model, attention=True)) if freeze_attention and "changed" in plans else None
        )
        return [
            _Writer(name, ids, Editing(catalogue, plan, held if name == "changed" else None), temperature, seed)
            for name, plan in plans.items()
        ]

    return _turns(writers, tokens)


def _turns(start: Callable[[], list[_Writer]], tokens: int) -> Iterator[Piece]:
    active = None
    for number in range(tokens):
        active = start() if active is None else [writer for writer in active if not writer.is_done]
        for writer in active:
            yield writer.write(is_last=number + 1 == tokens)


class _Writer:
    """One run: its tokens so far and its cache."""

    def __init__(self, name: str, ids: Tensor, editing: Editing, temperature: float, seed: int):
        self.name, self.ids, self.editing, self.temperature = name, ids, editing, temperature
        self.generator = torch.Generator().manual_seed(seed)
        self.model = editing.catalogue.model
        self.new: list[int] = []
        self.told = ""
        self.is_done = False
        self._cache: Any = None

    def write(self, is_last: bool) -> Piece:
        """One more token."""
        fresh = self.ids if self._cache is None else self.ids.new_tensor(self.new[-1:])
        self.editing.start = len(self.ids) + len(self.new) - len(fresh)
        with torch.no_grad(), quiet(), self.model.hooks(fwd_hooks=self.editing.hooks()):
            logits, self._cache = self.model(
                fresh[None], return_type="logits_and_cache", past_key_values=self._cache, use_cache=True
            )
            row = logits[0, -1]
            token = int(_draw(row, self.temperature, self.generator))
        self.new.append(token)
        self.is_done = is_last or token == getattr(self.model.tokenizer, "eos_token_id", None)
        if self.is_done:
            self._cache = None
        return Piece(self.name, self._piece(), token, float(row.double().softmax(-1)[token]))

    def _piece(self) -> str:
        """What the last token adds to the text; nothing while it ends inside a character."""
        tokenizer: Any = self.model.tokenizer
        text = tokenizer.decode(self.new, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and not self.is_done:
            return ""
        piece, self.told = text[len(self.told) :], text
        return piece
