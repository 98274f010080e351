"""What each attention head brings from where: the targets' total attribution, by head, query and key position.

Let u_h[q] be the cotangent of head h's output at position q in the sweep of total attribution (sweep.py: through all paths, also
through features above). The head brings there sum_k P_h[q, k] v_h[k], so that

    reads[h, q, k] = P_h[q, k]  u_h[q] . v_h[k]

is what the targets get by way of head h at q from what it reads at k, biases included; a pattern weighted by what it is good for:
an attention that rests on a position whose value does nothing counts for nothing. Summed over heads and pairs of one layer it's what
that layer's attention (without b_O) adds to the targets; the sum over layers counts paths through several layers several times.

`heads` ranks heads, by a share of the targets' value, or by the share of a head's own reads that falls on given pairs of
positions: `induction_pairs` (the token after an earlier occurrence of the query's token) and `previous_pairs` find induction and
previous-token heads on repeated random tokens without looking at patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ..parts import parts
from ..trace import prompt_tokens
from ..tracing.check import check_model
from ..tracing.frozen import Block
from ..tracing.machine import build_machine
from ..tracing.sources import NeuronRule
from ..tracing.sweep import Totals, through
from ..tracing.wanted import direction_sites, resolve, seeds
from .heads import HeadShare

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MEMORY_MIB = 2048


class HeadReads(NamedTuple):
    """Total attribution by head and pair of positions, and the weighted targets' value that it is a part of."""

    tokens: Int[Tensor, "token"]
    value: float
    weights: Float[Tensor, "layer head query key"]

    def heads(self, pairs: Bool[Tensor, "query key"] | None = None, by: str = "total") -> list[HeadShare]:
        """All heads, the largest |share| first; `pairs` of positions (default: all).

        `total`: the signed sum over the pairs over the targets' value. `own`: for each query with a pair, the share of |reads| of
        the head at that query that is at its pairs, averaged over those queries; a query whose reads are all 0 counts as 0.
        """
        if by not in ("total", "own"):
            raise UserError(f"expected by to be 'total' or 'own'; got {by!r}; choose one")
        size = self.weights.shape[2:]
        if pairs is None:
            pairs = torch.ones(size, dtype=torch.bool)
        if pairs.shape != size or not pairs.any():
            raise UserError(
                f"expected pairs as a mask {list(size)} with a pair in it; got {list(pairs.shape)} with {int(pairs.sum())} pairs; "
                "use the tokens of this prompt"
            )
        if by == "total":
            shares = (self.weights * pairs).sum((2, 3)) / self.value
        else:
            whole, there = self.weights.abs().sum(3), (self.weights.abs() * pairs).sum(3)
            shares = (there / whole.clamp_min(torch.finfo(whole.dtype).tiny))[:, :, pairs.any(1)].mean(2)
        order = shares.flatten().abs().argsort(descending=True, stable=True).tolist()
        count = shares.shape[1]
        return [HeadShare(i // count, i % count, float(shares.flatten()[i])) for i in order]


def induction_pairs(tokens: Int[Tensor, "token"]) -> Bool[Tensor, "query key"]:
    """Keys right after an earlier occurrence of the query's token; position 0 is nobody's."""
    same = (tokens[:, None] == tokens[None]).tril(-1)
    same[:, 0] = False
    return torch.nn.functional.pad(same, (1, 0))[:, :-1]


def previous_pairs(tokens: Int[Tensor, "token"]) -> Bool[Tensor, "query key"]:
    """The key right before each query; position 0 is nobody's."""
    before = torch.ones(len(tokens), len(tokens)).tril(-1).triu(-1).bool()
    before[:, 0] = False
    return before


def head_reads(
    model: TransformerBridge,
    prompt: str | Tensor,
    dictionaries: Any = None,
    targets: Sequence[Any] | None = None,
    *,
    neurons: NeuronRule = "half",
    centred: bool = True,
) -> HeadReads:
    """Split the total attribution of `targets` (as `trace` takes them) over all heads and pairs of positions, in one sweep.

    Raises UserError for what cannot be traced, and for a prompt whose result would take more than 2 GiB.
    """
    tokens = prompt_tokens(model, prompt)
    need = model.cfg.n_layers * model.cfg.n_heads * len(tokens) ** 2 * 8 / 2**20
    if need > MEMORY_MIB:
        raise UserError(
            f"expected a prompt whose pairs of positions fit {MEMORY_MIB} MiB; {len(tokens)} tokens need {need:,.0f}; shorten it"
        )
    check_model(model, tokens)
    with torch.no_grad():
        machine = build_machine(model, tokens, parts(dictionaries or []), neurons, direction_sites(model, targets))
        wanted = resolve(model, machine, targets)
        rows = seeds(model, machine, wanted, centred)
        values = [(each.nodes, each.build(torch.arange(len(each.nodes))).value) for _, each in rows]
        value = sum(
            wanted[i].weight * v
            for nodes, column in values
            for i, v in zip(nodes.tolist(), column.tolist(), strict=True)
        )
        blocks = [_Heard(*block) for block in machine.frozen.blocks]
        listening = machine._replace(frozen=machine.frozen._replace(blocks=blocks))  # type: ignore[arg-type]  # blocks
        _Listening(listening, [seed for seed, _ in rows])
        weights = torch.stack([_reads(block) for block in blocks])
    return HeadReads(tokens.cpu(), value, weights)


class _Heard(Block):
    """A block that keeps the cotangent that arrives at its heads' outputs."""

    u: Float[Tensor, "row token width"] | None = None

    def mix_adjoint(self, u: Float[Tensor, "row token width"]) -> Float[Tensor, "row token d"]:
        """Keep `u` on the way."""
        self.u = u
        return super().mix_adjoint(u)


class _Listening(Totals):
    """The sweep of total attribution, heard at every attention."""

    def attend(self, block: Block) -> None:
        """Pass an attention that is not cut, through its heads' outputs."""
        if isinstance(block, _Heard):
            block.u = block.z_adjoint(through(block.attn_post, self.g))
        super().attend(block)


def _reads(block: _Heard) -> Float[Tensor, "head query key"]:
    """P[q, k] u[q] . v[k] of every head, in float64."""
    heads, r = len(block.W_O), block.seen["resid_pre"]
    if block.u is None:
        return torch.zeros(heads, len(r), len(r), dtype=torch.float64)
    normed = r
    if block.attn_norm:
        normed = block.attn_norm.linear(r)
        normed = normed if block.attn_norm.bias is None else normed + block.attn_norm.bias
    v = einsum(normed, block.W_V, "key d, kv d e -> kv key e")
    v = (v if block.b_V is None else v + block.b_V[:, None]).repeat_interleave(heads // len(block.W_V), 0)
    u = block.u[0].unflatten(-1, (heads, -1))
    return (block.pattern * einsum(u, v, "query head e, head key e -> head query key")).double().cpu()
