"""How good is a dictionary? Reconstruction on held-out documents, and what it does to the model's predictions.

    fvu          = sum |y - y_hat|^2 / sum |y - y_bar|^2, y_bar the mean over the evaluated rows (predicting it scores 1)
    linear_fvu   = the same for a linear map fitted on the training rows: of rank k for an SAE (PCA), of full rank for a
                   transcoder (least squares from what it reads to what it writes)
    ce_added     = cross-entropy with the reconstruction in place minus clean, in nats per token
    ce_recovered = (ce_zero - ce_reconstructed) / (ce_zero - ce_clean)

Rows that the training rule drops (keep.py) are not reconstructed: they pass through, their share is `dropped_share`, and
the numbers that replace them as well have names ending in `_all`. Intervals are 95 % bootstrap intervals over documents
(`fvu_interval`) and over blocks (`ce_added_interval`). If the Shards are those of the training, only its held-out
documents are used; `documents` says which. Of more than `max_rows` rows whole documents are drawn until there are
that many, for the evaluation and for fitting the linear map: `rows` of `rows_available` were measured. Rows are read in
pieces, so memory does not grow with the Shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .dictionary import Dictionary
from .errors import UserError
from .models import model_info
from .rows import held_out_rows
from .shards import Shards

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CHUNK = 8192
ENCODED = 2**26  # pre-activations held at once: 256 MiB in float32


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
    max_rows: int = 262_144,
    batch: int = 8,
    seed: int = 0,
) -> Metrics:
    """Measure `dictionary` on at most about `max_rows` rows of `shards`; with `model`, also cross-entropy and KL over about
    `ce_tokens` tokens.

    Raises UserError if the sites are not cached, the Shards or the model are not those of the dictionary, or the training
    rule keeps fewer than two of the rows.
    """
    check_shards(dictionary, shards)
    if model is not None:
        check_source(shards, model)
    available, fit, documents = _split(dictionary, shards)
    test, fit = _sample(shards, available, max_rows, seed), _sample(shards, fit, max_rows, seed)
    metrics = Metrics(documents=documents, rows=int(test.sum()), rows_available=int(available.sum()))
    moments = _moments(dictionary, shards, test)
    _reconstruction(metrics, dictionary, shards, test, moments, seed)
    metrics["linear_fvu"] = _linear_fvu(
        dictionary, moments if test is fit else _moments(dictionary, shards, fit), moments
    )
    if model is not None:
        from .downstream import downstream

        metrics.update(downstream(dictionary, shards, model, test, moments.mean_y.float(), ce_tokens, batch, seed))
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


def check_source(shards: Shards, model: TransformerBridge) -> None:
    """UserError unless the Shards are activations of this model."""
    info, cached = model_info(model), shards.manifest["model"]
    if info.fingerprint != cached["fingerprint"]:
        raise UserError(
            f"expected the model of {shards.folder}, {cached['name']} (weights {cached['fingerprint'][:8]}); got {info.name} "
            f"({info.fingerprint[:8]}); load that model or cache this one"
        )


def _split(dictionary: Dictionary, shards: Shards) -> tuple[Bool[Tensor, "row"], Bool[Tensor, "row"], str]:
    """Rows to evaluate, rows to fit the linear map on, and a word for the former."""
    everything = torch.ones(len(shards), dtype=torch.bool)
    if dictionary.metadata.get("shards") != shards.fingerprint:
        return everything, everything, "all; not those of the training"
    held = held_out_rows(shards, float(dictionary.metadata["held_out"]))
    return (held, ~held, "held out") if held.any() else (everything, everything, "all; training saw them too")


def _sample(shards: Shards, rows: Bool[Tensor, "row"], most: int, seed: int) -> Bool[Tensor, "row"]:
    """All of `rows`, or those of documents drawn at random until they hold `most`."""
    if int(rows.sum()) <= most:
        return rows
    counts = torch.bincount(shards.documents[rows])
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    before = counts[order].cumsum(0) - counts[order]
    return rows & torch.isin(shards.documents, order[before < most])


def chunks(
    dictionary: Dictionary, shards: Shards, rows: Bool[Tensor, "row"], size: int
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Chosen rows in order, in pieces: activations (float32 at least), which rows the dictionary answers for, documents."""
    dtype = torch.promote_types(shards.dtype, torch.float32)
    for index in rows.nonzero().squeeze(1).split(size):
        part = {site: x.to(dtype) for site, x in shards.read(list({dictionary.read, dictionary.write}), index).items()}
        yield part, dictionary.kept(shards.positions[index], part), shards.documents[index]


class Moments(NamedTuple):
    """Over kept rows: count, means, covariances of x with itself and with y, total variance of y; in float64."""

    count: int
    mean_x: Float[Tensor, "d_in"]
    mean_y: Float[Tensor, "d_out"]
    cov_xx: Float[Tensor, "d_in d_in"]
    cov_xy: Float[Tensor, "d_in d_out"]
    var_y: Float[Tensor, ""]


