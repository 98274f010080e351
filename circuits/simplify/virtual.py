"""Virtual weights: how latents are wired to each other whatever the input, along the residual stream.

What latent s writes stays in the stream, and every later reader t sees it. Its direct effect per unit of activation is

    V[t, s] = < gain * W_enc[t],  sum over sites that s writes before t reads of  gain' * W_dec[s, site] >

`gain` is the weight of the norm that a reader such as mlp.hook_in stands behind (centred over d for a LayerNorm, as it is for RMSNorm),
`gain'` that of a norm which the model puts behind an MLP's or attention's output (Gemma); both need the model. Left out are
what depends on the input: the norms' denominators, which scale a target's row by one factor per token, and all paths through
attention or other MLPs. So signs and order within a row are meaningful, sizes across targets are not.

Most large virtual weights never act, for the two latents are never active together (interference; Ameisen et al. 2025). Two
expectations over a corpus, taken at the same token, weigh them by what happens:

    ERA[t, s]   = E[1(a_t > 0) a_s] V[t, s]                 how much t gets from s, counted where t is active
    TWERA[t, s] = E[a_t a_s] / E[a_t] V[t, s]               the same, tokens weighted by how active t is

Only the `top` sources of largest |weight| per target are kept. Targets are taken in chunks, so that a matrix of all
pairs is never held. Pairs without a path (a source written after the target reads, a target that reads a branch's
output rather than the stream) do not appear.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.codes import Codes
from ...saes.errors import UserError
from ...saes.sites import layer_of
from ..parts import Part, parts
from ..tracing.frozen import weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Moments of a block at which the residual stream is read and written; the last is the next block's first.
READS = {"hook_resid_pre": 0, "attn.hook_in": 0, "hook_resid_mid": 2, "mlp.hook_in": 2, "hook_resid_post": 4}
WRITES = {"hook_resid_pre": 0, "attn.hook_out": 1, "hook_resid_mid": 2, "mlp.hook_out": 3, "hook_resid_post": 4}
NORMS = {"attn.hook_in": "ln1", "mlp.hook_in": "ln2", "attn.hook_out": "ln1_post", "mlp.hook_out": "ln2_post"}


class VirtualWeights(NamedTuple):
    """One pair of dictionaries (places in the list that was given): each target's strongest sources, largest |weight| first.

    Where a target has fewer than `top` sources of weight other than 0, the rest have weight 0.
    """

    source: int
    target: int
    latents: Int[Tensor, "latent top"]
    weights: Float[Tensor, "latent top"]


def virtual_weights(
    dictionaries: Any, model: TransformerBridge | None = None, *, top: int = 32, memory_mib: int = 256
) -> list[VirtualWeights]:
    """V of the module header for every pair of parts that the stream connects, sources outermost.

    `model` gives the norms' gains and where its MLPs read; without it gains are 1 and blocks sequential. UserError when no
    pair is connected.
    """
    return [
        VirtualWeights(pair.source, pair.target, *_strongest(_rows(pair, memory_mib), top))
        for pair in _pairs(parts(dictionaries), model)
    ]


def expected_residual_attribution(
    dictionaries: Any,
    activations: Any,
    model: TransformerBridge | None = None,
    *,
    kind: str = "twera",
    top: int = 32,
    memory_mib: int = 256,
) -> list[VirtualWeights]:
    """ERA or TWERA of the module header, the expectations over all rows of `activations`.

    `activations`: Shards, its batches, or mappings site -> x `[token d]`, with every site that the dictionaries read. Rows that
    a dictionary's training excluded are left out for all (positions and tokens are known from batches of Shards only). The
    sparse codes of the whole corpus are held: 12 bytes per active latent of float32. A target that is never active has weights 0.
    """
    if kind not in ("era", "twera"):
        raise UserError(f"expected kind 'era' or 'twera'; got {kind!r}; choose one")
    readers = parts(dictionaries)
    pairs = _pairs(readers, model)
    codes = _encode(readers, activations)
    found = []
    for pair in pairs:
        source, target = codes[pair.source], codes[pair.target]
        chunks = (
            (start, rows * _together(target, source, start, len(rows), rows.shape[1], kind).to(rows))
            for start, rows in _rows(pair, memory_mib)
        )
        found.append(VirtualWeights(pair.source, pair.target, *_strongest(chunks, top)))
    return found


class _Pair(NamedTuple):
    source: int
    target: int
    W_read: Float[Tensor, "latent d"]
    W_write: Float[Tensor, "other d"]


def _pairs(readers: list[Part], model: TransformerBridge | None) -> list[_Pair]:
    """The connected pairs, with all gains folded in."""
    found = []
    reads = [
        _folded(part.W_enc, part.read, model) if _moment(READS, part.read, model) is not None else None
        for part in readers
    ]
    for i, source in enumerate(readers):
        for j, (target, W_read) in enumerate(zip(readers, reads, strict=True)):
            sites = [site for site in source.W_dec if i != j and _reaches(site, target.read, model)]
            if W_read is not None and sites:
                W_write = torch.stack([_folded(source.W_dec[site], site, model) for site in sites]).sum(0)
                found.append(_Pair(i, j, W_read, W_write.to(W_read)))
    if not found:
        said = "; ".join(f"{part.read} → {', '.join(part.W_dec)}" for part in readers)
        raise UserError(
            f"expected dictionaries of which one reads the stream after another writes it; got {said}; add a later one"
        )
    return found


def _moment(moments: Mapping[str, int], site: str, model: TransformerBridge | None) -> int | None:
    """When the stream is read or written at a site, in steps of which a block has four; None where it is not."""
    layer = layer_of(site)
    name = site.removeprefix(f"blocks.{layer}.")
    if layer is None or name not in moments:
        return None
    is_parallel = model is not None and bool(getattr(model.cfg, "parallel_attn_mlp", False))
    return 4 * layer + (0 if moments is READS and is_parallel and name == "mlp.hook_in" else moments[name])


def _reaches(write: str, read: str, model: TransformerBridge | None) -> bool:
    written, seen = _moment(WRITES, write, model), _moment(READS, read, model)
    if written is None or seen is None:
        return False
    # Two dictionaries of the stream at one moment are two accounts of the same vector, neither of which reads the other.
    return written < seen or (written == seen and "hook_resid" not in read)


def _folded(W: Float[Tensor, "latent d"], site: str, model: TransformerBridge | None) -> Float[Tensor, "latent d"]:
    """W through the norm at its site, denominator aside: the transpose for a reader, the same for a writer."""
    layer = layer_of(site)
    name = NORMS.get(site.removeprefix(f"blocks.{layer}."))
    if model is None or layer is None or name is None:
        return W
    norms = model.blocks[layer].submodules
    module = norms[name] if name in norms else norms["ln1"] if name == "ln2" and "ln1" in norms else None
    if module is None:
        return W
    gain = weights(module, "weight")["weight"].to(W)
    gain = gain + 1 if module.uses_weight_offset else gain
    if module.uses_rms_norm:
        return W * gain
    return _centred(W * gain) if name in ("ln1", "ln2") else _centred(W) * gain


def _centred(W: Float[Tensor, "latent d"]) -> Float[Tensor, "latent d"]:
    return W - W.mean(1, keepdim=True)


def _rows(pair: _Pair, memory_mib: int) -> Iterator[tuple[int, Float[Tensor, "row other"]]]:
    """(first target, V of a chunk of targets); a chunk and its companions stay within `memory_mib`."""
    per_row = 6 * len(pair.W_write) * pair.W_read.element_size()
    step = max(1, memory_mib * 2**20 // per_row)
    for start in range(0, len(pair.W_read), step):
        yield start, pair.W_read[start : start + step] @ pair.W_write.T


def _strongest(
    chunks: Iterable[tuple[int, Float[Tensor, "row other"]]], top: int
) -> tuple[Int[Tensor, "latent top"], Float[Tensor, "latent top"]]:
    if top < 1:
        raise UserError(f"expected top of at least 1; got {top}; give for example 32")
    latents, strongest = [], []
    for _, rows in chunks:
        best = rows.abs().topk(min(top, rows.shape[1]), dim=1).indices
        latents.append(best)
        strongest.append(rows.gather(1, best))
    return torch.cat(latents), torch.cat(strongest)


def _encode(readers: list[Part], activations: Any) -> list[Codes]:
    """Codes of all kept rows, per part."""
    batches = activations.batches(4096, seed=None) if hasattr(activations, "batches") else activations
    found: list[list[Codes]] = [[] for _ in readers]
    for batch in batches:
        sites = getattr(batch, "activations", batch)
        missing = sorted({part.read for part in readers} - set(sites))
        if missing:
            raise UserError(f"expected activations of {missing[0]}; got {', '.join(sites)}; collect that site too")
        positions, tokens = getattr(batch, "positions", None), getattr(batch, "tokens", None)
        kept = torch.stack([part.keep.mask(positions, sites, tokens) for part in readers]).all(0)
        for part, codes in zip(readers, found, strict=True):
            x = sites[part.read][kept]
            if len(x):
                codes.append(part.encode(x.to(part.W_enc)))
    if not found[0]:
        raise UserError(
            "expected activations of at least one token; got none that the dictionaries keep; give more text"
        )
    return [_joined(codes) for codes in found]


def _joined(codes: list[Codes]) -> Codes:
    width = max(one.values.shape[1] for one in codes)
    pad = torch.nn.functional.pad
    values = [pad(one.values, (0, width - one.values.shape[1])) for one in codes]
    indices = [pad(one.indices, (0, width - one.indices.shape[1])) for one in codes]
    return Codes(torch.cat(values), torch.cat(indices))


def _together(
    target: Codes, source: Codes, start: int, rows: int, latents: int, kind: str
) -> Float[Tensor, "row latent"]:
    """E[1(a_t > 0) a_s] or E[a_t a_s] / E[a_t] for targets start ... start + rows and every source."""
    mine = (target.values != 0) & (target.indices >= start) & (target.indices < start + rows)
    token, slot = mine.nonzero(as_tuple=True)
    row, active = target.indices[token, slot].long() - start, target.values[token, slot].double()
    factor = torch.ones_like(active) if kind == "era" else active
    total = torch.zeros(rows * latents, dtype=torch.float64, device=active.device)
    step = max(1, (1 << 22) // source.values.shape[1])
    for begin in range(0, len(token), step):
        part = slice(begin, begin + step)
        place = row[part, None] * latents + source.indices[token[part]].long()
        total.index_add_(0, place.flatten(), (factor[part, None] * source.values[token[part]].double()).flatten())
    mass = torch.zeros(rows, dtype=torch.float64, device=active.device).index_add_(0, row, active)
    divisor = float(len(target.values)) if kind == "era" else torch.where(mass == 0, 1.0, mass)[:, None]
    return total.view(rows, latents) / divisor
