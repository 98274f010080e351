"""Which latents fire on a prompt, which of them are unusual there, and which move what is said next.

Steps, in the order of the code: one forward pass, from which the graph of autograd begins at the first site that the dictionary
writes; one backward pass from the target; then three numbers for every active latent j of every token p, its value a:

    activation    a
    surprise      -log2 of the share of the corpus' tokens on which j is at least a (surprise.py)
    attribution   a sum_site (dT / dy[site, p]) . W_dec[site][j]

T is the target's logit at one position (the last), before any soft-cap and less the vocabulary's mean, or a difference of two.
The attribution is the exact first order of the real model: attention patterns, norms and MLPs above all answer, and the
reconstruction error is kept, as `splice(keep_error=True)` and `intervene` have it. It says what T gains per relative
change of a; taking a away altogether leaves the first order, which is what `steer_prompt` and `intervene` measure. `trace` holds attention
and norms instead, and its numbers therefore differ. What the latents leave of (dT / dy) . y (error, b_dec, skip path) is `rest`.

Cost: one forward pass of the prompt and one backward pass of the blocks above the written site, whatever the number of latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.codes import Codes
from ...saes.errors import UserError
from ...saes.latents.shelf.store import FeatureStore
from ...saes.models import token_strings
from ..experiment.edits import Catalogue
from ..parts import Part
from .surprise import Surprise, surprise
from .targets import wanted
from .text import Prompt, prompt_ids
from .through import Pass, forward_backward

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RANKS = ("activation", "surprise", "attribution")


class Active(NamedTuple):
    """One latent active on one token. Surprise in bits with its bounds: NaN without a store or where `is_kept` is False."""

    position: int
    latent: int
    value: float
    surprise: float
    surprise_low: float
    surprise_high: float
    attribution: float


class Total(NamedTuple):
    """One latent over the tokens that its dictionary answers for: on how many it fires, and the sum of its attributions.

    `value` and `surprise` are its largest, `position` is where the number it is ranked by is largest.
    """

    latent: int
    tokens: int
    position: int
    value: float
    surprise: float
    attribution: float


class NextToken(NamedTuple):
    """A token that may come next, with its probability."""

    token: str
    id: int
    probability: float


@dataclass(frozen=True)
class PromptFeatures:
    """What `rank_features` found. All lists over tokens have one entry per token of the prompt, BOS included."""

    ids: Int[Tensor, "token"]
    tokens: list[str]
    kept: list[bool]
    """Whether the dictionary answers for the token (saes/keep.py)."""
    rank: str
    target: str
    target_ids: tuple[int, ...]
    position: int
    """Where the target is read: it speaks of the token after this one."""
    value: float
    """The target's value."""
    features: list[list[Active]]
    """Per token at most `top` latents, best first."""
    totals: list[Total]
    """Every latent that fires on a token that the dictionary answers for, best first."""
    rest: list[float]
    """Attribution per token of what is no latent: reconstruction error, b_dec, skip path."""
    next_tokens: list[NextToken]

    def __str__(self) -> str:
        lines = [f"by {self.rank}; target {self.target!r} at position {self.position}: {self.value:.4f}"]
        for position, rows in enumerate(self.features):
            note = "" if self.kept[position] else "  (outside the training rule)"
            found = "  ".join(f"{row.latent}:{_number(row, self.rank):.3g}" for row in rows[:5])
            lines.append(f"{position:>4} {self.tokens[position]!r:<16} {found}{note}")
        return "\n".join(lines)

    __repr__ = __str__


