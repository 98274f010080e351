"""World 4: induction heads and the previous-token head of a 2-layer attention-only model, trained here in seconds.

A sequence is `<s>`, different random tokens, and the same tokens again in chunks of 2 to 6 whose order is shuffled; inside a chunk the
next token can be known only by finding the current one earlier and saying what followed it (Olsson et al. 2022). With the
order left alone, or chunks always long, models find shortcuts by position instead.

The truth is a probe: how much a head attends, averaged over repeated sequences, from a token to the one after its earlier occurrence
(induction) or to the one before it (previous token). The tracer must name the same heads from single prompts without seeing
patterns averaged over anything:

* induction heads: the edge from the token that is to be copied to its logit, split over the heads (heads.py);
* what the strongest of them looks for: the largest pair of its QK table (qk.py) must be the current token with the token before
  the key; and the head of layer 0 through which the key got that token, by the split of the score, is the previous-token head;
* zeroing the named heads of a layer must take the ability away, zeroing as many others must not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attention.heads import split_heads
from ..attention.qk import qk_table, split_score
from ..trace import trace
from .tools import Row, at_least, at_most, blank, one_thread, randomise, told, wrap

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

VOCAB, WIDTH, HEADS, HALF = 32, 64, 4, 12
CHUNKS = (2, 3, 4, 6)
NAMED = 0.1  # a head is named when this share of the logit goes through it from the copied token


class Text(NamedTuple):
    """Sequences, and which of their tokens (after the first) can be known from before."""

    tokens: Int[Tensor, "sequence token"]
    known: Bool[Tensor, "token"]


def repeated(count: int, generator: torch.Generator, chunk: int | None = None) -> Text:
    """`count` sequences of 1 + 2 HALF tokens with shuffled chunks of one size, drawn when none is given."""
    size = chunk or CHUNKS[int(torch.randint(len(CHUNKS), (1,), generator=generator))]
    first = torch.rand(count, VOCAB - 1, generator=generator).argsort(1)[:, :HALF] + 1
    order = torch.rand(count, HALF // size, generator=generator).argsort(1)
    second = first.unflatten(1, (HALF // size, size)).gather(1, order[:, :, None].expand(-1, -1, size)).flatten(1)
    known = torch.zeros(2 * HALF, dtype=torch.bool)
    known[HALF:] = torch.arange(HALF) % size > 0
    return Text(torch.cat([torch.zeros(count, 1, dtype=torch.int64), first, second], 1), known)


def train(seed: int, steps: int = 600) -> Any:
    """A trained float64 NativeModel."""
    model = blank(2, WIDTH, VOCAB, 2 * HALF + 1, heads=HEADS, norm="LN", eps=1e-5)
    gains = {name: weight.clone() for name, weight in model.named_parameters() if weight.ndim == 1}
    randomise(model, seed, 0.8 * WIDTH**-0.5)
    for name, weight in model.named_parameters():
        if name in gains:
            weight.copy_(gains[name])
    model.pos.weight.mul_(0.05)  # from large ones the model learns by position, and often never finds induction
    model.float().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        tokens, known = repeated(32, generator)
        logits = model(tokens)[:, :-1][:, known]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:][:, known].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False).double()


class Probe(NamedTuple):
    """Mean attention of every head."""

    previous: Float[Tensor, "layer head"]
    induction: Float[Tensor, "layer head"]


def probe(model: TransformerBridge, seed: int, count: int = 64) -> Probe:
    """Attention to the token before, and to the token after the earlier occurrence, where the next can be known."""
    tokens, known = repeated(count, torch.Generator().manual_seed(seed), chunk=3)
    patterns: list[Tensor] = []
    hooks: list[Any] = [(f"blocks.{layer}.attn.hook_pattern", lambda p, hook: patterns.append(p)) for layer in range(2)]
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    seen = torch.stack(patterns)  # layer sequence head query key
    sequence, query, key = places(tokens, known)
    return Probe(seen.diagonal(-1, 3, 4)[..., 1:HALF].mean((1, 3)), seen[:, sequence, :, query, key + 1].mean(0))


def places(tokens: Int[Tensor, "sequence token"], known: Bool[Tensor, "known"]) -> tuple[Tensor, Tensor, Tensor]:
    """(sequence, query, earlier occurrence) of every token whose next can be known."""
    same = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)
    same[:, :-1] &= known[None, :, None]
    same[:, -1] = False
    sequence, query, key = same.nonzero(as_tuple=True)
    return sequence, query, key


class Named(NamedTuple):
    """What the tracer says on one prompt, cut after a token whose next can be known."""

    loading: Float[Tensor, "layer head"]  # share of the logit from the copied token, per head
    is_pair: bool  # the largest QK pair is (current token, token before the key)
    previous: Float[Tensor, "head"]  # share of the score that the key has from the token before it, per head of layer 0


def name_heads(model: TransformerBridge, tokens: Int[Tensor, "token"], key: int) -> Named:
    """Trace the token that stands at `key`, which followed the last token's earlier occurrence at key - 1."""
    graph = trace(model, tokens, targets=[int(tokens[key])])
    split = split_heads(graph, model)
    loading = torch.zeros(2, HEADS, dtype=torch.float64)
    for layer, head, share in split.heads(positions=[key]):
        loading[layer, head] = share
    head, last = int(loading[1].argmax()), len(tokens) - 1
    table = qk_table(model, tokens, 1, head, last, key)
    best = table.pairs[0]
    pair = [(table.nodes[i].kind, table.nodes[i].position) for i in (best.query, best.key)]
    score = split_score(model, tokens, 1, head, last, key, side="key", layers=[0])
    previous = torch.zeros(HEADS, dtype=torch.float64)
    for _, each, share in score.heads(positions=[key - 1]):
        previous[each] = share
    return Named(loading, pair == [("token", last), ("token", key - 1)], previous)


