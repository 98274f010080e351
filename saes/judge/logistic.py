"""Logistic regression with a ridge, by Newton's method: the probe.

minimise  mean_i log(1 + exp(-s_i (w x_i + c)))  +  ridge / 2 |w|^2        s_i = +1 or -1, x standardised on the fitted rows
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RIDGE = 1e-3
ROUNDS = 20
SETTLED = 1e-5  # nats: a round that gains less is the last


class Probe(NamedTuple):
    """A fitted probe: it says True where `score` is above 0."""

    mean: Float[Tensor, "feature"]
    scale: Float[Tensor, "feature"]
    weight: Float[Tensor, "feature"]
    bias: Float[Tensor, ""]

    def score(self, x: Float[Tensor, "row feature"]) -> Float[Tensor, "row"]:
        """Log-odds of True, in float64."""
        return ((x.double() - self.mean) / self.scale) @ self.weight + self.bias


def fit(x: Float[Tensor, "row feature"], y: Bool[Tensor, "row"], ridge: float = RIDGE) -> Probe:
    """The probe of rows; a feature that is constant on them gets weight 0. ValueError without both kinds of rows."""
    if not y.any() or y.all():
        raise ValueError("expected rows of both kinds to fit a probe; got one kind")
    x, target = x.double(), y.double()
    mean, spread = x.mean(0), x.std(0, correction=0)
    scale = torch.where(spread > 1e-12 * (1 + mean.abs()), spread, torch.inf)
    z = torch.cat([(x - mean) / scale, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    penalty = torch.full((z.shape[1],), ridge, dtype=torch.float64)
    penalty[-1] = 1e-9
    w = torch.zeros(z.shape[1], dtype=torch.float64)
    loss = objective(z, target, penalty, w)
    for _ in range(ROUNDS):
        p = torch.sigmoid(z @ w)
        gradient = z.T @ (p - target) / len(z) + penalty * w
        curvature = (z * (p * (1 - p))[:, None]).T @ z / len(z) + torch.diag(penalty)
        step, size = torch.linalg.solve(curvature, gradient), 1.0
        while (new := objective(z, target, penalty, w - size * step)) > loss and size > 1e-4:
            size /= 2
        w, done, loss = w - size * step, loss - new < SETTLED, new
        if done:
            break
    return Probe(mean, scale, w[:-1], w[-1])


def objective(z: Tensor, target: Tensor, penalty: Tensor, w: Tensor) -> float:
    """What `fit` minimises."""
    score = z @ w
    loss = torch.nn.functional.softplus(score) - target * score
    return float(loss.mean() + (penalty * w.square()).sum() / 2)
