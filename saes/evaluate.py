"""How good is a dictionary? Reconstruction on held-out documents, and what it does to the model's predictions.

    fvu          = sum |y - y_hat|^2 / sum |y - y_bar|^2, y_bar the mean over the evaluated rows (predicting it scores 1)
    linear_fvu   = the same for a linear map fitted on the training rows: of rank k for an SAE (PCA), of full rank for a
                   transcoder (least squares from what it reads to what it writes)
    ce_added     = cross-entropy with the reconstruction in place minus clean, in nats per token
    ce_recovered = (ce_zero - ce_reconstructed) / (ce_zero - ce_clean)

Rows that the training rule drops (keep.py) are not reconstructed: they pass through, their share is `dropped_share`, and
the numbers that replace them as well have names ending in `_all`. Intervals are 95 % bootstrap intervals over documents
(`fvu_interval`) and over blocks (`ce_added_interval`). If the Shards are those of the training, only its held-out
documents are used; `documents` says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .dictionary import Dictionary
from .errors import UserError
from .rows import held_out_rows
from .shards import Shards

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CHUNK = 8192


class Metrics(dict[str, Any]):
    """Named results; `metrics["fvu"]` and `metrics.fvu` are the same."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"no metric {name!r}; there are {', '.join(self)}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: the density of each latent becomes counts per power of ten."""
        plain = {name: value for name, value in self.items() if not isinstance(value, Tensor)}
        decades = self["density"].clamp_min(1e-9).log10().floor().int()
        plain["density_decades"] = {f"1e{d}": int((decades == d).sum()) for d in decades.unique().tolist() if d > -9}
        return plain


def evaluate(
    dictionary: Dictionary,
    shards: Shards,
    model: TransformerBridge | None = None,
    *,
    ce_tokens: int = 4096,
    batch: int = 8,
    seed: int = 0,
) -> Metrics:
    """Measure `dictionary` on `shards`; with `model`, also cross-entropy and KL over about `ce_tokens` tokens.

    Raises UserError if the sites are not cached, or the Shards or the model are not those of the dictionary.
    """
    check_shards(dictionary, shards)
    test, fit, documents = _split(dictionary, shards)
    metrics = Metrics(documents=documents, rows=int(test.sum()))
    mean = _reconstruction(metrics, dictionary, shards, test, seed)
    metrics["linear_fvu"] = _linear_fvu(dictionary, shards, fit, test)
    if model is not None:
        from .downstream import downstream

        metrics.update(downstream(dictionary, shards, model, test, mean, ce_tokens, batch, seed))
    return metrics


def check_shards(dictionary: Dictionary, shards: Shards) -> None:
    """UserError unless the Shards hold the dictionary's sites, from the model it was trained on."""
    for site in {dictionary.read, dictionary.write}:
        shards.width(site)
    trained, cached = dictionary.metadata.get("model"), shards.manifest["model"]
    if trained and trained["fingerprint"] != cached["fingerprint"]:
        raise UserError(
            f"expected activations of {trained['name']} (weights {trained['fingerprint'][:8]}), which the dictionary was "
            f"trained on; {shards.folder} is of {cached['name']} ({cached['fingerprint'][:8]}); cache that model"
        )


def _split(dictionary: Dictionary, shards: Shards) -> tuple[Bool[Tensor, "row"], Bool[Tensor, "row"], str]:
    """Rows to evaluate, rows to fit the linear map on, and a word for the former."""
    everything = torch.ones(len(shards), dtype=torch.bool)
    if dictionary.metadata.get("shards") != shards.fingerprint:
        return everything, everything, "all; not those of the training"
    held = held_out_rows(shards, dictionary.metadata["held_out"])
    return (held, ~held, "held out") if held.any() else (everything, everything, "all; training saw them too")


