"""How good is a dictionary? Reconstruction on held-out documents, and what it does to the model's predictions.

    fvu          = sum |y - y_hat|^2 / sum |y - y_bar|^2, y_bar the mean over the evaluated rows (predicting it scores 1);
                   of several written sites the mean of each one's (judge/reconstruction.py)
    linear_fvu   = the same for a linear map fitted on the training rows: of rank k for an SAE (PCA), of full rank for a
                   transcoder (judge/linear.py)
    ce_added     = cross-entropy with the reconstruction in place minus clean, in nats per token (downstream.py)
    ce_recovered = (ce_zero - ce_reconstructed) / (ce_zero - ce_clean)
    probes       = how well a few latents tell what kind of token it is, beside all activations (judge/probing.py)

Rows that the training rule drops (keep.py) are not reconstructed: they pass through, their share is `dropped_share`, `rows_by_rule`
counts them by position, token and norm, and the numbers that replace them as well have names ending in `_all`. Where the rule clips
massive rows, they count in fvu and its like, shortened as in training, and pass through the model as they are. Intervals are 95 %
bootstrap intervals over documents (`fvu_interval`) and over blocks (`ce_added_interval`). If the Shards are those of the training,
only its held-out documents are used; `documents` says which. Of more than `max_rows` rows whole documents are drawn until there are
that many, for the evaluation and for fitting the linear map: `rows` of `rows_available` were measured. Rows are read in
pieces, so memory does not grow with the Shards. Left out because they mislead: targeted probe perturbation and spurious correlation
removal (Chanin 2026, arXiv 2605.18229); docs/methods.md says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .dictionary import Dictionary
from .errors import UserError
from .judge.linear import Moments, linear_fvu, moments
from .judge.reconstruction import reconstruction
from .layout import columns
from .models import load_model, model_info, token_strings
from .rows import held_out_rows
from .shards.folder import Shards

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


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
    probe: bool = False,
) -> Metrics:
    """Measure `dictionary` on at most about `max_rows` rows of `shards`; with `model`, also cross-entropy and KL over about
    `ce_tokens` tokens; with `probe`, also sparse probes, on documents of which training may have seen the text (never the labels), and
    with the tokenizer of `model` or of the model that the Shards name.

    Raises UserError if the sites are not cached, the Shards or the model are not those of the dictionary, or the training
    rule keeps fewer than two of the rows.
    """
    check_shards(dictionary, shards)
    if model is not None:
        check_source(shards, model)
    available, fit, documents = _split(dictionary, shards)
    test, fit = _sample(shards, available, max_rows, seed), _sample(shards, fit, max_rows, seed)
    metrics = Metrics(documents=documents, rows=int(test.sum()), rows_available=int(available.sum()))
    found = moments(dictionary, shards, test)
    mean = means(dictionary, found)
    metrics.update(reconstruction(dictionary, shards, test, mean, seed))
    metrics["linear_fvu"] = linear_fvu(dictionary, found if test is fit else moments(dictionary, shards, fit), found)
    if model is not None:
        from .downstream import downstream

        single = {site: value.float() for site, value in mean.items()}
        metrics.update(downstream(dictionary, shards, model, test, single, ce_tokens, batch, seed))
    if probe:
        metrics.update(probed(dictionary, shards, model, max_rows, seed))
    return metrics


def probed(
    dictionary: Dictionary, shards: Shards, model: TransformerBridge | None, max_rows: int, seed: int
) -> dict[str, Any]:
    """Sparse probes by label set, and their mean; by site of a shared dictionary."""
    from .judge.probing import average, probe

    tokens = shards.tokens.unique()
    named = model or load_model(shards.manifest["model"]["name"])
    strings = dict(zip(tokens.tolist(), token_strings(named, tokens), strict=True))
    rows = _sample(shards, torch.ones(len(shards), dtype=torch.bool), max_rows, seed)
    if dictionary.layout.is_shared:
        each = {site: probe(dictionary.at(site), shards, rows, strings, seed) for site in dictionary.config.site}
        return {"probes_by_site": each, "probe_mean_by_site": {site: average(found) for site, found in each.items()}}
    found = probe(dictionary, shards, rows, strings, seed)
    return {"probes": found, "probe_mean": average(found)}


def check_shards(dictionary: Dictionary, shards: Shards) -> None:
    """UserError unless the Shards hold the dictionary's sites, from the model it was trained on."""
    for site, width in dictionary.layout.widths.items():
        if shards.width(site) != width:
            raise UserError(
                f"expected {site} of width {width}; {shards.folder} has {shards.width(site)}; is it of the same model?"
            )
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


def means(dictionary: Dictionary, found: list[Moments]) -> dict[str, Float[Tensor, "d"]]:
    """The mean of each written site."""
    writes = dictionary.layout.writes
    flat = torch.cat([one.mean_y for one in found])
    return {site: flat[column] for site, column in zip(writes, columns(writes), strict=True)}
