"""Shared concepts: does a dictionary use the same latents for the same thing said in two ways (languages, prose and code)?

    texts = parallel_texts()                                  # {"English": [...], "French": [...], ...}: line i says the same in all
    found = shared_concepts(model, {"layer 12": sae}, texts)

For two ways A and B of saying n things, O[i, j] is the Jaccard overlap of the latents active on A's text i and on B's text j.

    matched      mean of O[i, i]                              the same thing in both
    mismatched   mean of O[i, j], i ≠ j                       the shuffled baseline: the same two languages, other things
    gain         matched less mismatched, interval over texts (drawn with replacement)
    p, q         share of PERMUTATIONS of B's texts with at least this mean overlap; q over all pairs and dictionaries at once
                 (Benjamini and Hochberg)
    found        share of texts whose own translation overlaps most among the n (both directions); chance is 1 / n

Names, numbers and punctuation are the same in both languages, and a latent for the token would pass for one of the concept: so tokens
that the two texts share are left out of both, of mismatched pairs too, unless `keep_shared_tokens`. Latents active in more than COMMON
of all texts are left out, as are tokens for which a dictionary does not answer. `latents` are those whose strength over the texts
goes together across all ways, beside the best of shuffled texts, so that a family-wise error is told.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..saes import Dictionary, UserError, resolve_site, token_strings
from ..saes.drawn import drawn
from ..saes.splice import check_model
from .diffing.statistics import benjamini_hochberg
from .labels.scores import interval_around, rounded
from .monitor.reading import read_texts
from .monitor.rows import activations_of
from .monitor.signals import encoded

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PERMUTATIONS, SHUFFLES, COMMON, LEAST, TOP = 2000, 200, 0.5, 6, 12
DATA = Path(__file__).parent / "data" / "parallel.json"


class Read(NamedTuple):
    """A block of a text: its tokens, which of them belong to it (its BOS does not), and the activations of each site."""

    tokens: Int[Tensor, "token"]
    is_text: Bool[Tensor, "token"]
    rows: dict[str, Tensor]


class Coded(NamedTuple):
    """A text under a dictionary: its tokens, which latents are active on each, and each latent's largest activation."""

    tokens: Int[Tensor, "token"]
    active: Bool[Tensor, "token latent"]
    most: Float[Tensor, "latent"]


@dataclass(frozen=True)
class Shared:
    """A row for each dictionary and pair of ways; `latents` by dictionary: the best ones, and what shuffled texts reach (`chance`)."""

    rows: list[dict[str, Any]]
    latents: dict[str, list[dict[str, Any]]]
    texts: int

    _repr_html_ = drawn

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return rounded(asdict(self))

    def __str__(self) -> str:
        lines = [
            f"{'dictionary':<14}{'pair':<22}{'matched':>8}{'mismatched':>11}  gain [95 %]{'q':>16}{'found':>8}{'chance':>8}"
        ]
        for row in self.rows:
            gain = f"{row['gain']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            numbers = f"{row['matched']:>8.3f}{row['mismatched']:>11.3f}  {gain}{row['q']:>8.4f}{row['found']:>8.2f}{row['chance']:>8.2f}"
            lines.append(f"{row['dictionary'][:13]:<14}{row['a'] + ', ' + row['b']:<22}{numbers}")
        return "\n".join(lines)


def parallel_texts(kind: str = "languages") -> dict[str, list[str]]:
    """The texts that come along: "languages" (24 sentences in five languages) or "code" (12 functions, in words and in Python)."""
    known = json.loads(DATA.read_text(encoding="utf-8"))
    if kind not in ("languages", "code"):
        raise UserError(f"expected languages or code; got {kind!r}; choose one of them")
    return known[kind]