def chunks(shards: Shards, sites: list[str], rows: Bool[Tensor, "row"]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Chosen rows in order, in pieces: their numbers and their float32 activations."""
    for index in rows.nonzero().squeeze(1).split(CHUNK):
        yield index, {site: part.float() for site, part in shards.read(sites, index).items()}


@torch.no_grad()
def _reconstruction(
    metrics: Metrics, dictionary: Dictionary, shards: Shards, rows: Bool[Tensor, "row"], seed: int
) -> Float[Tensor, "d_out"]:
    """Fill in everything that needs no model; returns the mean of the kept rows of the written site."""
    sites = list({dictionary.read, dictionary.write})
    parts = list(chunks(shards, sites, rows))
    kept = torch.cat([dictionary.kept(shards.positions[index], part) for index, part in parts])
    ys = torch.cat([part[dictionary.write] for _, part in parts])
    mean = ys[kept].double().mean(0).float()
    outs = [_encode_chunk(dictionary, part) for _, part in parts]
    y_hat, fired, l0 = (torch.cat([out[i] for out in outs]) for i in range(3))
    error, spread = (ys - y_hat).double().square().sum(1), (ys - mean).double().square().sum(1)
    per_document = _sum_by(shards.documents[rows][kept], torch.stack([error[kept], spread[kept]], 1))
    density = torch.bincount(fired[kept].flatten()[fired[kept].flatten() >= 0], minlength=dictionary.config.latents) / max(int(kept.sum()), 1)  # fmt: skip
    spread_all = (ys - ys.double().mean(0)).square().sum()
    metrics.update(
        dropped_share=float((~kept).float().mean()),
        fvu=float(error[kept].sum() / spread[kept].sum()),
        fvu_interval=bootstrap(per_document, lambda s: s[:, 0] / s[:, 1], seed),
        fvu_all=float(error.sum() / spread_all),
        l0=float(l0[kept].float().mean()),
        dead_share=float((density == 0).float().mean()),
        dense_share=float((density > 0.1).float().mean()),
        cosine=float(torch.cosine_similarity(ys[kept] - mean, y_hat[kept] - mean).mean()),
        norm_ratio=float((y_hat[kept].norm(dim=1) / ys[kept].norm(dim=1)).mean()),
        density=density,
    )
    return mean


def _encode_chunk(dictionary: Dictionary, part: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction, the latents that fired (-1 in empty slots), and how many."""
    codes = dictionary.encode(part)
    fired = torch.where(codes.values > 0, codes.indices, -1)
    return dictionary.decode(codes, part), fired, codes.l0()


def _sum_by(groups: Int[Tensor, "row"], values: Tensor) -> Float[Tensor, "group col"]:
    index = groups.unique(return_inverse=True)[1]
    return torch.zeros(int(index.max()) + 1, values.shape[1], dtype=torch.float64).index_add(0, index, values)


def bootstrap(sums: Float[Tensor, "group col"], statistic: Any, seed: int, draws: int = 1000) -> list[float]:
    """95 % interval of `statistic(column sums)` when whole groups are drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(sums), (draws, len(sums)), generator=generator)
    drawn = statistic(sums[picks].sum(1))
    return [float(drawn.quantile(0.025)), float(drawn.quantile(0.975))]


def _linear_fvu(
    dictionary: Dictionary, shards: Shards, fit: Bool[Tensor, "row"], test: Bool[Tensor, "row"]
) -> float:
    """Variance left unexplained on `test` by the best linear map fitted on `fit`: PCA of rank k, or least squares."""
    moments = [_moments(dictionary, shards, rows) for rows in (fit, test)]
    (_, mx, my, cxx, cxy, _), (n, tx, ty, txx, txy, tyy) = moments
    if dictionary.is_sae:
        basis = torch.linalg.eigh(cxx).eigenvectors[:, -dictionary.config.k :]
        weight = basis @ basis.T
    else:
        ridge = 1e-6 * cxx.diagonal().mean() * torch.eye(len(cxx), dtype=cxx.dtype)
        weight = torch.linalg.solve(cxx + ridge, cxy)
    # The error of y ~ my + (x - mx) weight on the test rows, from their own moments.
    offset = (ty - my) - (tx - mx) @ weight
    error = (tyy - 2 * (txy * weight).sum() + (weight * (txx @ weight)).sum()) + offset.square().sum()
    return float(error / tyy)


@torch.no_grad()
def _moments(dictionary: Dictionary, shards: Shards, rows: Bool[Tensor, "row"]) -> tuple[Any, ...]:
    """Count, means, covariances xx and xy, and total variance of y, over the kept rows, in float64."""
    count, totals = 0, [torch.zeros(())] * 5
    for index, part in chunks(shards, list({dictionary.read, dictionary.write}), rows):
        kept = dictionary.kept(shards.positions[index], part)
        x, y = part[dictionary.read][kept], part[dictionary.write][kept]
        new = (x.double().sum(0), y.double().sum(0), (x.T @ x).double(), (x.T @ y).double(), y.double().square().sum())
        totals = [total + part for total, part in zip(totals, new, strict=True)]
        count += len(x)
    mx, my = totals[0] / count, totals[1] / count
    cxx, cxy = totals[2] / count - torch.outer(mx, mx), totals[3] / count - torch.outer(mx, my)
    return count, mx, my, cxx, cxy, totals[4] / count - my.square().sum()
