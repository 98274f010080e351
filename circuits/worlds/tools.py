"""What the ground-truth worlds are built of: small models whose weights are written or trained here, and how a result is told.

Every world is a `NativeModel` of TransformerLens: pre-norm, causal, learned or rotary positions, attention with or without a
ReLU MLP. `blank` makes one whose weights are all zero, to be filled by hand, and whose norms are harmless: with
eps = 1e12 an RMSNorm divides by 1e6 whatever it reads (to x^2 / 1e12), and its gain of 1e6 undoes that, so that
a program can be written as if there were no norms. `wrap` gives it a tokenizer and makes it a `TransformerBridge`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...saes.models import quiet_imports
from ..graph import Graph, Node
from ..parts import Part, Rule

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

EPS = 1e12
Key = tuple[str, int, int, int]  # kind, layer, position, index


class Row(NamedTuple):
    """One measured number of a suite. `target` says what it must be, in words; empty where nothing is promised."""

    name: str
    what: str
    measured: float
    target: str
    passed: bool


def at_most(name: str, what: str, measured: float, limit: float) -> Row:
    """A row that passes when `measured` is at most `limit` (never when it is not a number)."""
    return Row(name, what, measured, f"≤ {limit:g}", measured <= limit)


def at_least(name: str, what: str, measured: float, limit: float) -> Row:
    """A row that passes when `measured` is at least `limit`."""
    return Row(name, what, measured, f"≥ {limit:g}", measured >= limit)


def told(name: str, what: str, measured: float) -> Row:
    """A row that is reported and cannot fail."""
    return Row(name, what, measured, "", True)


def blank(
    layers: int,
    d: int,
    vocab: int,
    context: int,
    *,
    heads: int = 1,
    d_head: int | None = None,
    d_mlp: int | None = None,
    norm: str = "RMS",
    eps: float = EPS,
    positions: str = "standard",
    gated: bool = False,
) -> Any:
    """A float64 `NativeModel` of zeros with harmless norms; without `d_mlp` it is attention only. Ordinary norms: eps = 1e-5."""
    quiet_imports()
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native import NativeModel

    cfg = TransformerBridgeConfig(
        d_model=d,
        d_head=d_head or d // heads,
        n_heads=heads,
        n_layers=layers,
        n_ctx=context,
        d_vocab=vocab,
        d_mlp=d_mlp,
        act_fn="silu" if gated else "relu",
        gated_mlp=gated,
        attn_only=d_mlp is None,
        normalization_type=norm,
        eps=eps,
        positional_embedding_type=positions,
        init_weights=False,
    )
    model = NativeModel(cfg).double().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.fill_(eps**0.5 if eps == EPS and is_gain(name) else float(is_gain(name)))
    return model


def is_gain(name: str) -> bool:
    """Is this parameter the gain of a norm?"""
    return name.rpartition(".")[0].rpartition(".")[2] in ("ln1", "ln2", "ln_out") and name.endswith("weight")


def randomise(model: Any, seed: int, size: float = 0.3) -> Any:
    """Add noise to every weight but harmless gains, in one order; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        if not (is_gain(name) and model.cfg.eps == EPS):
            weight.add_(size * noise)
    return model


def wrap(model: Any, words: Sequence[str] | None = None) -> TransformerBridge:
    """A TransformerBridge around the model, whose tokenizer knows `words` (default w0, w1, …); the first is the BOS."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    words = words or [f"w{i}" for i in range(model.cfg.d_vocab)]
    with warnings.catch_warnings(action="ignore"):
        bridge = build_bridge_from_module(
            model, "TransformerLensNative", tl_config=model.cfg, tokenizer=tokenizer(words), model_name="world"
        )
    return bridge.eval().requires_grad_(False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: on matrices this small more threads wait for each other (seven times slower on a busy machine)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer of whole words separated by spaces; unknown words become the first, the BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), words[0])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    # transformer_lens looks both keys up when it re-opens a tokenizer that was made in memory.
    wrapped.init_kwargs.update(name_or_path="", add_bos_token=True)
    return wrapped


def neurons_as_part(model: TransformerBridge, layer: int) -> Part:
    """A ReLU MLP as its own transcoder, without error: pre = W_in x + b_in, y = sum_j a_j W_out[j] + b_out."""
    mlp, site = model.blocks[layer].mlp, f"blocks.{layer}.mlp.hook_out"
    return Part(
        f"blocks.{layer}.mlp.hook_in",
        mlp.W_in.detach().T.contiguous(),
        mlp.b_in.detach(),
        {site: mlp.W_out.detach()},
        {site: mlp.b_out.detach()},
        Rule("relu"),
    )


def noisy(part: Part, size: float, seed: int) -> Part:
    """The part with noise on encoder and decoder rows, `size` times each row's norm."""
    generator = torch.Generator().manual_seed(seed + part.layer)

    def shaken(rows: Tensor) -> Tensor:
        noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
        return rows + size * noise * rows.norm(dim=1, keepdim=True) / rows.shape[1] ** 0.5

    return replace(part, W_enc=shaken(part.W_enc), W_dec={site: shaken(rows) for site, rows in part.W_dec.items()})


def key_of(node: Node) -> Key:
    """What a node is, whatever its place among the nodes."""
    return node.kind, node.layer, node.position, node.index


def edges_of(graph: Graph) -> dict[tuple[Key, Key], float]:
    """(source, target) -> weight, by what the nodes are."""
    keys = [key_of(node) for node in graph.nodes]
    columns = (column.tolist() for column in (graph.edges.source, graph.edges.target, graph.edges.weight))
    return {(keys[source], keys[target]): weight for source, target, weight in zip(*columns, strict=True)}


def write_head(
    model: Any,
    layer: int,
    head: int,
    *,
    q: Float[Tensor, "d qk"] | None = None,
    k: Float[Tensor, "d qk"] | None = None,
    v: Float[Tensor, "d e"] | None = None,
    o: Float[Tensor, "e d"] | None = None,
) -> None:
    """Set one head's matrices in a NativeModel, up to d_head columns; its score is then (x_q q) . (x_k k), without 1/√d_head."""
    attn, width = model.layers[layer].attn, model.cfg.d_head
    for linear, matrix, scale in ((attn.q, q, width**0.5), (attn.k, k, 1.0), (attn.v, v, 1.0)):
        if matrix is not None:
            linear.weight[head * width : head * width + matrix.shape[1]] = scale * matrix.T
    if o is not None:
        attn.o.weight[:, head * width : head * width + len(o)] = o.T


def look_at(places: Sequence[int | None], positions: slice, d: int, strength: float = 60.0) -> dict[str, Tensor]:
    """q and k of a head whose query at position p sees only position places[p] (None: all alike), given one-hot positions.

    What leaks to each other position is e^-strength, 1e-26.
    """
    count = len(places)
    q, k = torch.zeros(2, d, count, dtype=torch.float64)
    rows = range(d)[positions]
    for query, key in enumerate(places):
        if key is not None:
            q[rows[query], key] = strength
    for key in range(count):
        k[rows[key], key] = 1.0
    return {"q": q, "k": k}