def accuracy(model: TransformerBridge, seed: int, zeroed: list[tuple[int, int]]) -> float:
    """How often the next token is right where it can be known, with these heads' outputs set to zero."""
    tokens, known = repeated(64, torch.Generator().manual_seed(seed), chunk=3)

    def zero(head: int) -> Any:
        def edit(z: Tensor, hook: Any) -> Tensor:
            shaped = z.clone().unflatten(-1, (HEADS, -1)) if z.ndim == 3 else z.clone()
            shaped[:, :, head] = 0
            return shaped.reshape(z.shape)

        return edit

    hooks: list[Any] = [(f"blocks.{layer}.attn.hook_z", zero(head)) for layer, head in zeroed]
    with torch.no_grad():
        said = model.run_with_hooks(tokens, fwd_hooks=hooks).argmax(-1)
    return float((said[:, :-1][:, known] == tokens[:, 1:][:, known]).double().mean())


def induction(seed: int = 0, prompts: int = 8) -> list[Row]:
    """Train, probe, let the tracer name heads on single prompts, and zero what it named."""
    with one_thread():
        model = wrap(train(seed))
    found = probe(model, seed)
    tokens, known = repeated(prompts, torch.Generator().manual_seed(seed + 1), chunk=3)
    sequence, query, key = places(tokens, known)
    chosen = range(0, len(sequence), len(sequence) // prompts)
    said = [name_heads(model, tokens[sequence[i], : query[i] + 1], int(key[i]) + 1) for i in chosen]
    loading = torch.stack([each.loading[1] for each in said]).mean(0)
    previous = torch.stack([each.previous for each in said]).mean(0)
    named = [(1, head) for head in range(HEADS) if loading[head] >= NAMED]
    true = [(1, head) for head in range(HEADS) if found.induction[1, head] >= 0.5]
    others = [(1, head) for head in range(HEADS) if (1, head) not in named]
    pairs = sum(each.is_pair for each in said) / len(said)
    heads = ", ".join(f"L1H{head} {float(found.induction[1, head]):.2f}" for _, head in true)
    before = f"L0H{int(found.previous[0].argmax())} {float(found.previous[0].max()):.2f}"
    other = int(previous.argmax()) != int(found.previous[0].argmax())
    wrong = float(len(set(named) ^ set(true)) + (not true))
    return [
        at_least("induction", "accuracy of the trained model where the next token can be known", accuracy(model, seed, []), 0.98),
        at_most("induction", f"heads named by loading but not by the probe, or the reverse ({heads})", wrong, 0.0),
        at_least("induction", f"share of {len(said)} prompts whose largest QK pair is (token, token before the key)", pairs, 0.9),
        at_most("previous token", f"1 if the score's split names another head than the probe ({before})", float(other), 0.0),
        at_most("by doing it", f"accuracy with the {len(named)} named heads of layer 1 zeroed", accuracy(model, seed, named), 0.5),
        told("by doing it", f"accuracy with the {len(others)} others zeroed", accuracy(model, seed, others)),
        told("by doing it", "accuracy with the named previous-token head zeroed", accuracy(model, seed, [(0, int(previous.argmax()))])),
    ]  # fmt: skip