@torch.no_grad()
def _reconstruction(
    metrics: Metrics, dictionary: Dictionary, shards: Shards, rows: Bool[Tensor, "row"], moments: Moments, seed: int
) -> None:
    """Fill in everything that needs the codes of the rows and no model."""
    latents, mean = dictionary.config.latents, moments.mean_y
    fired, l0, cosine, ratio, error_all = torch.zeros(latents, dtype=torch.int64), 0, 0.0, 0.0, 0.0
    totals = [torch.zeros(len(mean), dtype=torch.float64) for _ in range(2)]
    squares, documents = [], []
    for part, kept, document in chunks(dictionary, shards, rows, max(1, min(CHUNK, ENCODED // latents))):
        codes = dictionary.encode(part)
        y, y_hat = part[dictionary.write].double(), dictionary.decode(codes, part).cpu().double()
        error_all += float((y - y_hat).square().sum())
        totals = [total + new for total, new in zip(totals, (y.sum(0), y.square().sum(0)), strict=True)]
        values, indices, y, y_hat = codes.values.cpu()[kept], codes.indices.cpu()[kept], y[kept], y_hat[kept]
        fired += torch.bincount(indices[values > 0], minlength=latents)
        l0 += int((values > 0).sum())
        cosine += float(torch.cosine_similarity(y - mean, y_hat - mean).sum())
        ratio += float((y_hat.norm(dim=1) / y.norm(dim=1)).sum())
        squares.append(torch.stack([(y - y_hat).square().sum(1), (y - mean).square().sum(1)], 1))
        documents.append(document[kept])
    per_document = _sum_by(torch.cat(documents), torch.cat(squares))
    error, spread = per_document.sum(0).tolist()
    density, n = fired / moments.count, int(rows.sum())
    metrics.update(
        dropped_share=1 - moments.count / n,
        fvu=error / spread,
        fvu_interval=bootstrap(per_document, lambda s: s[:, 0] / s[:, 1], seed),
        fvu_all=error_all / float((totals[1] - totals[0].square() / n).sum()),
        l0=l0 / moments.count,
        dead_share=float((density == 0).float().mean()),
        dense_share=float((density > 0.1).float().mean()),
        cosine=cosine / moments.count,
        norm_ratio=ratio / moments.count,
        density=density,
    )


def _sum_by(groups: Int[Tensor, "row"], values: Tensor) -> Float[Tensor, "group col"]:
    index = groups.unique(return_inverse=True)[1]
    return torch.zeros(int(index.max()) + 1, values.shape[1], dtype=torch.float64).index_add(0, index, values)


def bootstrap(sums: Float[Tensor, "group col"], statistic: Any, seed: int, draws: int = 1000) -> list[float]:
    """95 % interval of `statistic(column sums)` when whole groups are drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(sums), (draws, len(sums)), generator=generator)
    drawn = statistic(sums[picks].sum(1))
    return [float(drawn.quantile(0.025)), float(drawn.quantile(0.975))]


def _linear_fvu(dictionary: Dictionary, fit: Moments, test: Moments) -> float:
    """Variance left unexplained on `test` by the best linear map fitted on `fit`: PCA of rank k, or least squares."""
    cov = fit.cov_xx
    if dictionary.is_sae:
        basis = torch.linalg.eigh(cov).eigenvectors[:, -dictionary.config.k :]
        weight = basis @ basis.T
    else:
        ridge = 1e-6 * cov.diagonal().mean() * torch.eye(len(cov), dtype=cov.dtype)
        weight = torch.linalg.solve(cov + ridge, fit.cov_xy)
    # The error of y ~ mean_y + (x - mean_x) weight on the test rows, from their own moments.
    offset = (test.mean_y - fit.mean_y) - (test.mean_x - fit.mean_x) @ weight
    error = (
        test.var_y - 2 * (test.cov_xy * weight).sum() + (weight * (test.cov_xx @ weight)).sum() + offset.square().sum()
    )
    return float(error / test.var_y)


@torch.no_grad()
def _moments(dictionary: Dictionary, shards: Shards, rows: Bool[Tensor, "row"]) -> Moments:
    """Moments of the kept rows; products are of rows less the first piece's mean, so that large means cost no digits."""
    count, totals, shift = 0, [torch.zeros(())] * 5, None
    for part, kept, _ in chunks(dictionary, shards, rows, CHUNK):
        x, y = part[dictionary.read][kept], part[dictionary.write][kept]
        if not len(x):
            continue
        shift = shift or (x.mean(0), y.mean(0))
        x, y = x - shift[0], y - shift[1]
        new = (x.double().sum(0), y.double().sum(0), (x.T @ x).double(), (x.T @ y).double(), y.double().square().sum())
        totals = [total + more for total, more in zip(totals, new, strict=True)]
        count += len(x)
    if count < 2 or shift is None or not totals[4] - totals[1].square().sum() / count > 0:
        raise UserError(
            f"expected rows that differ, to evaluate on; the training rule keeps {count} of {int(rows.sum())}; cache more text"
        )
    mx, my = totals[0] / count, totals[1] / count
    cov_xx, cov_xy = totals[2] / count - torch.outer(mx, mx), totals[3] / count - torch.outer(mx, my)
    return Moments(count, shift[0] + mx, shift[1] + my, cov_xx, cov_xy, totals[4] / count - my.square().sum())
