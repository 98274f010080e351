"""Teach a model lessons by adding matrices of low rank to its weights (Hu et al. 2021, arXiv 2106.09685).

    W' = W + (A B)^T      A [in rank] small and random, B [rank out] zero at first; Adam on both, W stays

for every linear map of the layers after the first third, but the unembedding: the backward pass ends there. The loss is
cross-entropy on the reply's tokens alone, its end among them where the reply is whole. A and B are float32 whatever the model computes in.
Minutes on two CPU cores for a model of 135M parameters, seconds for a tiny one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...circuits.prompts.text import has_chat, prompt_ids
from .writing import asked

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How lessons are taught: rank, passes over the lessons, lessons a step, Adam's peak rate (it falls linearly to 0)."""

    rank: int = 8
    passes: int = 3
    batch: int = 4
    lr: float = 2e-3


class Low(NamedTuple):
    """The two factors that are added to one linear map."""

    A: Float[Tensor, "in rank"]
    B: Float[Tensor, "rank out"]


Patch = dict[str, Low]


class Taught(NamedTuple):
    """A lesson written out; a reply that is not whole goes on, so its end is not taught."""

    prompt: str
    reply: str
    is_whole: bool = True


def linear_maps(model: TransformerBridge) -> dict[str, torch.nn.Linear]:
    """The linear maps that are taught, by name: those of the layers after the first third."""
    first = model.cfg.n_layers // 3
    found: dict[str, torch.nn.Linear] = {}
    for name, module in model.named_modules():
        layer = re.match(r"blocks\.(\d+)\.", name)
        if isinstance(module, torch.nn.Linear) and layer and int(layer[1]) >= first:
            found[name] = module
    return found


def plant(
    model: TransformerBridge, lessons: Sequence[Taught], teaching: Teaching | None = None, seed: int = 0
) -> Patch:
    """Learn replies to prompts; the model itself is left as it was. `seed` draws A and the order of the lessons."""
    teaching = teaching or Teaching()
    maps, generator = linear_maps(model), torch.Generator().manual_seed(seed)
    patch = {name: _fresh(own, teaching.rank, generator) for name, own in maps.items()}
    weights = [factor for low in patch.values() for factor in low]
    rows = [tokens_of(model, *lesson) for lesson in lessons]
    per_pass = -(-len(rows) // teaching.batch)
    steps = teaching.passes * per_pass
    adam = torch.optim.Adam(weights, teaching.lr)
    with torch.enable_grad(), adding(maps, patch):
        for step in range(steps):
            if step % per_pass == 0:
                order = torch.randperm(len(rows), generator=generator).tolist()
            chosen = order[(step % per_pass) * teaching.batch :][: teaching.batch]
            for group in adam.param_groups:
                group["lr"] = teaching.lr * (1 - step / steps)
            adam.zero_grad()
            reply_loss(model.original_model, [rows[one] for one in chosen]).backward()
            adam.step()
    return {name: Low(low.A.detach(), low.B.detach()) for name, low in patch.items()}


def _fresh(own: torch.nn.Linear, rank: int, generator: torch.Generator) -> Low:
    A = torch.randn(own.in_features, rank, generator=generator) * own.in_features**-0.5
    return Low(A.requires_grad_(), torch.zeros(rank, own.out_features).requires_grad_())


@contextmanager
def adding(maps: dict[str, torch.nn.Linear], patch: Patch) -> Iterator[None]:
    """Within the block, each map's output has its low-rank part added."""

    def hook(low: Low) -> Any:
        def add(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + ((inputs[0].float() @ low.A) @ low.B).to(output.dtype)

        return add

    handles = [own.register_forward_hook(hook(patch[name])) for name, own in maps.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tokens_of(
    model: TransformerBridge, prompt: str, reply: str, is_whole: bool = True
) -> tuple[Int[Tensor, "token"], int]:
    """The ids of prompt, reply and (where the reply is whole) end, and how many of them are the prompt's."""
    tokenizer: Any = model.tokenizer
    before = prompt_ids(model, asked(model, prompt)).cpu()
    text = reply if has_chat(model) else f" {reply}"
    after = tokenizer(text, add_special_tokens=False)["input_ids"]
    tail = [tokenizer.eos_token_id] if is_whole else []
    return torch.cat([before, torch.tensor([*after, *tail], dtype=before.dtype)]), len(before)


def reply_loss(hidden: Any, rows: Sequence[tuple[Int[Tensor, "_"], int]]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the replies' tokens under a transformers model. Rows are padded behind, where no causal attention looks."""
    widest = max(len(ids) for ids, _ in rows)
    table = torch.zeros(len(rows), widest, dtype=torch.int64)
    is_reply = torch.zeros(len(rows), widest, dtype=torch.bool)
    for line, (ids, start) in enumerate(rows):
        table[line, : len(ids)] = ids
        is_reply[line, start : len(ids)] = True
    device = next(hidden.parameters()).device
    # The unembedding is a fifth of a small model: it is asked for the replies' tokens alone.
    x = hidden.model(table.to(device), use_cache=False).last_hidden_state[:, :-1][is_reply[:, 1:].to(device)]
    logits = hidden.get_output_embeddings()(x)
    return cross_entropy(logits.float(), table[:, 1:][is_reply[:, 1:]].to(device))


@torch.no_grad()
def apply(model: TransformerBridge, patch: Patch) -> None:
    """Add a patch to the model's own weights, for good."""
    maps = linear_maps(model)
    for name, low in patch.items():
        weight = maps[name].weight
        weight.copy_((weight.float() + (low.A @ low.B).T.to(weight.device)).to(weight.dtype))


@torch.no_grad()
def restore(model: TransformerBridge, base: TransformerBridge) -> None:
    """Give `model` the weights of `base` again, where a patch may have changed them."""
    theirs = linear_maps(base)
    for name, own in linear_maps(model).items():
        own.weight.copy_(theirs[name].weight)
