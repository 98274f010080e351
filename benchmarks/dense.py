"""The dense reference that ours is compared with: a TopK autoencoder written in the most direct way.

Dense scatter, dense decode, autograd for everything, Adam, unit decoder rows, AuxK 1/32 on latents that were silent for 50
steps, the same warm-up and decay. Its learning rate is tuned by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def train_dense(batches: Iterable[Tensor], steps: int, latents: int, k: int, lr: float, seed: int) -> dict[str, Tensor]:
    """Train on `[token d]` batches; the weights act on raw activations, W_enc and W_dec are `[latent d]`."""
    torch.manual_seed(seed)
    silent = torch.zeros(latents)
    w: dict[str, Tensor] = {}
    for step, x in enumerate(batches):
        if not w:
            rows = torch.nn.functional.normalize(torch.randn(latents, x.shape[1]), dim=1)
            w = {"W_enc": rows.clone(), "b_enc": torch.zeros(latents), "W_dec": rows.clone(), "b_dec": x.mean(0)}
            w = {name: tensor.requires_grad_() for name, tensor in w.items()}
            adam = torch.optim.Adam(w.values(), lr=lr)
        pre = (x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
        acts = keep_top(pre, k).relu()
        error = x - acts @ w["W_dec"] - w["b_dec"]
        loss = error.square().sum() / (x - x.mean(0)).square().sum()
        dead = silent > 50
        if dead.any():
            masked = torch.where(dead, pre, -torch.inf)
            aux = torch.where(dead, keep_top(masked, min(x.shape[1] // 2, int(dead.sum()))), 0.0).relu()
            loss = loss + (error.detach() - aux @ w["W_dec"]).square().sum() / error.detach().square().sum() / 32
        for group in adam.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / (0.02 * steps), (steps - step) / (0.3 * steps))
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            w["W_dec"] /= w["W_dec"].norm(dim=1, keepdim=True)
            silent = torch.where((acts > 0).any(0), 0.0, silent + 1)
    return {name: tensor.detach() for name, tensor in w.items()}


def keep_top(pre: Tensor, k: int) -> Tensor:
    """Zero all but the k largest entries of each row."""
    values, indices = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, indices, values)


def reconstruct_dense(w: dict[str, Tensor], x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Reconstruction, and which latents fired."""
    acts = keep_top((x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"], k).relu()
    return acts @ w["W_dec"] + w["b_dec"], (acts > 0).any(0)
