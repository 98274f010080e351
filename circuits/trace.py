"""trace: from a prompt to an attribution graph whose ledger closes.

1. `capture` runs the model once, unmodified; `check_model` has refused models that are not affine once frozen.
2. `build_machine` takes apart what dictionaries read and write, and every other MLP into the model's own neurons.
3. One sweep gives every source's *signed total attribution* to the weighted targets, through all paths; the `max_features`
   largest by absolute value become nodes (`select="influence"` expands by influence instead, see select.py).
4. One exact pass records a row for every node: target value = sum over nodes and leaves of cotangent . vector.

Choosing by total attribution costs a single sweep and finds what moves the targets (on smollm2-135m ablating the top 20
takes the logit down by around ten, matched controls by one; ranking by |influence| does not). It gives up features
whose paths cancel: two strong opposite effects through one feature count as none. What is not chosen is not lost: it is the
`rest` leaf of its station and position, a vector like any other, so that every row still sums.

Frozen are attention patterns, norm scales, and which latents are active; `validate` measures what that leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ..saes.errors import UserError
from ..saes.models import model_info, to_tokens, token_strings
from .graph import Graph, Node
from .parts import Part, parts
from .targets import Target
from .tracing.check import check_model
from .tracing.edges import Piece, assemble, sparse
from .tracing.layout import Chosen, Layout, Split, choose, lay_out
from .tracing.machine import Machine, build_machine, complete_cuts
from .tracing.partial import Partial, remembering
from .tracing.record import Targets, record_rows
from .tracing.select import candidates, chosen_of, expand, refold
from .tracing.sources import NeuronRule, Neurons
from .tracing.sweep import Totals
from .tracing.wanted import direction_sites, resolve, seeds, target_nodes

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a graph is traced; kept in its metadata."""

    max_features: int = 8192
    neurons: NeuronRule = "half"
    select: Literal["attribution", "influence"] = "attribution"
    centred: bool = True
    memory_mib: int = 64
    max_edges: int = 40_000_000


def trace(
    model: TransformerBridge,
    prompt: str | Tensor,
    dictionaries: Any = None,
    targets: Sequence[Any] | None = None,
    max_features: int = 8192,
    *,
    neurons: NeuronRule = "half",
    select: Literal["attribution", "influence"] = "attribution",
    centred: bool = True,
    memory_mib: int = 64,
    max_edges: int = 40_000_000,
    partial: str | Path | None = None,
    out: str | Path | None = None,
) -> Graph:
    """Trace `prompt` (text, or token ids with their BOS) to a Graph of what made the next token.

    `dictionaries`: transcoders, skip and cross-layer transcoders, SAEs of the residual stream, the attention's or MLP's
    output: any mixture of `saes.Dictionary` and `Part`; MLPs without one use their own neurons. `neurons`: how a gated
    neuron is a target (sources.py), or `none` to leave such MLPs whole, as error leaves. `targets`: see targets.py;
    default the likeliest next tokens. `memory_mib` bounds the working memory of the recording pass; the result has at
    most about `max_edges` edges. `partial` names a folder in which finished rows are kept until all are there: after an
    interruption the same call goes on (not with `select="influence"`, which starts again). `out`: a file to save the graph
    to as well, before they go. Edges carry the model's dtype: float64 models close to 1e-10 or better, float32 models to
    about 1e-6. Raises UserError for what cannot be traced, or when memory runs out.
    """
    settings = Settings(
        max_features=max_features,
        neurons=neurons,
        select=select,
        centred=centred,
        memory_mib=memory_mib,
        max_edges=max_edges,
    )
    _check(settings, next(model.parameters()).dtype)
    tokens, given = prompt_tokens(model, prompt), parts(dictionaries or [])
    try:
        with torch.no_grad():
            return _trace(model, prompt, tokens, given, targets, settings, partial, out)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "alloc" not in str(error) and "out of memory" not in str(error):
            raise
        is_kept = partial and select == "attribution"
        kept = f"rows finished so far are kept in {partial}; " if is_kept else ""
        raise UserError(
            f"expected enough memory to trace {len(tokens)} tokens with {max_features} features; it ran out ({error}); {kept}"
            f"lower memory_mib (now {memory_mib}), max_edges (now {max_edges}) or max_features"
        ) from error