def rank_features(
    model: TransformerBridge,
    dictionary: Any,
    text: Prompt,
    *,
    store: FeatureStore | None = None,
    target: Any = None,
    position: int = -1,
    rank: str = "activation",
    top: int = 20,
    likely: int = 10,
) -> PromptFeatures:
    """The latents of `dictionary` on every token of `text`, ranked by activation, surprise or |attribution|.

    `dictionary`: a Dictionary or Part of any site. `text`: plain text, token ids, or a chat's messages. `store`: the
    dictionary's FeatureStore, which surprise needs. `target`: a token (text or id), a difference of two ("A||B" or a pair),
    WhyNot(token); default the likeliest next token. `position`: where the target is read. `likely`: how many next tokens to
    list. Raises UserError for what does not fit.
    """
    if rank not in RANKS or top < 1 or likely < 1:
        raise UserError(f"expected rank of {', '.join(RANKS)} and top of at least 1; got {rank!r} and {top}; change it")
    if rank == "surprise" and store is None:
        raise UserError("expected a store to rank by surprise; got none; give store=FeatureStore.open(folder)")
    catalogue = Catalogue(model, dictionary)
    if len(catalogue.parts) != 1:
        raise UserError(f"expected one dictionary; got {len(catalogue.parts)} read sites; rank one after the other")
    (part,) = catalogue.parts.values()
    _check_store(store, part)
    ids = prompt_ids(model, text)
    place = position + len(ids) if position < 0 else position
    if not 0 <= place < len(ids):
        raise UserError(
            f"expected a position from {-len(ids)} to {len(ids) - 1}; got {position}; the prompt is shorter"
        )
    done = forward_backward(catalogue, part, ids, place, lambda logits: wanted(model, target, logits))
    codes, kept = done.codes, done.kept
    attribution, rest = attributions(part, done)
    unusual = _surprise(store, codes, kept)
    columns = [codes.values.double(), unusual.bits, unusual.low, unusual.high, attribution]
    rows = _rows(codes, columns)
    return PromptFeatures(
        ids=ids.cpu(),
        tokens=token_strings(model, ids),
        kept=kept.tolist(),
        rank=rank,
        target=done.wanted.label,
        target_ids=done.wanted.ids,
        position=place,
        value=done.value,
        features=[sorted(row, key=lambda each: -_number(each, rank))[:top] for row in rows],
        totals=_totals([row for row, is_kept in zip(rows, kept.tolist(), strict=True) if is_kept], rank),
        rest=rest.tolist(),
        next_tokens=next_tokens(model, done.logits.double().softmax(-1), likely),
    )


def next_tokens(model: TransformerBridge, probabilities: Float[Tensor, "vocab"], number: int) -> list[NextToken]:
    """The likeliest tokens of a distribution."""
    best = probabilities.topk(min(number, len(probabilities)))
    names = token_strings(model, best.indices)
    return [NextToken(*each) for each in zip(names, best.indices.tolist(), best.values.tolist(), strict=True)]


def attributions(part: Part, done: Pass) -> tuple[Float[Tensor, "token k"], Float[Tensor, "token"]]:
    """Value x gradient . decoder row of every slot, and per token what is left of gradient . (what stands there)."""
    codes = done.codes
    slopes = torch.zeros(codes.values.shape, dtype=torch.float64)
    whole = torch.zeros(len(codes.values), dtype=torch.float64)
    for site, (y, gradient) in done.written.items():
        W_dec = part.W_dec[site]
        g = gradient.to(W_dec)
        # A token at a time: the rows of one are [k d], those of a long prompt would not fit.
        slopes += torch.stack([W_dec[own] @ row for own, row in zip(codes.indices, g, strict=True)]).double().cpu()
        whole += (y.double() * gradient.double()).sum(1).cpu()
    found = codes.values.double().cpu() * slopes
    return found, whole - found.sum(1)


def _check_store(store: FeatureStore | None, part: Part) -> None:
    known = None if store is None else (store.manifest.get("dictionary") or {}).get("fingerprint")
    if known is not None and known != part.fingerprint:
        raise UserError(
            f"expected the store of this dictionary ({part.fingerprint[:8]}); got one of another ({str(known)[:8]}); "
            "collect this one, or open the other's"
        )


def _surprise(store: FeatureStore | None, codes: Codes, kept: Tensor) -> Surprise:
    unknown = torch.full(codes.values.shape, torch.nan, dtype=torch.float64)
    if store is None:
        return Surprise(unknown, unknown, unknown)
    asked = (codes.values > 0) & kept[:, None]
    found = surprise(store, codes.indices[asked], codes.values[asked])
    return Surprise(*(unknown.masked_scatter(asked, column) for column in found))


def _rows(codes: Codes, columns: list[Float[Tensor, "token k"]]) -> list[list[Active]]:
    """The active slots of every token."""
    tables = [column.tolist() for column in columns]
    rows = []
    for position, latents in enumerate(codes.indices.tolist()):
        slots = zip(latents, *(table[position] for table in tables), strict=True)
        rows.append([Active(position, latent, *numbers) for latent, *numbers in slots if numbers[0] != 0])
    return rows


def _number(row: Active | Total, rank: str) -> float:
    """What a row is ranked by; what is not known comes last."""
    number = abs(row.attribution) if rank == "attribution" else row.surprise if rank == "surprise" else row.value
    return number if number == number else -1.0


def _totals(rows: list[list[Active]], rank: str) -> list[Total]:
    own: dict[int, list[Active]] = {}
    for row in rows:
        for each in row:
            own.setdefault(each.latent, []).append(each)
    totals = []
    for latent, found in own.items():
        best = max(found, key=lambda each: _number(each, rank))
        value, unusual = max(each.value for each in found), max(each.surprise for each in found)
        total = sum(each.attribution for each in found)
        totals.append(Total(latent, len(found), best.position, value, unusual, total))
    return sorted(totals, key=lambda each: -_number(each, rank))
