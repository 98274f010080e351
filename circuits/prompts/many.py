"""Many prompts continued together: rows are padded after what all begin with, and one new token of each is made at a time.

A row alone and the same row in a batch agree but for rounding, so the same calls must ask for the same rows. A model that is no bridge
over a transformers model reads every row again for each token, which only small models should have to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..experiment.generate import _draw
from ..tracing.frozen import quiet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROWS = 48  # continued together
LONG = 8  # tokens that a shared beginning must have to be read once for all
Ended = Callable[[list[int]], bool]


def write_ids(
    model: TransformerBridge,
    prompts: Sequence[Int[Tensor, "_"]],
    tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stops: Sequence[str] = (),
) -> list[list[int]]:
    """The ids of at most `tokens` new tokens after each prompt's, likeliest or drawn with `seed`.

    A row ends with the tokenizer's end-of-text token, or with the token that completes one of the texts `stops`. torch's own generator is
    left as it was. The caller sees to it that there is room in the context.
    """
    if tokens < 1 or not prompts:
        return [[] for _ in prompts]
    is_ended = _ending(model, stops)
    if not hasattr(getattr(model, "original_model", None), "generate"):
        return _read_again(model, prompts, tokens, temperature, seed, is_ended)
    found: list[list[int]] = []
    for start in range(0, len(prompts), ROWS):
        rows = prompts[start : start + ROWS]
        found += _generated(model, rows, tokens, temperature, seed + start, is_ended if stops else None)
    return [_until(row, is_ended) for row in found]


def next_tokens(model: TransformerBridge, prompts: Sequence[Int[Tensor, "_"]]) -> Float[Tensor, "prompt vocab"]:
    """log p of the token after each prompt, float32 on the CPU."""
    if not hasattr(getattr(model, "original_model", None), "generate"):
        return torch.stack([_after(model, ids) for ids in prompts])
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    parts = [prompts[start : start + ROWS] for start in range(0, len(prompts), ROWS)]
    return torch.cat([_continued(model, part, 1, options).logits[0].float().log_softmax(-1).cpu() for part in parts])


@torch.no_grad()
def _after(model: TransformerBridge, ids: Int[Tensor, "token"]) -> Float[Tensor, "vocab"]:
    with quiet():
        return model(ids[None])[0, -1].float().log_softmax(-1).cpu()


def shared_prefix(rows: Sequence[Int[Tensor, "_"]]) -> int:
    """How many tokens all rows begin with, if that is LONG or more and there are several rows; else 0. Each row keeps one of its own."""
    least = min(map(len, rows)) - 1
    if len(rows) < 2 or least < LONG:
        return 0
    table = torch.stack([row[:least].cpu() for row in rows])
    same = (table == table[:1]).all(0).long().cumprod(0)
    count = int(same.sum())
    return count if count >= LONG else 0


def _ending(model: TransformerBridge, stops: Sequence[str]) -> Ended:
    tokenizer: Any = model.tokenizer
    end = tokenizer.eos_token_id
    reach = 4 * max(map(len, stops), default=0) + 1  # a character has at most four tokens

    def is_ended(new: list[int]) -> bool:
        if new[-1] == end:
            return True
        text = tokenizer.decode(new[-reach:], clean_up_tokenization_spaces=False) if stops else ""
        return any(stop in text for stop in stops)

    return is_ended


def _until(row: list[int], is_ended: Ended) -> list[int]:
    """The row up to where it ended: what stands behind is padding."""
    ends = (place for place in range(1, len(row) + 1) if is_ended(row[:place]))
    return row[: next(ends, len(row))]


@torch.no_grad()
def _read_again(
    model: TransformerBridge,
    prompts: Sequence[Int[Tensor, "_"]],
    tokens: int,
    temperature: float,
    seed: int,
    is_ended: Ended,
) -> list[list[int]]:
    """Row i draws with `seed` + i, so that no row hangs on the others; padding stands behind, where a causal model does not see it."""
    device = next(model.parameters()).device
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
    new: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for _ in range(tokens):
        for start in range(0, len(going), ROWS):
            some = going[start : start + ROWS]
            rows = [torch.cat([prompts[i].cpu(), torch.tensor(new[i], dtype=torch.int64)]) for i in some]
            with quiet():
                logits: Float[Tensor, "row token vocab"] = model(
                    torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
                )
            for line, (i, row) in enumerate(zip(some, rows, strict=True)):
                new[i].append(int(_draw(logits[line, len(row) - 1], temperature, generators[i])))
        going = [i for i in going if not is_ended(new[i])]
        if not going:
            break
    return new


def _generated(
    model: TransformerBridge,
    rows: Sequence[Int[Tensor, "_"]],
    tokens: int,
    temperature: float,
    seed: int,
    is_ended: Ended | None,
) -> list[list[int]]:
    options: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    widest = max(map(len, rows))
    if is_ended is not None:
        options["stopping_criteria"] = [_criterion(is_ended, widest)]
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return _continued(model, rows, tokens, options)[:, widest:].tolist()


@torch.no_grad()
def _continued(model: TransformerBridge, rows: Sequence[Int[Tensor, "_"]], tokens: int, options: dict[str, Any]) -> Any:
    """What transformers generates after the rows, which are padded between what all begin with and what is their own."""
    tokenizer: Any = model.tokenizer
    end = tokenizer.eos_token_id
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end or 0)
    widest, shared = max(map(len, rows)), shared_prefix(rows)
    ids = torch.full((len(rows), widest), int(padding))
    real = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        ids[line, :shared], real[line, :shared] = row[:shared].cpu(), 1
        ids[line, widest - len(row) + shared :] = row[shared:].cpu()
        real[line, widest - len(row) + shared :] = 1
    device = next(model.parameters()).device
    hidden: Any = model.original_model
    before: dict[str, Any] = {}
    if shared:  # a chat template's system message is most of a short question: it is read once
        before["past_key_values"] = hidden(ids[:1, :shared].to(device), use_cache=True).past_key_values
        before["past_key_values"].batch_repeat_interleave(len(rows))
    with _plain_decoding(hidden):
        return hidden.generate(
            ids.to(device),
            attention_mask=real.to(device),
            max_new_tokens=tokens,
            pad_token_id=int(padding),
            eos_token_id=end,
            **before,
            **options,
        )


def _criterion(is_ended: Ended, widest: int) -> Callable[..., Bool[Tensor, "row"]]:
    """A stopping criterion of transformers: which rows have ended."""

    def ended(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor([is_ended(row) for row in ids[:, widest:].tolist()], device=ids.device)

    return ended


@contextlib.contextmanager
def _plain_decoding(hidden: Any) -> Iterator[None]:
    """Without what a model's folder wants of decoding (a penalty for repeating, words that are suppressed): the model alone speaks."""
    from transformers import GenerationConfig

    own, hidden.generation_config = hidden.generation_config, GenerationConfig()
    try:
        yield
    finally:
        hidden.generation_config = own