def _check(settings: Settings, dtype: torch.dtype) -> None:
    for name in ("max_features", "memory_mib", "max_edges"):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"expected {name} of at least 1; got {value!r}; give for example {getattr(Settings, name)}")
    choices = {"neurons": ("half", "gate", "rows", "none"), "select": ("attribution", "influence")}
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise UserError(f"expected {name} to be one of {', '.join(allowed)}; got {getattr(settings, name)!r}")
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"expected a model in float32 or float64; got {dtype}; load it with dtype=torch.float32")


def _trace(
    model: TransformerBridge,
    prompt: str | Tensor,
    tokens: Int[Tensor, "token"],
    given: list[Part],
    targets: Sequence[Any] | None,
    settings: Settings,
    partial: str | Path | None,
    out: str | Path | None,
) -> Graph:
    check_model(model, tokens)
    machine = build_machine(model, tokens, given, settings.neurons, direction_sites(model, targets))
    wanted = resolve(model, machine, targets)
    seeded = seeds(model, machine, wanted, settings.centred)
    totals, rows = Totals(machine, [seed for seed, _ in seeded]), [row for _, row in seeded]
    strings = token_strings(model, tokens)
    metadata = _metadata(model, prompt, tokens, strings, given, wanted, settings)
    if settings.select == "influence":
        nodes, pieces = _by_influence(machine, totals, strings, wanted, rows, settings)
        return _graph(machine, nodes, pieces, wanted, metadata, out)
    with remembering(partial, metadata) as memory:
        nodes, pieces = _by_attribution(machine, totals, strings, wanted, rows, settings, memory)
        return _graph(machine, nodes, pieces, wanted, metadata, out)


def _graph(
    machine: Machine,
    nodes: list[Node],
    pieces: list[Piece],
    wanted: list[Target],
    metadata: dict[str, Any],
    out: str | Path | None,
) -> Graph:
    edges, values = assemble(pieces, len(nodes) + len(wanted))
    targets = target_nodes(machine, wanted, values[len(nodes) :].tolist())
    graph = Graph([*nodes, *targets], edges, values, metadata | complete_cuts(machine))
    if out is not None:
        graph.save(out)
    return graph


def _by_attribution(
    machine: Machine,
    totals: Totals,
    strings: list[str],
    wanted: list[Target],
    targets: list[Targets],
    settings: Settings,
    memory: Partial,
) -> tuple[list[Node], list[Piece]]:
    """Nodes by |total attribution|, and all rows."""
    chosen = choose(totals, machine.sources, settings.max_features)
    layout, most, rest = _bounded_layout(machine, totals, chosen, strings, len(wanted), settings)
    rows = [*layout.rows, *_numbered(targets, layout)]
    pieces = memory.pieces()
    left = memory.unfinished(rows, pieces)
    for recorded in record_rows(machine, layout.columns, left, settings.memory_mib) if left else ():
        pieces.append(memory.keep(sparse(recorded, most, rest)))
    return layout.nodes, pieces + [_halves(split) for split in layout.splits if len(split.neuron)]


