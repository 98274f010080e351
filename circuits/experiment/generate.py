"""Let the model go on writing while features are edited.

One pass over the prompt, then one new token at a time through the key-value cache. Edits at positions of the prompt act once,
when the prompt is read (the cache remembers what they did); edits with `slice(p, None)` go on at every new token. Attention
can be frozen for the prompt only: new tokens have no unmodified pattern to be held at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ...saes.models import model_info
from ..trace import prompt_tokens
from ..tracing.frozen import quiet
from .constrained import freezing, hold
from .edits import Catalogue, Edit, edit_list
from .interventions import Editing, resolve

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Generated(NamedTuple):
    """The text that was added, its token ids, and the logits that each was drawn from."""

    text: str
    tokens: Int[Tensor, "new"]
    logits: Float[Tensor, "new vocab"]


def generate(
    model: TransformerBridge,
    prompt: str | Tensor,
    edits: Edit | Iterable[Edit] = (),
    dictionaries: Any = None,
    *,
    tokens: int = 20,
    freeze_attention: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
    use_cache: bool = True,
) -> Generated:
    """At most `tokens` new tokens after `prompt` with `edits` in force; stops after the tokenizer's end-of-text token.

    temperature 0 takes the likeliest token; otherwise tokens are drawn from softmax(logits / temperature) with `seed`.
    `use_cache=False` reads the whole text again for every token: the same result, slower (frozen attention needs the cache).
    Raises UserError for edits that do not fit, or when prompt and new tokens exceed the model's context.
    """
    catalogue = Catalogue(model, dictionaries)
    ids = prompt_tokens(model, prompt)
    _check(model, len(ids), tokens, temperature, freeze_attention and not use_cache)
    held = hold(catalogue, ids, freezing(model, attention=True)) if freeze_attention else None
    editing = Editing(catalogue, resolve(catalogue, ids, [edit_list(edits)]), held)
    end = getattr(model.tokenizer, "eos_token_id", None)
    generator = torch.Generator().manual_seed(seed)
    chosen: list[Tensor] = []
    rows: list[Tensor] = []
    cache: Any = None
    with torch.no_grad(), quiet(), model.hooks(fwd_hooks=editing.hooks()):
        while len(chosen) < tokens and not (chosen and int(chosen[-1]) == end):
            text = torch.cat([ids, *chosen])
            editing.start = len(text) - 1 if cache is not None else 0
            if use_cache:
                logits, cache = model(
                    text[None, editing.start :], return_type="logits_and_cache", past_key_values=cache, use_cache=True
                )
            else:
                logits = model(text[None])
            rows.append(logits[0, -1])
            chosen.append(_draw(rows[-1], temperature, generator).to(ids))
    new = torch.cat(chosen)
    return Generated(model.tokenizer.decode(new, clean_up_tokenization_spaces=False), new, torch.stack(rows))


def _check(model: TransformerBridge, length: int, tokens: int, temperature: float, is_uncached_freeze: bool) -> None:
    if tokens < 1 or not 0 <= temperature < float("inf"):
        raise UserError(f"expected at least 1 token and a temperature of 0 or more; got {tokens} and {temperature}")
    if length + tokens > model_info(model).n_ctx:
        raise UserError(
            f"expected at most {model_info(model).n_ctx} tokens, prompt included; got {length} + {tokens}; ask for fewer"
        )
    if is_uncached_freeze:
        raise UserError("expected use_cache=True with freeze_attention=True: attention is frozen for the prompt alone")


def _draw(logits: Float[Tensor, "vocab"], temperature: float, generator: torch.Generator) -> Int[Tensor, "1"]:
    if temperature == 0:
        return logits.argmax()[None]
    shares = (logits.double() / temperature).softmax(-1).cpu()
    return torch.multinomial(shares, 1, generator=generator)
