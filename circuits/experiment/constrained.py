"""Parts of a run held at what the unmodified model did: attention patterns, norm scales, outputs of MLPs and attention.

What is held decides what an intervention measures:

    nothing                               the model's own answer
    patterns                              its answer if nobody looked elsewhere
    patterns, scales, all MLP outputs     direct effects: a change travels the residual stream, values and skip paths only.
                                          This is the affine machine of a graph, so a_s -> c a_s moves every later
                                          pre-activation by (c - 1) A[t, s] exactly
    outputs of blocks l .. l_end          constrained patching (Ameisen et al. 2025): MLPs and attention of those blocks give
                                          what they gave, plus what the edits write there; every block beyond answers freely

Held outputs are those of the MLPs and every site that a given dictionary writes in those blocks; a skip transcoder's
W_skip (x_now - x_clean) goes on through, because it is an edge of the graph and no output of a latent.

Traps: `hook_pattern` is read-only in some architectures (the edit is discarded silently), so patterns are held at hook_z
as P v_now. A norm's scale must be returned, not edited. RMSNorm computes in float32 even in a float64 model unless its scale
is returned as a new tensor; whatever is held is captured that way. `hook_resid_mid` is only what the MLP's norm reads: a
change there is also put into the block's output, or the stream would not have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ..parts import Part
from ..tracing.frozen import quiet
from .edits import Catalogue

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Hook = tuple[str, Callable[..., Any]]


class Freeze(NamedTuple):
    """Which blocks are held, by number; `final`: the last norm's scale."""

    patterns: frozenset[int] = frozenset()
    norms: frozenset[int] = frozenset()
    mlps: frozenset[int] = frozenset()
    attentions: frozenset[int] = frozenset()
    final: bool = False

    def __bool__(self) -> bool:
        return any(self)


class Held(NamedTuple):
    """What is held and its values in the unmodified run, by site, without a batch axis."""

    freeze: Freeze
    seen: dict[str, Tensor]
    tokens: Int[Tensor, "token"]


def freezing(
    model: TransformerBridge,
    attention: bool = False,
    norms: bool = False,
    mlps: bool | Iterable[int] = False,
    constrained: Iterable[int] | None = None,
) -> Freeze:
    """A Freeze from the arguments of `intervene`; UserError for blocks that the model lacks."""
    every = frozenset(range(model.cfg.n_layers))
    both = frozenset() if constrained is None else frozenset(constrained)
    some = (every if mlps else frozenset()) if isinstance(mlps, bool) else frozenset(mlps)
    if not both | some <= every:
        raise UserError(f"expected blocks from 0 to {len(every) - 1} to hold; got {sorted((both | some) - every)}")
    nothing: frozenset[int] = frozenset()
    return Freeze(every if attention else nothing, every if norms else nothing, some | both, both, norms)


def everything(model: TransformerBridge) -> Freeze:
    """Patterns, norm scales and MLP outputs of all blocks: direct effects only."""
    return freezing(model, attention=True, norms=True, mlps=True)


def scale_sites(model: TransformerBridge) -> list[str]:
    """The hook_scale of every norm that stands in the residual stream."""
    names = ("ln1", "ln1_post", "ln2", "ln2_post")
    present = [(layer, set(block.submodules)) for layer, block in enumerate(model.blocks)]
    return [f"blocks.{layer}.{name}.hook_scale" for layer, own in present for name in names if name in own] + [
        "ln_final.hook_scale"
    ]


def exact_norms(model: TransformerBridge) -> list[Hook]:
    """Hooks that make RMSNorm compute in a float64 model's own precision; none in other dtypes."""
    if next(model.parameters()).dtype != torch.float64:
        return []
    return [(name, lambda scale, hook: scale.clone()) for name in scale_sites(model)]


def read_sites(model: TransformerBridge, tokens: Int[Tensor, "token"], sites: Iterable[str]) -> dict[str, Tensor]:
    """The unmodified run's tensors at `sites`, without their batch axis (a norm's scale always as [token 1])."""
    seen: dict[str, Tensor] = {}

    def reader(site: str) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            seen[site] = value.detach().reshape(len(tokens), 1) if site.endswith("hook_scale") else value.detach()[0]

        return keep

    hooks: list[Any] = [(site, reader(site)) for site in dict.fromkeys(sites)] + exact_norms(model)
    with torch.no_grad(), quiet():
        model.run_with_hooks(tokens[None], fwd_hooks=hooks)
    return seen


def hold(catalogue: Catalogue, tokens: Int[Tensor, "token"], freeze: Freeze) -> Held:
    """One unmodified run, keeping what `freeze` needs."""
    model = catalogue.model
    present = model.hook_dict  # built anew at every access
    sites = [site for site, _ in _outputs(catalogue, freeze)]
    sites += [f"blocks.{layer}.attn.hook_pattern" for layer in sorted(freeze.patterns)]
    sites += [site for site in scale_sites(model) if _is_held(site, freeze)]
    sites += [read for read, part in catalogue.parts.items() if part.layer in freeze.mlps]
    sites += [site for layer in sorted(freeze.mlps) if (site := f"blocks.{layer}.mlp.hook_post") in present]
    return Held(freeze, read_sites(model, tokens, sites), tokens)


