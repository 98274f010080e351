"""What a FeatureStore answers with: a Feature and its parts, and what each statistic means."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from ...drawn import drawn

COLUMN_NOTES = {
    "count": "tokens on which it fires",
    "density": "share of the kept tokens on which it fires",
    "mean_value": "mean of its values where it fires, in the unit of the activations",
    "std_value": "standard deviation of its values where it fires",
    "max_value": "its largest value",
    "token_entropy": "bits; entropy of the tokens under its top examples",
    "context_entropy": "bits; entropy of the two tokens before each of its top examples",
    "firing_entropy": "bits; entropy of the tokens over all its firings",
    "distinct_tokens": "different tokens it fires on",
    "token_share": "share of its firings that are on its most frequent token",
    "position_top": "position that has most of its firings; -1 where it never fires",
    "position_share": "share of its firings at that position",
    "mean_position": "mean position of its firings",
    "encoder_cosine": "cosine of its encoder and decoder rows",
    "decoder_norm": "length of its decoder row",
    "nearest_cosine": "cosine of its decoder row with the nearest other one",
    "logit_std": "standard deviation of its direct effects over the vocabulary",
    "logit_kurtosis": "kurtosis of its direct effects over the vocabulary; 3 for a normal distribution, more if few tokens stand out",
    "logit_min": "its lowest direct effect on a token",
    "logit_max": "its largest direct effect on a token",
}


class Histogram(NamedTuple):
    """Counts in bins: of a latent's values (log-spaced) or of its direct effects on the vocabulary (equal width)."""

    edges: Float[Tensor, "edge"]
    counts: Int[Tensor, "bin"]


class Example(NamedTuple):
    """A place where a latent fires: `tokens` with the latent's `values`, `focus` the index of the one it is shown for.

    `bin` is the histogram bin that it is a sample of, -1 for top examples.
    """

    row: int
    document: int
    position: int
    value: float
    tokens: list[str]
    values: list[float]
    focus: int
    bin: int = -1


class TokenShare(NamedTuple):
    """A token that a latent fires on: how often, which share of its firings, and P(token | fires) / P(token)."""

    token: str
    count: int
    share: float
    lift: float


class Feature(NamedTuple):
    """Everything the store knows of one latent. Logit lists are (token, direct effect).

    What a store of version 1 has not is empty, NaN, -1 or None.
    """

    latent: int
    label: str | None
    count: int
    density: float
    mean_value: float
    max_value: float
    token_entropy: float
    context_entropy: float
    histogram: Histogram
    examples: list[Example]
    top_logits: list[tuple[str, float]]
    bottom_logits: list[tuple[str, float]]
    std_value: float
    samples: list[Example]
    tokens: list[TokenShare]
    encoder_cosine: float
    position_top: int
    position_share: float
    mean_position: float
    logit_histogram: Histogram | None

    _repr_html_ = drawn
