"""Automatic circuit discovery: remove each edge that the model does not need, one after the other (Conmy et al. 2023).

From the logits down, for each reader and each writer before it, latest first: let the reader see the corrupted run's output of
that writer (patched.py) on top of all removals so far. If the output moves by less than `threshold`, the edge stays
removed; else it stays, and what it moved is its weight. Two measures:

    no targets    D = KL(clean || patched) of the next token; removed when D(new) - D(now) < threshold, as in the paper
    targets       m = their logits or logit differences;      removed when |m(now) - m(new)| < threshold

A reader whose own output no kept edge uses cannot matter: its edges go without a run. At the end so do edges from a writer that
no kept path from the embedding reaches: it writes what it writes in the corrupted run. Edges inside heads are not tested; they
carry the sum of what their channel kept. What the greedy order gives up: of two writers that do the same job the first tested
goes, and the weight of an edge is its effect at the moment of its test.

Most edges go, so that rows of one batch try removing the next 1, 2, 3, ... edges at once: row i shows what edge i does once those
before it are gone. Up to the first edge that stays this is the sequential search exactly, with a fraction of its passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...saes.errors import UserError
from ..graph import Graph, Node
from .component_graph import Weights, component_graph
from .components import CHANNELS, Component, Wiring, wire
from .measure import build_measure, embedding_norms
from .pairs import given_metrics, label, read_pairs

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def acdc(
    model: TransformerBridge,
    clean: Any,
    corrupt: Any,
    targets: Sequence[Any] | None = None,
    *,
    threshold: float,
    positions: bool = False,
    rows: int = 16,
) -> Graph:
    """The edges between embedding, heads, MLPs and logits whose corruption moves the output by `threshold` or more.

    `clean`, `corrupt`: a prompt (text, or token ids) each of one length, or two lists of them, over which the measure is averaged;
    corrupt=None puts zero in place of what is removed. `targets`: as in `eap`, the threshold is then in logits;
    without targets it is in nats of KL divergence. `positions`: an edge for each position: slower by their number.
    `rows` edges are tried in one pass; more takes more memory and changes no result.
    """
    if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not threshold > 0:
        raise UserError(
            f"expected a threshold above 0; got {threshold!r}; try 0.01 nats, or a tenth of a logit difference"
        )
    if not isinstance(rows, int) or rows < 1:
        raise UserError(f"expected rows of at least 1; got {rows!r}; give for example 16")
    pairs = read_pairs(model, clean, corrupt, positions=positions)
    metrics = None if targets is None else given_metrics(model, pairs, targets)
    wiring = wire(model, pairs[0].clean)
    measure, normal, embeddings = build_measure(wiring, pairs, metrics)
    places = len(pairs[0].clean) if positions else 1
    found = _search(wiring, measure, threshold, places, rows, signed=metrics is None)
    if corrupt is not None:
        found = found._replace(kept=_from_the_prompt(wiring, found.kept))
    weights = Weights(found.change, _inside(wiring, found))
    everything = wiring.allowed[None, :, :, None].expand(1, -1, -1, places)
    last = len(pairs[0].clean) - 1 if positions else -1
    name = "KL(clean ‖ circuit)" if metrics is None else label(metrics)
    logit = Node("logit", model.cfg.n_layers, last, -1, normal, name, weight=1.0)
    metadata = {
        "method": "acdc",
        "targets": [{"ids": metric.ids, "label": metric.label} for metric in metrics or []],
        "metric": {"clean": normal, "corrupt": float(measure(everything)), "circuit": found.value},
        "settings": {
            "threshold": threshold,
            "positions": positions,
            "measure": "kl" if metrics is None else "logits",
            "ablation": "zero" if corrupt is None else "corrupt",
        },
    }
    return component_graph(wiring, weights, found.kept, pairs, logit, embedding_norms(embeddings, positions), metadata)


class Found(NamedTuple):
    """The edges that stay, what each moved when it was tested, and the measure of what stays."""

    kept: Bool[Tensor, "receiver sender position"]
    change: Float[Tensor, "receiver sender position"]
    value: float


def _search(
    wiring: Wiring, measure: Callable[[Tensor], Tensor], threshold: float, places: int, rows: int, *, signed: bool
) -> Found:
    """The greedy search; `signed`: the measure is a distance, which a removal may also lower."""
    allowed = wiring.allowed[..., None].expand(-1, -1, places)
    removed = torch.zeros_like(allowed).clone()
    change = torch.zeros(allowed.shape, dtype=torch.float64)
    now = float(measure(removed[None]))
    for receiver in reversed(range(len(wiring.receivers))):
        for place in reversed(range(places)):
            if not _matters(wiring, receiver, place, allowed & ~removed):
                removed[receiver, :, place] = allowed[receiver, :, place]
                continue
            waiting = allowed[receiver, :, place].nonzero()[:, 0].flip(0).tolist()
            while waiting:
                batch = waiting[:rows]
                tried = removed.repeat(len(batch), 1, 1, 1)
                for row, sender in enumerate(batch):
                    tried[row:, receiver, sender, place] = True
                values = torch.cat([torch.tensor([now], dtype=torch.float64), measure(tried).double().cpu()])
                effects = values.diff() if signed else -values.diff()
                stays = (effects if signed else effects.abs()) >= threshold
                gone = int(stays.int().argmax()) if stays.any() else len(batch)
                removed[receiver, batch[:gone], place] = True
                now = float(values[gone])
                if gone < len(batch):
                    change[receiver, batch[gone], place] = effects[gone]
                waiting = waiting[min(gone + 1, len(batch)) :]
    return Found(allowed & ~removed, change, now)


def _from_the_prompt(
    wiring: Wiring, kept: Bool[Tensor, "receiver sender position"]
) -> Bool[Tensor, "receiver sender position"]:
    """The kept edges whose writer still sees the clean prompt, through kept edges from the embedding."""
    kept = kept.clone()
    live = torch.zeros(kept.shape[1:], dtype=torch.bool)
    live[0] = True
    for block in wiring.blocks:
        inputs = {}
        for name in CHANNELS:
            rows = wiring.rows(block.layer, name)
            kept[rows] &= live
            fed = kept[rows].any(1).repeat_interleave(block.heads // (rows.stop - rows.start), dim=0)
            inputs[name] = fed if name == "q" else fed.cummax(1).values
        live[wiring.columns(block.layer, "head")] = inputs["q"] | inputs["k"] | inputs["v"]
        if block.has_mlp:
            reader, writer = wiring.rows(block.layer, "mlp"), wiring.columns(block.layer, "mlp")
            kept[reader] &= live
            live[writer] = kept[reader].any(1)
    kept[-1] &= live
    return kept


def _matters(wiring: Wiring, receiver: int, place: int, kept: Bool[Tensor, "receiver sender position"]) -> bool:
    """Whether a kept edge uses what this reader, at this position, makes."""
    kind, layer, index = wiring.receivers[receiver]
    places = kept.shape[-1]
    if kind == "logit":
        return place == places - 1
    if kind == "mlp":
        return bool(kept[:, wiring.senders.index(Component("mlp", layer)), place].any())
    columns = wiring.columns(layer, "head")
    if kind == "q":
        return bool(kept[:, columns.start + index, place].any())
    block = wiring.blocks[layer]
    group = block.heads // block.kv
    first = columns.start + index * group
    return bool(kept[:, first : first + group, place:].any())


def _inside(wiring: Wiring, found: Found) -> list[dict[str, Float[Tensor, "head key query"]]]:
    """The sum of what each channel kept, for every head and query position that it can act on."""
    places = found.kept.shape[-1]
    reach = {"q": torch.eye(places), "k": torch.ones(places, places).triu(), "v": torch.ones(places, places).triu()}
    totals = (found.change * found.kept).sum(1)
    result = []
    for block in wiring.blocks:
        here = {name: totals[wiring.rows(block.layer, name)] for name in CHANNELS}
        result.append(
            {
                name: here[name].repeat_interleave(block.heads // len(here[name]), dim=0)[..., None] * reach[name]
                for name in CHANNELS
            }
        )
    return result