def _is_held(site: str, freeze: Freeze) -> bool:
    return freeze.final if site.startswith("ln_final") else int(site.split(".")[1]) in freeze.norms


def _outputs(catalogue: Catalogue, freeze: Freeze) -> list[tuple[str, Part | None]]:
    """Every output that is held, in the order of the forward pass of its block, with the part whose skip path it lets through."""
    model = catalogue.model
    hooks = model.hook_dict
    found: dict[str, Part | None] = {}
    for layer in sorted(freeze.attentions | freeze.mlps):
        own = [f"blocks.{layer}.hook_attn_out"] if layer in freeze.attentions else []
        own += [f"blocks.{layer}.mlp.hook_out"] if layer in freeze.mlps else []
        found |= {catalogue.site(site): None for site in own if site in hooks}
    for part in catalogue.parts.values():
        for site in catalogue.written(part):
            layer = int(site.split(".")[1])
            if layer in freeze.mlps:
                found.setdefault(site, None)
                if part.W_skip is not None and layer == part.layer:
                    found[site] = part
    return list(found.items())


def hold_hooks(catalogue: Catalogue, held: Held) -> list[Hook]:
    """The hooks that hold; they act on whole prompts only, so that generation goes on freely after one."""
    now: dict[str, Tensor] = {}
    hooks = exact_norms(catalogue.model)
    outputs = _outputs(catalogue, held.freeze)
    readers = {catalogue.site(part.read): part for _, part in outputs if part is not None}
    hooks += [(read, _remember(now, read)) for read in readers]
    for site, part in outputs:
        hooks += with_stream(catalogue, site, _holder(catalogue, held, site, part, now))
    for layer in sorted(held.freeze.patterns):
        values = f"blocks.{layer}.attn.hook_v"
        pattern = held.seen[f"blocks.{layer}.attn.hook_pattern"]
        hooks += [(values, _remember(now, values)), (f"blocks.{layer}.attn.hook_z", _mixer(pattern, now, values))]
    scales = [site for site in scale_sites(catalogue.model) if _is_held(site, held.freeze)]
    return hooks + [(site, _scaler(held.seen[site])) for site in scales]


def with_stream(catalogue: Catalogue, site: str, change: Callable[[Tensor], Tensor]) -> list[Hook]:
    """A hook that replaces a site's tensor; at hook_resid_mid a second one carries the change into the block's output."""
    moved: dict[str, Tensor] = {}

    def replace(value: Tensor, hook: Any) -> Tensor:
        new = change(value)
        moved["by"] = new - value
        return new

    def carry(value: Tensor, hook: Any) -> Tensor:
        return value + moved["by"]

    if not site.endswith("hook_resid_mid"):
        return [(site, lambda value, hook: change(value))]
    return [(site, replace), (catalogue.site(site.replace("hook_resid_mid", "hook_mlp_out")), carry)]


def _remember(now: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(value: Tensor, hook: Any) -> None:
        now[name] = value

    return keep


def _holder(
    catalogue: Catalogue, held: Held, site: str, part: Part | None, now: dict[str, Tensor]
) -> Callable[[Tensor], Tensor]:
    clean = held.seen[site]
    lives = None if part is None else live(catalogue, part, held.seen, held.tokens)

    def change(value: Tensor) -> Tensor:
        if value.shape[1] != len(held.tokens):
            return value
        out = clean.expand(value.shape).clone()
        if part is not None and part.W_skip is not None and lives is not None:
            read = catalogue.site(part.read)
            moved = now[read] - held.seen[read]
            out += (moved @ part.W_skip.to(moved).T) * lives[:, None]
        return out

    return change


def live(catalogue: Catalogue, part: Part, seen: dict[str, Tensor], tokens: Int[Tensor, "token"]) -> Tensor:
    """Positions [token] at which a part's latents speak for what it writes: those of its training rule, never position 0."""
    read = seen[catalogue.site(part.read)].flatten(1)
    known = {part.read: read} | {
        name: seen[site].flatten(1) for name in part.W_dec if (site := catalogue.site(name)) in seen
    }
    positions = torch.arange(len(read), device=read.device)
    return part.kept(positions, known, tokens) & (positions > 0)


def _mixer(pattern: Float[Tensor, "head query key"], now: dict[str, Tensor], values: str) -> Callable[..., Tensor]:
    def mix(z: Tensor, hook: Any) -> Tensor:
        if z.shape[1] != pattern.shape[1]:
            return z
        v = now[values].reshape(*z.shape[:2], -1, z.flatten(2).shape[-1] // len(pattern))
        spread = v.repeat_interleave(len(pattern) // v.shape[2], dim=2)
        return torch.einsum("hqk,bkhe->bqhe", pattern.to(v), spread).reshape(z.shape)

    return mix


def _scaler(scale: Float[Tensor, "token 1"]) -> Callable[..., Tensor | None]:
    def fix(value: Tensor, hook: Any) -> Tensor | None:
        if value.numel() % len(scale):
            return None
        return scale.to(value).repeat(value.numel() // len(scale), 1).reshape(value.shape)

    return fix
