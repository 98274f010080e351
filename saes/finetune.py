"""End-to-end fine-tuning: a trained dictionary is adapted to what its errors do to the model's predictions.

    loss = mean over written sites of |y - y_hat|^2 / |y - mean y|^2  +  kl * s * KL(clean model || model computing through it)
    s    = the first term over the second, held fixed: so `kl` is the ratio of the two, whatever their units

Reconstruction alone spends capacity on directions that do not matter downstream; a few million tokens with the model's own loss
recover much of it (Karvonen 2025, arXiv 2503.17272, whose balanced loss this is; Braun et al. 2024, arXiv 2405.12241). Activations,
and the positions that are kept, come from the passes of the model itself. Decoder rows keep their lengths and thresholds stay;
nothing holds L0 of a penalised rule where it was, so look at it afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from .adam import Adam
from .dictionary import Dictionary
from .downstream import divergence, log_probs
from .errors import UserError
from .splice import check_model, replacing
from .text import Block, PaddedBlocks, pad_blocks, token_blocks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FIXED = ("threshold",)  # what has no gradient through the codes


def finetune(
    dictionary: Dictionary,
    model: TransformerBridge,
    texts: Iterable[Any],
    *,
    tokens: int = 1_000_000,
    kl: float = 1.0,
    lr: float = 5e-5,
    batch: int = 8,
    context: int = 128,
    progress: bool = True,
) -> Dictionary:
    """A copy of `dictionary`, fine-tuned on about `tokens` tokens of `texts` (strings, or things with a `.text`).

    `kl` weighs the model's loss against reconstruction (0: reconstruction alone), `lr` is Adam's peak rate and falls
    linearly to 0, `batch` is in blocks of `context` tokens. UserError for a dictionary of another model, a shared one
    (give `at(site)`), and text that is too short.
    """
    check_model(dictionary, model)
    if dictionary.layout.is_shared:
        raise UserError("expected a dictionary of its own sites; got a shared one; give dictionary.at(site)")
    if min(tokens, batch) < 1 or not 0 <= kl < float("inf") or not 0 < lr < float("inf"):
        raise UserError(
            f"expected tokens, batch and lr above zero, and kl of zero or more; got {tokens}, {batch}, {lr}, {kl}"
        )
    device = next(model.parameters()).device
    w = {name: tensor.detach().clone().to(device) for name, tensor in dictionary.named_parameters()}
    tuned = Dictionary(dictionary.config, w, dict(dictionary.metadata), dictionary.layout.widths)
    moving = {name: tensor.requires_grad_() for name, tensor in tuned.named_parameters() if name not in FIXED}
    lengths, adam = tuned.W_dec.detach().norm(dim=1, keepdim=True), Adam(moving)
    steps = max(1, -(-tokens // (batch * context)))
    taken = 0
    with frozen(model), tqdm(total=steps, desc="fine-tune", unit="step", disable=not progress) as bar:
        for padded in itertools.islice(batches(token_blocks(model, texts, context), batch), steps):
            fvu, added = losses(tuned, model, padded, kl)
            loss = fvu + (kl * (fvu / added.clamp_min(1e-12)).detach() * added if kl else 0)
            gradients = torch.autograd.grad(loss, list(moving.values()), allow_unused=True, materialize_grads=True)
            rate = torch.tensor(lr * (1 - taken / steps), device=device)
            descend(adam, moving, dict(zip(moving, gradients, strict=True)), rate, lengths, torch.isfinite(loss))
            taken += 1
            bar.update()
            bar.set_postfix_str(f"fvu {fvu.item():.3f} kl {added.item():.3f}", refresh=False)
    if not taken:
        raise UserError("expected text of at least two tokens to fine-tune on; got none; give more")
    tuned.requires_grad_(False)
    tuned.metadata["finetuned"] = {"tokens": taken * batch * context, "kl": kl, "lr": lr, "of": dictionary.fingerprint}
    return tuned


def batches(blocks: Iterable[Block], size: int) -> Iterator[PaddedBlocks]:
    """Blocks that have something to predict, so many at a time."""
    stream = iter(block for block in blocks if len(block.tokens) > 1)
    while some := list(itertools.islice(stream, size)):
        yield pad_blocks(some)


def losses(
    dictionary: Dictionary, model: TransformerBridge, padded: PaddedBlocks, kl: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Variance unexplained at the replaced rows, mean over written sites, and KL a predicted token (0 where it is not asked for)."""
    found: list[Tensor] = []

    def replace(site: str, reconstruct: Callable[[], Tensor], y: Float[Tensor, "token d"]) -> Float[Tensor, "token d"]:
        y_hat = reconstruct()
        y = y.detach().to(y_hat)
        found.append((y - y_hat).square().sum() / (y - y.mean(0)).square().sum().clamp_min(1e-12))
        return y_hat

    with torch.no_grad():
        clean = log_probs(model, padded)
    with torch.enable_grad(), replacing(model, dictionary, replace, real=padded.real):
        spliced = log_probs(model, padded)
    fvu = torch.stack(found).mean()
    if not kl:
        return fvu, fvu.new_zeros(())
    return fvu, divergence(clean, spliced)[padded.real[:, 1:].to(clean.device)].mean()


@torch.no_grad()
def descend(
    adam: Adam,
    weights: dict[str, Tensor],
    gradients: dict[str, Tensor],
    rate: Float[Tensor, ""],
    lengths: Float[Tensor, "latent 1"],
    is_sound: Tensor,
) -> None:
    """One Adam step; decoder rows keep their lengths, and what they wrote to no site stays zero."""
    adam.begin(1.0 - is_sound.float())
    rows = gradients["W_dec"]
    unit = weights["W_dec"] / lengths.clamp_min(1e-30)
    gradients["W_dec"] = rows - (rows * unit).sum(1, keepdim=True) * unit
    for name, weight in weights.items():
        adam.update(name, weight, gradients[name].contiguous(), rate)
    norm = weights["W_dec"].norm(dim=1, keepdim=True).clamp_min(1e-30)
    weights["W_dec"].mul_(torch.where(is_sound, lengths / norm, 1.0))


class frozen:
    """Within the block, the model's own parameters get no gradient."""

    def __init__(self, model: TransformerBridge):
        self.had = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def __enter__(self) -> None:
        for parameter in self.had:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter in self.had:
            parameter.requires_grad_(True)