def _by_influence(
    machine: Machine,
    totals: Totals,
    strings: list[str],
    wanted: list[Target],
    targets: list[Targets],
    settings: Settings,
) -> tuple[list[Node], list[Piece]]:
    """Nodes by influence, with the rows that found them."""
    candidate = candidates(totals, machine, settings.max_features)
    wide = lay_out(machine, totals, candidate, strings)
    weights = torch.tensor([target.weight for target in wanted], dtype=torch.float64)
    rows = expand(machine, wide, _numbered(targets, wide), weights, settings.max_features, settings.memory_mib)
    chosen = chosen_of(machine, candidate, wide, rows)
    layout, most, rest = _bounded_layout(machine, totals, chosen, strings, len(wanted), settings)
    folded = refold(machine, rows, wide, layout, len(wanted))
    return layout.nodes, [sparse(recorded, most, rest) for recorded in folded]


def _numbered(targets: list[Targets], layout: Layout) -> list[Targets]:
    """Targets' rows numbered after all other nodes."""
    return [each._replace(nodes=each.nodes + len(layout.nodes)) for each in targets]


def _bounded_layout(
    machine: Machine, totals: Totals, chosen: Chosen, strings: list[str], targets: int, settings: Settings
) -> tuple[Layout, int | None, int]:
    """The layout, how many entries a row may keep (None: all), and the first of the two leaves for the others."""
    factors = sum(
        2 * len(positions)
        for (positions, _), source in zip(chosen, machine.sources, strict=True)
        if isinstance(source, Neurons) and source.is_split
    )
    rows = sum(len(positions) for positions, _ in chosen) + targets + factors
    leaves = (2 * len(machine.cuts) + 2) * len(machine.frozen.tokens)
    if rows * (rows + 2 * leaves) // 2 <= settings.max_edges:
        return lay_out(machine, totals, chosen, strings), None, -1
    layout = lay_out(machine, totals, chosen, strings, bounded=True)
    rest = next(place for place, node in enumerate(layout.nodes) if node.kind == "rest" and node.layer == -1)
    return layout, max(settings.max_edges // rows, 1), rest


def _halves(split: Split) -> Piece:
    """The rows of neurons whose factors have rows of their own: half of the activation from each."""
    source = torch.stack([split.gate, split.up], 1).flatten().int()
    weight = (split.value / 2).repeat_interleave(2)
    return Piece(split.neuron, torch.full_like(split.neuron, 2), source, weight, split.value)


def _metadata(
    model: TransformerBridge,
    prompt: str | Tensor,
    tokens: Tensor,
    strings: list[str],
    given: list[Part],
    wanted: list[Target],
    settings: Settings,
) -> dict[str, Any]:
    return {
        "prompt": prompt if isinstance(prompt, str) else "".join(strings),
        "tokens": tokens.tolist(),
        "token_strings": strings,
        "model": model_info(model).dict(),
        "dictionaries": [reference(part) for part in given],
        "targets": [target.to_dict() for target in wanted],
        "settings": asdict(settings) | {"dtype": str(next(model.parameters()).dtype).removeprefix("torch.")},
    }


def prompt_tokens(model: TransformerBridge, prompt: str | Tensor) -> Int[Tensor, "token"]:
    """Token ids on the model's device; UserError when empty, too long, or not ids of this model."""
    device = next(model.parameters()).device
    if isinstance(prompt, str):
        tokens = to_tokens(model, prompt)
    elif isinstance(prompt, Tensor) and prompt.ndim == 1 and not prompt.is_floating_point():
        tokens = prompt.to(device, torch.int64)
    else:
        shape = list(prompt.shape) if isinstance(prompt, Tensor) else type(prompt).__name__
        raise UserError(f"expected a prompt as text or as token ids [token]; got {shape}; give one prompt at a time")
    info = model_info(model)
    if len(tokens) < 1:
        raise UserError("expected a prompt of at least 1 token; got 0; give some text")
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


def reference(part: Part) -> dict[str, Any]:
    """What a graph file says of a dictionary it was traced with: sites, weights and, where it is known, the folder."""
    return {
        "site": part.read,
        "site_out": next(iter(part.W_dec)),
        "sites_out": list(part.W_dec),
        "fingerprint": part.fingerprint,
        "folder": None if part.folder is None else str(part.folder),
    }