def shared_concepts(
    model: TransformerBridge,
    dictionaries: Mapping[str, Dictionary],
    texts: Mapping[str, Sequence[str]],
    *,
    keep_shared_tokens: bool = False,
    seed: int = 0,
) -> Shared:
    """Measure every pair of ways under every dictionary.

    UserError unless there are two ways of at least LEAST texts each, as many, and for a dictionary of another model.
    """
    counts = {len(each) for each in texts.values()}
    if len(texts) < 2 or len(counts) != 1 or min(counts) < LEAST or not dictionaries:
        raise UserError(
            f"expected a dictionary, and two or more ways of saying the same {LEAST} things or more; got {len(dictionaries)} "
            f"dictionaries, and texts {', '.join(f'{name}: {len(each)}' for name, each in texts.items())}; give as many of each"
        )
    for dictionary in dictionaries.values():
        check_model(dictionary, model)
    rows, latents = [], {}
    sites = [site for dictionary in dictionaries.values() for site in dictionary.sites]
    known = {way: read_all(model, sites, each) for way, each in texts.items()}
    for name, dictionary in dictionaries.items():
        coded = {way: [code_of(model, dictionary, text) for text in each] for way, each in known.items()}
        is_rare = ~common(coded)
        for a, b in itertools.combinations(texts, 2):
            overlap = overlaps(coded[a], coded[b], is_rare, keep_shared_tokens)
            tokens = token_overlap(coded[a], coded[b])
            rows.append({"dictionary": name, "a": a, "b": b, **compared(overlap, seed), **tokens})
        latents[name] = together(model, coded, is_rare, texts, seed)
    found = benjamini_hochberg(torch.tensor([row["p"] for row in rows], dtype=torch.float64)).tolist()
    for row, q in zip(rows, found, strict=True):
        row["q"] = q
    return Shared(rows, latents, counts.pop())


def read_all(model: TransformerBridge, sites: Sequence[str], texts: Sequence[str]) -> list[list[Read]]:
    """The blocks of each text: the model runs once for all sites, on several blocks at a time."""
    readings = read_texts(model, texts)
    blocks = [block for reading in readings for block in reading.blocks]
    rows = iter(activations_of(model, blocks, list(dict.fromkeys(resolve_site(model, site) for site in sites))))
    return [
        [Read(block.cpu(), messages >= 0, next(rows)) for block, messages in zip(each.blocks, each.messages, strict=True)]
        for each in readings
    ]  # fmt: skip


def code(model: TransformerBridge, dictionary: Dictionary, text: str) -> Coded:
    """Which latents are active on which token of a text; its BOS and tokens without an answer left out."""
    return code_of(model, dictionary, read_all(model, dictionary.sites, [text])[0])


@torch.no_grad()
def code_of(model: TransformerBridge, dictionary: Dictionary, text: Sequence[Read]) -> Coded:
    """`code` of a text that was read."""
    sites = {name: resolve_site(model, name) for name in dictionary.sites}
    tokens, active, most = [], [], torch.zeros(dictionary.config.latents, dtype=torch.float64)
    for block in text:
        part = {name: block.rows[site] for name, site in sites.items()}
        codes = encoded(dictionary, part, torch.arange(len(block.tokens)), block.tokens)
        kept = block.is_text & ~codes.values.isnan().any(1)
        dense = torch.zeros(len(block.tokens), len(most), dtype=torch.float64)
        dense = dense.scatter_add(1, codes.indices, codes.values)[kept]
        tokens.append(block.tokens[kept])
        active.append(dense > 0)
        most = torch.maximum(most, dense.max(0).values if len(dense) else most)
    return Coded(torch.cat(tokens), torch.cat(active), most)


def common(coded: Mapping[str, Sequence[Coded]]) -> Bool[Tensor, "latent"]:
    """Latents that are active in more than COMMON of all texts."""
    active = torch.stack([each.active.any(0) for way in coded.values() for each in way])
    return active.double().mean(0) > COMMON


def overlaps(
    one: Sequence[Coded], other: Sequence[Coded], is_rare: Bool[Tensor, "latent"], keep_shared_tokens: bool
) -> Float[Tensor, "n n"]:
    """O[i, j]; 0 where neither text has an active latent."""
    out = torch.zeros(len(one), len(other), dtype=torch.float64)
    for (i, a), (j, b) in itertools.product(enumerate(one), enumerate(other)):
        left, right = a.active, b.active
        if not keep_shared_tokens:
            left, right = left[~torch.isin(a.tokens, b.tokens)], right[~torch.isin(b.tokens, a.tokens)]
        x, y = left.any(0) & is_rare, right.any(0) & is_rare
        out[i, j] = int((x & y).sum()) / max(int((x | y).sum()), 1)
    return out


