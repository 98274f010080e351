"""The dense reference that ours is compared with: a TopK autoencoder written in the most direct way.

Dense scatter, dense decode, autograd for everything, Adam, unit decoder rows, AuxK 1/32 on latents that were silent for more
than `dead_after` steps, the same warm-up and decay. Its learning rate is tuned by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Dense:
    """The reference in training: weights on raw activations, W_enc and W_dec `[latent d]`; `x` centres the decoder."""

    def __init__(self, x: Tensor, latents: int, k: int, lr: float, seed: int, dead_after: int = 50):
        torch.manual_seed(seed)
        rows = torch.nn.functional.normalize(torch.randn(latents, x.shape[1]), dim=1)
        w = {"W_enc": rows.clone(), "b_enc": torch.zeros(latents), "W_dec": rows.clone(), "b_dec": x.mean(0)}
        self.w = {name: tensor.requires_grad_() for name, tensor in w.items()}
        self.adam = torch.optim.Adam(self.w.values(), lr=lr)
        self.silent = torch.zeros(latents)
        self.k, self.lr, self.dead_after = k, lr, dead_after

    @property
    def dead(self) -> Tensor:
        """Which latents have been silent for too many steps."""
        return self.silent > self.dead_after

    def loss(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch `[token d]`, and its dense activations."""
        w, dead = self.w, self.dead
        pre = (x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
        acts = keep_top(pre, self.k).relu()
        error = x - acts @ w["W_dec"] - w["b_dec"]
        loss = error.square().sum() / (x - x.mean(0)).square().sum()
        if dead.any():
            masked = torch.where(dead, pre, -torch.inf)
            aux = torch.where(dead, keep_top(masked, min(x.shape[1] // 2, int(dead.sum()))), 0.0).relu()
            loss = loss + (error.detach() - aux @ w["W_dec"]).square().sum() / error.detach().square().sum() / 32
        return loss, acts

    def step(self, x: Tensor, rate: float = 1.0) -> Tensor:
        """One optimiser step, at a share of the learning rate; returns the loss before it."""
        loss, acts = self.loss(x)
        for group in self.adam.param_groups:
            group["lr"] = self.lr * rate
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        with torch.no_grad():
            self.w["W_dec"] /= self.w["W_dec"].norm(dim=1, keepdim=True)
            self.silent = torch.where((acts > 0).any(0), 0.0, self.silent + 1)
        return loss.detach()


def train_dense(batches: Iterable[Tensor], steps: int, latents: int, k: int, lr: float, seed: int) -> dict[str, Tensor]:
    """Train on `[token d]` batches; returns the weights."""
    dense = None
    for step, x in enumerate(batches):
        dense = dense or Dense(x, latents, k, lr, seed)
        dense.step(x, min(1.0, (step + 1) / (0.02 * steps), (steps - step) / (0.3 * steps)))
    return {name: tensor.detach() for name, tensor in dense.w.items()} if dense else {}


def keep_top(pre: Tensor, k: int) -> Tensor:
    """Zero all but the k largest entries of each row."""
    values, indices = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, indices, values)


def reconstruct_dense(w: dict[str, Tensor], x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Reconstruction, and which latents fired."""
    acts = keep_top((x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"], k).relu()
    return acts @ w["W_dec"] + w["b_dec"], (acts > 0).any(0)
