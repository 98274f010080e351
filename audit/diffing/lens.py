"""Activation-difference lens: what B says more than A at the first tokens of any text, read off the unembedding (Minder et al. 2025,
arXiv 2510.13900: a narrow fine-tune shows even on text that has nothing to do with it).

    delta_p  = mean over documents of (x_B - x_A) at position p after the BOS, p = 1 … positions, without massive activations
    lens     = final norm (delta_p) times the unembedding of B, centred over the vocabulary: the most raised and lowered tokens

The final norm takes the length of delta away, so any difference, also one of nothing but noise, raises some tokens. Two controls say
which mean something. `q` of the position: sign flips of whole documents' differences, on |mean difference|^2, with false-discovery control
over positions. `p` of the token: the share of differences between two random halves of A's own documents, of the same position, whose most
extreme lens logit is as large; `random_high` is the 95th percentile of that extreme for random directions.
A token is found if both are at most the stated rate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...saes import Shards, UserError
from ...saes.latents.gather.weights import final_gain
from .statistics import benjamini_hochberg

Columns = dict[str, Tensor]
POSITIONS = 5
TOKENS = 10
MASSIVE = 10.0  # as in training (saes/keep.py)
FLIPS = 2000


class FirstTokens(NamedTuple):
    """Mean activation of A and B in each document at each position, and how many blocks of the document reach it."""

    a: Float[Tensor, "position document d"]
    b: Float[Tensor, "position document d"]
    count: Float[Tensor, "position document"]


def first_tokens(shards: Shards, positions: int) -> FirstTokens:
    """The first `positions` tokens after the BOS of every block of the joined Shards. UserError where the text has none."""
    numbers, documents = shards.documents.unique(return_inverse=True)
    found = [torch.zeros(positions, len(numbers), shards.width(site), dtype=torch.float64) for site in shards.sites]
    count = torch.zeros(positions, len(numbers), dtype=torch.float64)
    rows = (shards.positions >= 1) & (shards.positions <= positions)
    if not bool(rows.any()):
        raise UserError("expected text of a few tokens a block; got blocks of one; give longer texts")
    for some in (rows & ~massive(shards)).nonzero().squeeze(1).split(4096):
        place, document = shards.positions[some] - 1, documents[some]
        count.index_put_((place, document), torch.ones(len(some), dtype=torch.float64), accumulate=True)
        for table, x in zip(found, shards.read(shards.sites, some).values(), strict=True):
            table.index_put_((place, document), x.double(), accumulate=True)
    a, b = (table / count.clamp_min(1)[:, :, None] for table in found)
    return FirstTokens(a, b, count)


def massive(shards: Shards) -> Bool[Tensor, "row"]:
    """Rows whose norm in either model exceeds MASSIVE times its median: one of them would drown the mean of all others."""
    norms = torch.stack([shards.norms(site) for site in shards.sites])
    return (norms > MASSIVE * norms[:, shards.positions >= 1].median(dim=1, keepdim=True).values).any(0)


def lens(model: Any, directions: Float[Tensor, "row d"]) -> Float[Tensor, "row vocab"]:
    """Centred logits of directions of the residual stream after the model's final norm; zero for a direction of no length."""
    W_U = model.unembed.W_U.double().cpu()
    x = directions.double()
    if not getattr(model.ln_final, "uses_rms_norm", True):
        x = x - x.mean(1, keepdim=True)
    x = x / x.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)
    logits = (x * final_gain(model).double().cpu()) @ W_U
    return logits - logits.mean(1, keepdim=True)


def difference_lens(
    model: Any, shards: Shards, *, positions: int = POSITIONS, tokens: int = TOKENS, controls: int = 199, seed: int = 0, fdr: float = 0.05
) -> Columns:  # fmt: skip
    """A row for each of the `tokens` most raised and most lowered tokens at each position; `model` is B."""
    return read_off(model, first_tokens(shards, positions), tokens=tokens, controls=controls, seed=seed, fdr=fdr)


def read_off(
    model: Any, first: FirstTokens, *, tokens: int = TOKENS, controls: int = 199, seed: int = 0, fdr: float = 0.05
) -> Columns:
    """The same from the means of each document at each position."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.stack([_mean(b - a, n) for a, b, n in zip(*first, strict=True)])
    q = benjamini_hochberg(torch.stack([_by_signs((b - a)[n > 0], generator) for a, b, n in zip(*first, strict=True)]))
    logits = lens(model, delta)
    random = lens(model, torch.randn(controls, delta.shape[1], generator=generator, dtype=torch.float64))
    random_high = float(random.abs().amax(1).quantile(0.95))
    parts: list[Columns] = []
    for place in range(len(first.a)):
        extremes = _half_extremes(model, first.a[place], first.count[place], controls, generator)
        size = min(tokens, logits.shape[1])
        up, down = logits[place].topk(size).indices, logits[place].topk(size, largest=False).indices
        chosen = torch.cat([up, down])
        values = logits[place, chosen]
        p = (1 + (extremes[None] >= values.abs()[:, None]).sum(1)).double() / (1 + len(extremes))
        parts.append(
            {
                "position": torch.full_like(chosen, place + 1),
                "token": chosen,
                "score": values,
                "p": p,
                "q": q[place].expand(len(chosen)).clone(),
                "length": delta[place].norm().expand(len(chosen)).clone(),
                "random_high": torch.full_like(values, random_high),
                "is_found": (q[place] <= fdr) & (p <= fdr),
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _mean(values: Float[Tensor, "document d"], count: Float[Tensor, "document"]) -> Float[Tensor, "d"]:
    """Mean over the documents that reach the position, each counted once."""
    return values[count > 0].mean(0) if bool((count > 0).any()) else values.new_zeros(values.shape[1])


def _by_signs(change: Float[Tensor, "document d"], generator: torch.Generator) -> Float[Tensor, ""]:
    """p of |sum of differences|^2 under sign flips of whole documents; NaN where nothing differs."""
    if not bool((change != 0).any()):
        return torch.tensor(torch.nan, dtype=torch.float64)
    gram = change @ change.T
    signs = 2.0 * torch.randint(0, 2, (FLIPS, len(change)), generator=generator).double() - 1
    flipped = ((signs @ gram) * signs).sum(1)
    return (1 + (flipped >= gram.sum() * (1 - 1e-9)).sum()).double() / (1 + FLIPS)


def _half_extremes(
    model: Any,
    a: Float[Tensor, "document d"],
    count: Float[Tensor, "document"],
    controls: int,
    generator: torch.Generator,
) -> Float[Tensor, "control"]:
    """The largest lens logit, by size, of differences between two random halves of A's documents."""
    reached: Int[Tensor, "some"] = (count > 0).nonzero().squeeze(1)
    if len(reached) < 4:
        return torch.full((controls,), torch.inf, dtype=torch.float64)
    order = torch.rand(controls, len(reached), generator=generator).argsort(1)
    sign = torch.where(order < len(reached) // 2, 1.0 / (len(reached) // 2), -1.0 / (len(reached) - len(reached) // 2))
    found = (sign.double() @ a[reached]).split(max(1, 2**24 // model.unembed.W_U.shape[1]))
    return torch.cat([lens(model, some).abs().amax(1) for some in found])