def compared(overlap: Float[Tensor, "n n"], seed: int) -> dict[str, Any]:
    """The numbers of the module header but q."""
    n = len(overlap)
    generator = torch.Generator().manual_seed(seed)
    own = overlap.diagonal()
    others = (overlap.sum(0) + overlap.sum(1) - 2 * own) / (2 * (n - 1))
    gains = own - others
    picks = torch.randint(n, (PERMUTATIONS, n), generator=generator)
    low, high = interval_around(float(gains.mean()), gains[picks].mean(1))
    orders = torch.rand(PERMUTATIONS, n, generator=generator).argsort(1)
    shuffled = overlap[torch.arange(n), orders].mean(1)
    p = (1 + int((shuffled >= own.mean() - 1e-12).sum())) / (1 + PERMUTATIONS)
    return {
        "matched": float(own.mean()), "mismatched": float(others.mean()), "gain": float(gains.mean()), "low": low, "high": high,
        "p": p, "found": found_share(overlap), "chance": 1 / n, "texts": n,
    }  # fmt: skip


def found_share(overlap: Float[Tensor, "n n"]) -> float:
    """How often a text's own translation overlaps most, both directions; of k that overlap equally it counts 1 / k."""
    shares = []
    for side in (overlap, overlap.T):
        best = side == side.max(1, keepdim=True).values
        shares.append((best.diagonal().double() / best.sum(1)).mean())
    return float(sum(shares)) / 2


def token_overlap(one: Sequence[Coded], other: Sequence[Coded]) -> dict[str, float]:
    """The same overlap of token ids: what the two languages share in spelling."""
    n = len(one)
    out = torch.zeros(n, n, dtype=torch.float64)
    for (i, a), (j, b) in itertools.product(enumerate(one), enumerate(other)):
        x, y = set(a.tokens.tolist()), set(b.tokens.tolist())
        out[i, j] = len(x & y) / max(len(x | y), 1)
    own = float(out.diagonal().mean())
    return {"tokens_matched": own, "tokens_mismatched": (float(out.mean()) * n - own) / (n - 1)}


def together(
    model: TransformerBridge,
    coded: Mapping[str, Sequence[Coded]],
    is_rare: Bool[Tensor, "latent"],
    texts: Mapping[str, Sequence[str]],
    seed: int,
) -> list[dict[str, Any]]:
    """The latents whose largest activations over the texts correlate most across all ways; `chance` is the 95th percentile of the
    best latent's correlation when the texts of each way are shuffled."""
    x = torch.stack([torch.stack([each.most for each in way]) for way in coded.values()])  # [way, text, latent]
    z = x - x.mean(1, keepdim=True)
    z = z / z.norm(dim=1, keepdim=True).clamp_min(1e-12) * is_rare
    score = agreement(z)
    generator = torch.Generator().manual_seed(seed)
    best = []
    for _ in range(SHUFFLES):
        orders = torch.rand(z.shape[:2], generator=generator).argsort(1)
        best.append(agreement(torch.stack([way[order] for way, order in zip(z, orders, strict=True)])).max())
    chance = float(torch.stack(best).quantile(0.95))
    rows = []
    for latent in score.argsort(descending=True, stable=True)[:TOP].tolist():
        strongest = x[:, :, latent].argmax(1).tolist()
        where = {}
        for way, number in zip(coded, strongest, strict=True):
            said: str = texts[way][int(number)]
            where[way] = {"text": said[:80], "tokens": fired(model, coded[way][number], latent)}
        rows.append({"latent": latent, "correlation": float(score[latent]), "chance": chance, "strongest": where})
    return rows


def agreement(z: Float[Tensor, "way text latent"]) -> Float[Tensor, "latent"]:
    """Mean over pairs of ways of the correlation over the texts, from rows of norm 1 over the texts."""
    ways = len(z)
    return (z.sum(0).square().sum(0) - z.square().sum((0, 1))) / (ways * (ways - 1))


def fired(model: TransformerBridge, coded: Coded, latent: int) -> list[str]:
    """The different tokens of a text on which a latent is active."""
    return token_strings(model, coded.tokens[coded.active[:, latent]].unique())
