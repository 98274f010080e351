"""Sparse probing: can a few latents tell what kind of token it is, as well as all activations can?

For each label set (labels.py), documents are split in two by number; from each half as many True as False rows are drawn, at most MOST
of each. Then, fitted on the one half and judged on the other,

    latents_1, latents_5     accuracy of a logistic probe on the 1 or 5 latents whose mean activations differ most between the kinds, in
                             standard deviations (Gurnee et al. 2023, arXiv 2305.01610; SAEBench, Karvonen et al. 2025, arXiv 2503.09532,
                             takes the bare difference, which prefers latents with large values)
    raw                      of a logistic probe on all activations that the dictionary reads: what there is to find
    raw_1, raw_5             of a probe on the 1 or 5 entries of those activations that differ most: what a few directions give that
                             nobody has trained

Chance is one half. Each with a 95 % interval that draws documents, for the judged half; `share` is how much of what the
raw probe gains over chance five latents keep. Chanin 2026 (arXiv 2605.18229) finds such probes the most reliable of the common measures,
and still unable to rank dictionaries that are alike; do not read differences within the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..codes import Codes
from ..dictionary import Dictionary
from ..errors import UserError
from ..shards.folder import Shards
from ..statistics import bootstrap, sum_by
from .chunks import chunks
from .labels import Label, label_rows
from .logistic import fit

MOST = 1000  # rows of each kind and half
LEAST = 30  # below that a label set is left out
KS = (1, 5)


class Rows(NamedTuple):
    """Drawn rows of one half of the documents: activations read, codes, kind and document."""

    x: Float[Tensor, "row d"]
    codes: Codes
    is_true: Bool[Tensor, "row"]
    documents: Int[Tensor, "row"]


def probe(
    dictionary: Dictionary, shards: Shards, rows: Bool[Tensor, "row"], strings: Mapping[int, str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The numbers of the module header by label set; sets with fewer than LEAST rows of a kind in a half are left out.

    `rows` are those of whole documents, `strings` the text of each token id. UserError for a shared dictionary (ask `at(site)`)
    and where no set is left.
    """
    if dictionary.layout.is_shared:
        raise UserError(
            f"expected one of the sites that share this dictionary ({', '.join(dictionary.config.site)}); probe dictionary.at(site)"
        )
    has_bos = shards.manifest["model"]["bos"] is not None
    index = rows.nonzero().squeeze(1)
    texts = [strings[token] for token in shards.tokens[index].tolist()]
    documents = shards.documents[index]
    kept = torch.cat([piece.reasons.is_kept for piece in chunks(dictionary, shards, rows)])
    found = {}
    for label in label_rows(texts, shards.positions[index], documents, has_bos):
        halves = draw(label, kept, documents, seed)
        if halves:
            train, test = (read(dictionary, shards, index[half], label.is_true[half]) for half in halves)
            found[label.name] = judged(train, test, dictionary.config.latents, seed)
    if not found:
        raise UserError(
            f"expected text with at least {LEAST} tokens of both kinds of some label set in each half of the documents; got none; "
            "cache more text, e.g. the bundled one"
        )
    return found


def draw(
    label: Label, kept: Bool[Tensor, "row"], documents: Int[Tensor, "row"], seed: int
) -> tuple[Int[Tensor, "train"], Int[Tensor, "test"]] | None:
    """As many True as False rows of the fitted and of the judged documents, in text order; None where there are too few."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(int(documents.max()) + 1, generator=generator)
    is_fitted = (order[documents] % 2).bool()
    halves = []
    for half in (is_fitted, ~is_fitted):
        kinds = [(half & kept & label.is_known & one).nonzero().squeeze(1) for one in (label.is_true, ~label.is_true)]
        count = min(MOST, *map(len, kinds))
        if count < LEAST:
            return None
        drawn = [rows[torch.randperm(len(rows), generator=generator)[:count]] for rows in kinds]
        halves.append(torch.cat(drawn).sort().values)
    return halves[0], halves[1]


def judged(train: Rows, test: Rows, latents: int, seed: int) -> dict[str, Any]:
    """Probes fitted on the first rows and judged on the second."""
    best = contrast(*code_moments(train, latents)).argsort(descending=True, stable=True)
    x = train.x.double()
    sides = [torch.stack([one.mean(0), one.square().mean(0)]) for one in (x[train.is_true], x[~train.is_true])]
    entries = contrast(*sides).argsort(descending=True, stable=True)
    features = {f"latents_{k}": (train.codes.of(best[:k]), test.codes.of(best[:k])) for k in KS}
    features |= {"raw": (train.x, test.x)}
    features |= {f"raw_{k}": (train.x[:, entries[:k]], test.x[:, entries[:k]]) for k in KS}
    numbers: dict[str, Any] = {"rows": len(test.is_true), "documents": len(test.documents.unique())}
    for name, (fitted, new) in features.items():
        right = (fit(fitted, train.is_true).score(new) > 0) == test.is_true
        sums = sum_by(test.documents, torch.stack([right, torch.ones_like(right)], 1).double())
        numbers[name] = float(right.double().mean())
        numbers[f"{name}_interval"] = bootstrap(sums, lambda s: s[:, 0] / s[:, 1], seed)
    gain = numbers["raw"] - 0.5
    numbers["share"] = (numbers["latents_5"] - 0.5) / gain if gain > 0.01 else None
    numbers["chosen"] = best[: max(KS)].tolist()
    return numbers


@torch.no_grad()
def read(dictionary: Dictionary, shards: Shards, rows: Int[Tensor, "row"], is_true: Bool[Tensor, "row"]) -> Rows:
    """Activations and codes of some rows, which are in text order."""
    chosen = torch.zeros(len(shards), dtype=torch.bool)
    chosen[rows] = True
    xs, codes, documents = [], [], []
    for piece in chunks(dictionary, shards, chosen):
        xs.append(dictionary.layout.flat(piece.part, dictionary.layout.reads))
        codes.append(dictionary.encode(piece.part).cpu())
        documents.append(piece.documents)
    width = max(one.values.shape[1] for one in codes)
    padded = [torch.nn.functional.pad(side, (0, width - side.shape[1])) for one in codes for side in one]
    return Rows(
        torch.cat(xs),
        Codes(torch.cat(padded[0::2]), torch.cat(padded[1::2])),
        is_true,
        torch.cat(documents),
    )


def code_moments(rows: Rows, latents: int) -> list[Float[Tensor, "2 latent"]]:
    """The mean activation of each latent and the mean of its square, on rows that are True and on those that are not."""
    found = []
    for kind in (rows.is_true, ~rows.is_true):
        values, indices = rows.codes.values[kind].double(), rows.codes.indices[kind].flatten()
        powers = [values.flatten(), values.square().flatten()]
        sums = [torch.zeros(latents, dtype=torch.float64).index_add_(0, indices, power) for power in powers]
        found.append(torch.stack(sums) / len(values))
    return found


def contrast(true: Float[Tensor, "2 feature"], false: Float[Tensor, "2 feature"]) -> Float[Tensor, "feature"]:
    """How far the means of the two kinds are apart, in standard deviations within them; 0 where there is no difference."""
    variance = (true[1] - true[0].square() + false[1] - false[0].square()) / 2
    return torch.nan_to_num((true[0] - false[0]).abs() / variance.clamp_min(0).sqrt(), nan=0.0, posinf=1e12)


def average(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Each accuracy, mean over the label sets."""
    names = [*(f"latents_{k}" for k in KS), "raw", *(f"raw_{k}" for k in KS)]
    return {name: sum(one[name] for one in found.values()) / len(found) for name in names}
