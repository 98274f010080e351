"""What the weights alone say of each latent: the tokens it promotes, its neighbours, and whether it writes what it reads.

The direct effect of a latent on the vocabulary is its decoder row (less its mean where the final norm is a LayerNorm), times
the final norm's gain and the unembedding, centred over the vocabulary. The norm's scale is left out, so effects rank tokens and
are not logits. Of each latent's effects are kept the largest and smallest, a histogram of BINS equal bins between the extremes,
standard deviation and kurtosis (mean of the fourth power over the squared variance; 3 for a normal distribution).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from tqdm import tqdm

from ....kernels import encode_topk, topk
from ...dictionary import Dictionary

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOP_LOGITS = 10
NEIGHBOURS = 8
LOGIT_BINS = 40
PIECE = 2**22  # effects at a time


def weight_arrays(dictionary: Dictionary, model: TransformerBridge, progress: bool = False) -> dict[str, Tensor]:
    """The arrays of a FeatureStore that need no text (docs/formats.md)."""
    return logit_arrays(dictionary, model, progress) | neighbours(dictionary) | alignment(dictionary)


def logit_arrays(dictionary: Dictionary, model: TransformerBridge, progress: bool = False) -> dict[str, Tensor]:
    """Direct effects of each latent on the vocabulary; empty unless it writes at the model's width."""
    W_U: Any = model.unembed.W_U
    W_dec = added(dictionary)
    if W_dec.shape[1] != W_U.shape[0]:
        return {}
    W_U = final_gain(model).to(W_U.device)[:, None] * W_U.float()
    W_U = (W_U - W_U.mean(1, keepdim=True)).nan_to_num(0.0, 0.0, 0.0)
    W_dec = W_dec.to(W_U).nan_to_num(0.0, 0.0, 0.0)
    if not getattr(model.ln_final, "uses_rms_norm", True):  # a LayerNorm takes the mean out of what is written
        W_dec = W_dec - W_dec.mean(1, keepdim=True)
    pieces = W_dec.split(max(1, PIECE // W_U.shape[1]))
    parts = [_effects(rows @ W_U) for rows in tqdm(pieces, desc="direct effects", disable=not progress)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def added(dictionary: Dictionary) -> Float[Tensor, "latent d"]:
    """What each latent adds to the residual stream in the end: the sum over `lasting` sites (the last, where widths differ)."""
    rows = [dictionary.decoders()[site] for site in lasting(dictionary)]
    return torch.stack(rows).sum(0) if len({row.shape[1] for row in rows}) == 1 else rows[-1]


def lasting(dictionary: Dictionary) -> tuple[str, ...]:
    """The written sites that add up: all of them, but of residual sites the last, since the stream there holds the earlier ones."""
    sites = dictionary.config.sites_out or ("",)
    return sites[-1:] if any("resid" in site for site in sites) else sites


def _effects(effect: Float[Tensor, "latent vocab"]) -> dict[str, Tensor]:
    """`effect` is overwritten."""
    vocab = effect.shape[1]
    most = min(TOP_LOGITS, vocab)
    top, top_tokens = topk(effect, most)
    bottom, bottom_tokens = topk(-effect, most)
    low, high = -bottom[:, :1], top[:, :1]
    variance = effect.square().mean(1)
    fourth = effect.square().square_().mean(1)
    bins = effect.sub_(low).mul_(LOGIT_BINS / (high - low).clamp_min(1e-30)).clamp_(0, LOGIT_BINS - 1).int()
    bins += LOGIT_BINS * torch.arange(len(effect), dtype=torch.int32, device=effect.device)[:, None]
    found = {
        "top_logit_values": top,
        "top_logit_tokens": top_tokens.int(),
        "bottom_logit_values": -bottom,
        "bottom_logit_tokens": bottom_tokens.int(),
        "logit_histogram": torch.bincount(bins.view(-1), minlength=LOGIT_BINS * len(effect)).view(-1, LOGIT_BINS).int(),
        "logit_range": torch.cat([low, high], 1),
        "logit_std": variance.sqrt(),
        "logit_kurtosis": fourth / variance.square().clamp_min(1e-30),
    }
    return {name: tensor.cpu() for name, tensor in found.items()}


def final_gain(model: TransformerBridge) -> Float[Tensor, "d"]:
    """Elementwise gain of the norm before the unembedding (ones where it has none)."""
    norm: Any = model.ln_final
    weight = getattr(norm, "weight", None)
    if weight is None:
        return torch.ones(model.cfg.d_model)
    return weight.float() + 1.0 if norm.uses_weight_offset else weight.float()


def neighbours(dictionary: Dictionary) -> dict[str, Tensor]:
    """The latents whose decoder rows point most nearly the same way, with their cosines.

    They are found as the top k of unit rows among themselves, 2 added so that none is cut off; the cosines are then computed.
    """
    unit = normalize(dictionary.W_dec.float().nan_to_num(0.0, 0.0, 0.0), dim=1)
    latents, count = len(unit), min(NEIGHBOURS, len(unit) - 1)
    _, found = encode_topk(unit, unit, unit.new_full((latents,), 2.0), count + 1)
    is_itself = found == torch.arange(latents, device=found.device)[:, None]
    is_itself[:, -1] |= ~is_itself.any(1)  # where more than `count` others are equal to it
    found = found[~is_itself].view(latents, count)
    cosines = torch.cat(
        [(unit[near] * own[:, None]).sum(2) for near, own in zip(found.split(4096), unit.split(4096), strict=True)]
    )
    order = cosines.argsort(dim=1, descending=True, stable=True)
    return {
        "neighbour_cosines": cosines.gather(1, order).cpu(),
        "neighbours": found.gather(1, order).int().cpu(),
    }


def alignment(dictionary: Dictionary) -> dict[str, Tensor]:
    """Cosine of each latent's encoder and decoder rows (NaN where their widths differ), and the decoder row's length."""
    W_enc, W_dec = dictionary.W_enc.float(), dictionary.W_dec.float()
    cosine = W_dec.new_full((len(W_dec),), torch.nan)
    if W_enc.shape == W_dec.shape:
        cosine = cosine_similarity(W_enc, W_dec, dim=1)
    return {"encoder_cosine": cosine.cpu(), "decoder_norm": W_dec.norm(dim=1).cpu()}


def vocabulary(model: TransformerBridge) -> list[str]:
    """Every token as the tokenizer decodes it alone."""
    tokenizer: Any = model.tokenizer
    ids: list[list[int]] = [[token] for token in range(model.cfg.d_vocab)]
    return tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
