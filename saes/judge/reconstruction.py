"""How much of the activations is left unexplained, and how often latents fire.

    fvu          sum |y - y_hat|^2 / sum |y - y_bar|^2, y_bar the mean over the evaluated rows: predicting it scores 1
    cosine       mean cosine of y - y_bar and y_hat - y_bar           norm_ratio    mean of |y_hat| / |y|
    l0           mean number of active latents a token                density       of each latent the share of tokens it fires on
    dead_share   latents that never fire                              dense_share   latents that fire on more than a tenth of the tokens

Of several written sites each counts the same: fvu, cosine and norm_ratio are means over the sites of the site's own numbers, which
stand in `fvu_by_site` and so on, so that a site with large activations does not drown the others (training weighs them alike too).
Of a shared dictionary every token of every site counts as a token. Sums are in float64, over the rows that training would see, massive
ones shortened where the rule clips them (keep.py); `fvu_all` is over all rows as they are. `rows_by_rule` counts what was left out or
clipped, and why. Intervals (`fvu_interval`, `l0_interval` …) draw documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..dictionary import Dictionary
from ..keep import added
from ..shards.folder import Shards
from ..statistics import bootstrap, sum_by
from .chunks import Made, chunks, reconstructed


class SiteSums:
    """One written site: by row squared error, square about the mean, cosine and norm ratio; and sums of them and over all rows."""

    def __init__(self, mean: Float[Tensor, "d"]):
        self.mean = mean
        self.by_row: list[Float[Tensor, "row 4"]] = []
        self.cosine = self.ratio = self.error_all = 0.0
        self.totals = [torch.zeros(len(mean), dtype=torch.float64) for _ in range(2)]

    def add_all(self, y: Float[Tensor, "row d"], y_hat: Float[Tensor, "row d"]) -> None:
        """All rows of a piece in float64, as they are, with their reconstruction."""
        self.error_all += float((y - y_hat).square().sum())
        self.totals = [total + new for total, new in zip(self.totals, (y.sum(0), y.square().sum(0)), strict=True)]

    def add(self, y: Float[Tensor, "row d"], y_hat: Float[Tensor, "row d"], kept: Bool[Tensor, "row"]) -> None:
        """The same rows as training sees them, and which of them it does."""
        y, y_hat = y[kept], y_hat[kept]
        cosine, ratio = torch.cosine_similarity(y - self.mean, y_hat - self.mean), y_hat.norm(dim=1) / y.norm(dim=1)
        self.cosine += float(cosine.sum())
        self.ratio += float(ratio.sum())
        squares = (y - y_hat).square().sum(1), (y - self.mean).square().sum(1)
        self.by_row.append(torch.stack([*squares, cosine, ratio], 1))

    def fvu_all(self, rows: int) -> float:
        """The fraction unexplained of all rows, about their own mean."""
        return self.error_all / float((self.totals[1] - self.totals[0].square() / rows).sum())


class LatentSums:
    """How often each latent fires, and how many fire a token, by what was read."""

    def __init__(self, latents: int):
        self.fired, self.l0 = torch.zeros(latents, dtype=torch.int64), dict[str, int]()
        self.by_row: list[Float[Tensor, "row"]] = []  # active latents, mean over the sites where codes are made

    def add(self, made: Made, kept: Bool[Tensor, "row"]) -> None:
        """The codes of some rows, of which the rule keeps some."""
        for site, codes in made.codes.items():
            values, indices = codes.values[kept], codes.indices[kept]
            self.fired += torch.bincount(indices[values > 0], minlength=len(self.fired))
            self.l0[site] = self.l0.get(site, 0) + int((values > 0).sum())
        active = [(codes.values[kept] > 0).sum(1) for codes in made.codes.values()]
        self.by_row.append(torch.stack(active).double().mean(0))


@torch.no_grad()
def reconstruction(
    dictionary: Dictionary,
    shards: Shards,
    rows: Bool[Tensor, "row"],
    mean: Mapping[str, Float[Tensor, "d"]],
    seed: int,
) -> dict[str, Any]:
    """The numbers of the module header, with `mean` the mean of each written site over the rows that training would see."""
    sites = {site: SiteSums(mean[site]) for site in dictionary.config.sites_out or ("",)}
    latents, documents, count, rule = LatentSums(dictionary.config.latents), [], 0, dictionary.keep_rule
    by_rule: dict[str, Any] = {}
    for piece in chunks(dictionary, shards, rows):
        part, kept = rule.clip(piece.part), rule.trained(piece.reasons)
        made = reconstructed(dictionary, part)
        made_all = made if part is piece.part else reconstructed(dictionary, piece.part)
        for site, sums in sites.items():
            sums.add_all(piece.part[site].double(), made_all.written[site].double())
            sums.add(part[site].double(), made.written[site].double(), kept)
        latents.add(made, kept)
        documents.append(piece.documents[kept])
        by_rule = added(by_rule, rule.counts(piece.reasons))
        count += int(kept.sum())
    return {
        "dropped_share": 1 - count / int(rows.sum()),
        "rows_by_rule": by_rule,
        **explained(sites, torch.cat(documents), count, int(rows.sum()), seed),
        **firing(latents, count, dictionary),
        "l0_interval": mean_interval(torch.cat(latents.by_row), torch.cat(documents), seed),
    }


def explained(sites: Mapping[str, SiteSums], documents: Tensor, count: int, rows: int, seed: int) -> dict[str, Any]:
    """What is left unexplained: over all sites, and by site where there are several."""
    by_row = [torch.cat(sums.by_row) for sums in sites.values()]
    table = sum_by(documents, torch.cat([one[:, :2] for one in by_row], 1))
    error, spread = table.sum(0)[0::2], table.sum(0)[1::2]
    fvu = (error / spread).tolist()
    numbers = {
        "fvu": fvu,
        "fvu_all": [sums.fvu_all(rows) for sums in sites.values()],
        "cosine": [sums.cosine / count for sums in sites.values()],
        "norm_ratio": [sums.ratio / count for sums in sites.values()],
    }
    found: dict[str, Any] = {name: sum(values) / len(values) for name, values in numbers.items()}
    found["fvu_interval"] = bootstrap(table, lambda s: (s[:, 0::2] / s[:, 1::2]).mean(1), seed)
    for column, name in ((2, "cosine"), (3, "norm_ratio")):
        found[f"{name}_interval"] = mean_interval(
            torch.stack([one[:, column] for one in by_row]).mean(0), documents, seed
        )
    if len(sites) > 1:
        found |= {f"{name}_by_site": dict(zip(sites, values, strict=True)) for name, values in numbers.items()}
        found["fvu_interval_by_site"] = {
            site: bootstrap(table[:, 2 * number : 2 * number + 2], ratio, seed) for number, site in enumerate(sites)
        }
    return found


def mean_interval(values: Float[Tensor, "row"], documents: Int[Tensor, "row"], seed: int) -> list[float]:
    """95 % interval of a mean over rows, documents drawn with replacement."""
    return bootstrap(sum_by(documents, torch.stack([values, torch.ones_like(values)], 1)), ratio, seed)


def ratio(sums: Float[Tensor, "draw 2"]) -> Float[Tensor, "draw"]:
    """The first sum over the second."""
    return sums[:, 0] / sums[:, 1]


def firing(latents: LatentSums, count: int, dictionary: Dictionary) -> dict[str, Any]:
    """L0 and densities; by site for a shared dictionary, by layer for a cross-layer one."""
    tokens = count * len(latents.l0)
    density = latents.fired / tokens
    found: dict[str, Any] = {
        "l0": sum(latents.l0.values()) / tokens,
        "dead_share": float((density == 0).float().mean()),
        "dense_share": float((density > 0.1).float().mean()),
        "density": density,
    }
    if len(latents.l0) > 1:
        found["l0_by_site"] = {site: number / count for site, number in latents.l0.items()}
    elif dictionary.config.blocks > 1:
        blocks = zip(dictionary.layout.reads, dictionary.layout.blocks, strict=True)
        found["l0_by_site"] = {site: float(latents.fired[block.latents].sum()) / count for site, block in blocks}
    return found
