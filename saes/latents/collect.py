"""Dictionary + tokens → FeatureStore: one pass over the codes, then what the weights alone say.

The pass gathers FeatureStats. From the weights come the tokens that a latent promotes and suppresses through the direct
path (its decoder row times the final norm's gain and the unembedding, centred over the vocabulary; the norm's scale is left
out, so the numbers rank tokens and are not logits), and its neighbours by decoder cosine. From the top examples come two
entropies in bits: of the tokens it fires on, and of the pairs of tokens before those.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ..dictionary import Dictionary
from ..errors import UserError
from ..evaluate import check_shards, check_source
from ..models import load_model, model_info
from ..shards import Shards
from ..splice import check_model
from .stats import FeatureStats
from .store import FeatureStore, write_store

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOP_LOGITS = 10
NEIGHBOURS = 8


@torch.no_grad()
def collect(
    dictionary: Dictionary,
    shards: Shards,
    folder: str | Path,
    model: TransformerBridge | None = None,
    *,
    batch: int = 8192,
    progress: bool = True,
) -> FeatureStore:
    """Gather what every latent does on the tokens of `shards` into a FeatureStore at `folder`.

    `model` (loaded by the Shards' model name when left out) gives the vocabulary and the unembedding. `batch` is tokens per
    step. Raises UserError if dictionary, Shards and model do not belong together or `folder` holds other files.
    """
    folder = Path(folder)
    check_shards(dictionary, shards)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"expected an empty folder for the FeatureStore; {folder} has files; choose another")
    model = model or load_model(shards.manifest["model"]["name"])
    check_model(dictionary, model)
    check_source(shards, model)
    stats = FeatureStats(dictionary.config.latents)
    bar = tqdm(total=len(shards), unit="tok", unit_scale=True, desc="collect", disable=not progress)
    for start, stop in block_spans(shards.positions, batch):
        part = {site: rows.float() for site, rows in shards.read(_sites(dictionary), slice(start, stop)).items()}
        positions = shards.positions[start:stop]
        stats.update(dictionary.encode(part).cpu(), positions, start, dictionary.kept(positions, part))
        bar.update(stop - start)
    bar.close()
    arrays = stats.freeze()
    arrays |= promoted_tokens(dictionary, model) | neighbours(dictionary)
    arrays["token_entropy"], arrays["context_entropy"] = example_entropies(
        stats.top_rows, shards.tokens, shards.positions
    )
    manifest = {
        "model": model_info(model).dict(),
        "dictionary": {"fingerprint": dictionary.fingerprint, "site": dictionary.read, "site_out": dictionary.write},
        "shards": shards.fingerprint,
        "rows": stats.rows,
        "kept_rows": stats.kept,
        "keep": dictionary.keep_rule.to_dict(),
        "before": stats.before,
        "after": stats.after,
    }
    write_store(folder, manifest, arrays, shards, vocabulary(model))
    return FeatureStore.open(folder)


def _sites(dictionary: Dictionary) -> list[str]:
    return list(dict.fromkeys([dictionary.read, dictionary.write]))


def block_spans(positions: Int[Tensor, "row"], batch: int) -> Iterator[tuple[int, int]]:
    """Cut the rows into spans of about `batch` that never split a block."""
    starts = (positions == 0).nonzero().squeeze(1).tolist() + [len(positions)]
    begin = 0
    for start, following in zip(starts, starts[1:] + [starts[-1]], strict=True):
        if (following - begin > batch and start > begin) or start == len(positions):
            yield begin, start
            begin = start


def promoted_tokens(dictionary: Dictionary, model: TransformerBridge, piece: int = 256) -> dict[str, Tensor]:
    """Tokens with the largest and smallest direct effect of each latent; empty unless it writes at the model's width."""
    W_U: Any = model.unembed.W_U
    if dictionary.W_dec.shape[1] != W_U.shape[0]:
        return {}
    W_U = final_gain(model)[:, None] * W_U.float()
    found: dict[str, list[Tensor]] = {"top": [], "bottom": []}
    for rows in dictionary.W_dec.to(W_U).split(piece):
        effect = rows @ W_U
        effect -= effect.mean(1, keepdim=True)
        found["top"].append(torch.stack([part.float() for part in effect.topk(TOP_LOGITS)]))
        found["bottom"].append(torch.stack([part.float() for part in effect.topk(TOP_LOGITS, largest=False)]))
    out = {}
    for name, parts in found.items():
        values, tokens = torch.cat(parts, 1).cpu()
        out |= {f"{name}_logit_values": values.clone(), f"{name}_logit_tokens": tokens.int()}
    return out


def final_gain(model: TransformerBridge) -> Float[Tensor, "d"]:
    """Elementwise gain of the norm before the unembedding (ones where it has none)."""
    norm: Any = model.ln_final
    weight = getattr(norm, "weight", None)
    if weight is None:
        return torch.ones(model.cfg.d_model)
    return weight.float() + 1.0 if norm.uses_weight_offset else weight.float()


def neighbours(dictionary: Dictionary, piece: int = 2048) -> dict[str, Tensor]:
    """The latents whose decoder rows point most nearly the same way, with their cosines."""
    unit = torch.nn.functional.normalize(dictionary.W_dec.float().cpu(), dim=1)
    count = min(NEIGHBOURS, len(unit) - 1)
    values, indices = [], []
    for start in range(0, len(unit), piece):
        cosine = unit[start : start + piece] @ unit.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -2.0
        best = cosine.topk(count)
        values.append(best.values)
        indices.append(best.indices.int())
    return {"neighbour_cosines": torch.cat(values), "neighbours": torch.cat(indices)}


def example_entropies(
    rows: Int[Tensor, "latent example"], tokens: Int[Tensor, "row"], positions: Int[Tensor, "row"]
) -> tuple[Float[Tensor, "latent"], Float[Tensor, "latent"]]:
    """Entropy in bits of the token under each latent's examples, and of the two tokens before it."""
    size = int(tokens.max()) + 2

    def before(by: int) -> Tensor:
        earlier = tokens[(rows - by).clamp_min(0)]
        return torch.where(positions[rows.clamp_min(0)] >= by, earlier, size - 1)

    focus, context = tokens[rows.clamp_min(0)], before(2) * size + before(1)
    return _entropy(focus, rows >= 0), _entropy(context, rows >= 0)


def _entropy(keys: Int[Tensor, "latent example"], real: Tensor) -> Float[Tensor, "latent"]:
    same = (keys[:, :, None] == keys[:, None, :]) & real[:, None, :]
    share = same.sum(2) / real.sum(1, keepdim=True).clamp_min(1)
    terms = torch.where(real, share.clamp_min(1e-9).log2(), 0.0)
    return 0.0 - terms.sum(1) / real.sum(1).clamp_min(1)  # not -x, which would make a zero negative


def vocabulary(model: TransformerBridge) -> list[str]:
    """Every token as the tokenizer decodes it alone."""
    tokenizer: Any = model.tokenizer
    ids = [[token] for token in range(model.cfg.d_vocab)]
    return tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
