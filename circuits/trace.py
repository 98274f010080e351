"""trace: from a prompt to an attribution graph whose ledger closes.

1. `capture` runs the model once, unmodified; `check_model` has refused models that are not affine once frozen.
2. `build_source` takes each MLP's output apart: a transcoder's latents where one is given, the model's own neurons elsewhere.
3. One sweep gives every source's *signed total attribution* to the weighted targets, through all paths; the `max_features`
   largest by absolute value become nodes.
4. One exact pass records a row for every node: target value = sum over nodes and leaves of cotangent . vector.

Choosing by total attribution costs a single sweep and finds what moves the targets (on smollm2-135m ablating the top 20
takes the logit down by around ten, matched controls by one; ranking by |influence| does not). It gives up features
whose paths cancel: two strong opposite effects through one feature count as none. What is not chosen is not lost: it is the
`rest` leaf of its layer and position, a vector like any other, so that every row still sums.

Frozen are attention patterns, norm scales, and which latents are active; `validate` measures what that leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..saes.errors import UserError
from ..saes.models import model_info, to_tokens, token_strings
from .check import check_model
from .frozen import capture
from .graph import Edges, Graph, Node
from .layout import Chosen, choose, lay_out
from .sources import Rows, build_source
from .sweep import Columns, Machine, Wanted, build_machine, record_rows, total_attribution
from .targets import default_targets, given_targets, target_rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def trace(
    model: TransformerBridge,
    prompt: str | Tensor,
    dictionaries: Sequence[Any] | None = None,
    targets: Sequence[Any] | None = None,
    max_features: int = 8192,
    *,
    memory_mib: int = 256,
) -> Graph:
    """Trace `prompt` (text, or token ids with their BOS) to a Graph of what made the next token.

    `dictionaries`: transcoders, at most one per layer (blocks.L.mlp.hook_in -> blocks.L.mlp.hook_out); other layers
    use their own neurons. `targets`: tokens, ids, or pairs for a logit difference; default the likeliest next tokens.
    `memory_mib` bounds the working memory of the recording pass, not the result. Edges carry the model's dtype:
    float64 models close to 1e-10 or better, float32 models to about 1e-6. Raises UserError for what cannot be traced.
    """
    if not isinstance(max_features, int) or max_features < 1:
        raise UserError(f"expected max_features of at least 1; got {max_features!r}; give for example 1024")
    dtype = next(model.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"expected a model in float32 or float64; got {dtype}; load it with dtype=torch.float32")
    tokens = prompt_tokens(model, prompt)
    by_layer = transcoders_by_layer(model, dictionaries or [])
    with torch.no_grad():
        check_model(model, tokens)
        frozen = capture(model, tokens)
        sources = [build_source(block, by_layer.get(layer), layer) for layer, block in enumerate(frozen.blocks)]
        machine = build_machine(frozen, sources)
        chosen_targets = default_targets(model, frozen) if targets is None else given_targets(model, frozen, targets)
        logits = target_rows(frozen, chosen_targets)
        weights = torch.tensor([target.weight for target in chosen_targets], dtype=torch.float64).to(logits.cotangent)
        totals = total_attribution(machine, logits, weights)
        chosen = choose(totals, sources, max_features)
        strings = token_strings(model, tokens)
        nodes, columns = lay_out(machine, totals, chosen, chosen_targets, logits, strings)
        edges, row_values = record(machine, columns, logits, chosen, nodes, memory_mib)
    metadata = {
        "prompt": prompt if isinstance(prompt, str) else "".join(strings),
        "tokens": tokens.tolist(),
        "token_strings": strings,
        "model": model_info(model).dict(),
        "dictionaries": [reference(d) for d in dictionaries or []],
        "targets": [target._asdict() | {"ids": list(target.ids)} for target in chosen_targets],
        "settings": {"max_features": max_features, "dtype": str(dtype).removeprefix("torch.")},
    }
    return Graph(nodes, edges, row_values, metadata)


def prompt_tokens(model: TransformerBridge, prompt: str | Tensor) -> Int[Tensor, "token"]:
    """Token ids on the model's device; UserError when empty, a single token, too long, or not ids of this model."""
    device = next(model.parameters()).device
    if isinstance(prompt, str):
        tokens = to_tokens(model, prompt)
    elif isinstance(prompt, Tensor) and prompt.ndim == 1 and not prompt.is_floating_point():
        tokens = prompt.to(device, torch.int64)
    else:
        shape = list(prompt.shape) if isinstance(prompt, Tensor) else type(prompt).__name__
        raise UserError(f"expected a prompt as text or as token ids [token]; got {shape}; give one prompt at a time")
    info = model_info(model)
    if len(tokens) < 2:
        raise UserError(f"expected a prompt of at least 2 tokens with its BOS; got {len(tokens)}; give more text")
    if len(tokens) > info.n_ctx:
        raise UserError(
            f"expected a prompt of at most {info.n_ctx} tokens (the context of {info.name}); got {len(tokens)}; shorten it"
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= info.d_vocab:
        raise UserError(
            f"expected token ids from 0 to {info.d_vocab - 1}; got {int(tokens.min())} to {int(tokens.max())}; "
            "is it another model's tokenizer?"
        )
    return tokens


def transcoders_by_layer(model: TransformerBridge, dictionaries: Sequence[Any]) -> dict[int, Any]:
    """Layer -> transcoder; UserError for another model's dictionary, a site that is no MLP, or two for one layer."""
    by_layer: dict[int, Any] = {}
    for dictionary in dictionaries:
        known = (dictionary.metadata.get("model") or {}).get("fingerprint")
        if known is not None and known != model_info(model).fingerprint:
            raise UserError(
                f"expected dictionaries of {model_info(model).name} (weights {model_info(model).fingerprint[:8]}); got one trained on "
                f"{dictionary.metadata['model'].get('name')} (weights {known[:8]}); train or load one for this model"
            )
        layer = next((i for i in range(model.cfg.n_layers) if dictionary.read == f"blocks.{i}.mlp.hook_in"), None)
        if layer is None or dictionary.write != f"blocks.{layer}.mlp.hook_out":
            raise UserError(
                f"expected an MLP transcoder of one of {model.cfg.n_layers} layers (blocks.L.mlp.hook_in → blocks.L.mlp.hook_out); "
                f"got {dictionary.read} → {dictionary.write}; leave it out"
            )
        if layer in by_layer:
            raise UserError(f"expected at most one dictionary per layer; got two for block {layer}; leave one out")
        width = model.cfg.d_model
        if dictionary.W_enc.shape[1] != width or dictionary.W_dec.shape[1] != width:
            raise UserError(
                f"expected a dictionary of width {width}; got {dictionary.W_enc.shape[1]} → {dictionary.W_dec.shape[1]}; "
                "is it another model's?"
            )
        by_layer[layer] = dictionary
    return by_layer


def reference(dictionary: Any) -> dict[str, Any]:
    """What a graph file says of a dictionary it was traced with: sites, weights and, where it is known, the folder."""
    folder = getattr(dictionary, "folder", None)
    return {
        "site": dictionary.read,
        "site_out": dictionary.write,
        "fingerprint": dictionary.fingerprint,
        "folder": None if folder is None else str(folder),
    }


def record(
    machine: Machine, columns: Columns, logits: Rows, chosen: Chosen, nodes: list[Node], memory_mib: int
) -> tuple[Edges, Tensor]:
    """The recording pass: all edges, sparse and ordered, on the CPU; and the value of every row."""
    layers = len(machine.frozen.blocks)
    position = torch.cat([positions.cpu() for positions, _ in chosen])
    counts = torch.tensor([len(positions) for positions, _ in chosen])
    count = len(logits.value)
    layer = torch.cat([torch.repeat_interleave(torch.arange(layers), counts), torch.full((count,), layers)])
    position = torch.cat([position, torch.full((count,), len(machine.frozen.tokens) - 1)])
    slot = torch.cat([*(slots.cpu() for _, slots in chosen), torch.arange(count)])
    wanted = Wanted(layer, position, slot, torch.arange(len(nodes) - len(layer), len(nodes)))
    row_values = torch.full((len(nodes),), float("nan"), dtype=logits.value.dtype)
    pieces = []
    for rows in record_rows(machine, columns, logits, wanted, memory_mib):
        row_values[rows.node] = rows.value.cpu()
        weights = rows.weights.cpu()
        row, column = weights.nonzero(as_tuple=True)
        pieces.append(Piece(rows.node, row.bincount(minlength=len(rows.node)), column.int(), weights[row, column]))
    return assemble(pieces, len(nodes)), row_values


class Piece(NamedTuple):
    """The non-zero entries of a batch of rows, row after row: which nodes, how many each, sources and weights."""

    node: Int[Tensor, "row"]
    count: Int[Tensor, "row"]
    source: Int[Tensor, "entry"]
    weight: Float[Tensor, "entry"]


def assemble(pieces: list[Piece], nodes: int) -> Edges:
    """All entries in order of target and source; empties `pieces` on the way, so that no second copy is ever held."""
    counts = torch.zeros(nodes, dtype=torch.int64)
    for piece in pieces:
        counts[piece.node] = piece.count
    starts, total = counts.cumsum(0) - counts, int(counts.sum())
    target = torch.repeat_interleave(torch.arange(nodes), counts)
    edges = Edges(target, torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=pieces[0].weight.dtype))
    while pieces:
        piece = pieces.pop()
        begin = 0
        for place, count in zip(starts[piece.node].tolist(), piece.count.tolist(), strict=True):
            edges.source[place : place + count] = piece.source[begin : begin + count]
            edges.weight[place : place + count] = piece.weight[begin : begin + count]
            begin += count
    return edges
