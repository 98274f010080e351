"""What a dictionary does to the model's predictions: cross-entropy and KL with the written sites replaced.

Four replacements at the tokens that the dictionary answers for (keep.py): its reconstruction, zero, the mean, and (names ending
in `_all`) the reconstruction and zero at every token, special and massive ones too. Everything is measured on the same blocks, in
nats per predicted token. Several written sites are replaced together; `ce_added_by_site` replaces one of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .dictionary import Dictionary
from .errors import UserError
from .shards.folder import Shards
from .splice import Replace, check_model, replacing
from .statistics import bootstrap
from .text import Block, PaddedBlocks, pad_blocks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HARMLESS = 1e-6  # nats: an ablation that adds no more has no share to recover


@torch.no_grad()
def downstream(
    dictionary: Dictionary,
    shards: Shards,
    model: TransformerBridge,
    rows: Bool[Tensor, "row"],
    mean: Mapping[str, Float[Tensor, "d"]],
    tokens: int,
    batch: int,
    seed: int,
) -> dict[str, Any]:
    """Cross-entropies, KL and recovered shares over about `tokens` tokens of the blocks that lie in `rows`."""
    check_model(dictionary, model)
    device = next(model.parameters()).device
    dictionary, mean = dictionary.to(device), {site: value.to(device) for site, value in mean.items()}
    several = dictionary.config.sites_out if len(dictionary.config.sites_out) > 1 else ()
    ways: dict[str, tuple[Replace, bool, Iterable[str] | None]] = {
        "reconstructed": (reconstructed, False, None),
        "zero": (zero, False, None),
        "mean": (lambda site, reconstruct, y: mean[site].expand_as(y), False, None),
        "reconstructed_all": (reconstructed, True, None),
        "zero_all": (zero, True, None),
        **{f"at {site}": (reconstructed, False, (site,)) for site in several},
    }
    names = ["clean", *ways, "kl", "kl_all"]
    sums: list[list[float]] = []
    blocks = sample_blocks(shards, rows, tokens, seed)
    if not blocks:
        raise UserError("expected text blocks of at least two tokens to predict; got none; cache longer texts")
    for start in range(0, len(blocks), batch):
        padded = pad_blocks(blocks[start : start + batch])
        clean = log_probs(model, padded)
        columns = {"clean": block_losses(clean, padded)}
        for name, (replace, everywhere, sites) in ways.items():
            with replacing(model, dictionary, replace, everywhere, sites, padded.real):
                changed = log_probs(model, padded)
            columns[name] = block_losses(changed, padded)
            if name.startswith("reconstructed"):
                columns["kl" + name.removeprefix("reconstructed")] = block_kl(clean, changed, padded)
        counts = padded.real[:, 1:].sum(1).tolist()
        sums += [[*(columns[name][i] for name in names), counts[i]] for i in range(len(counts))]
    table = torch.tensor(sums, dtype=torch.float64)
    means = dict(zip(names, (table[:, :-1].sum(0) / table[:, -1].sum()).tolist(), strict=True))
    paired = torch.stack([table[:, 1] - table[:, 0], table[:, -1]], 1)
    recovered = [names.index(name) for name in ("zero", "reconstructed", "clean")]
    added = {site: means.pop(f"at {site}") - means["clean"] for site in several}
    return {
        **{name if name.startswith("kl") else f"ce_{name}": value for name, value in means.items()},
        "ce_tokens": int(table[:, -1].sum()),
        "ce_added": means["reconstructed"] - means["clean"],
        "ce_added_interval": bootstrap(paired, lambda s: s[:, 0] / s[:, 1], seed),
        "kl_interval": bootstrap(table[:, [names.index("kl"), -1]], lambda s: s[:, 0] / s[:, 1], seed),
        "ce_recovered_interval": None
        if abs(means["zero"] - means["clean"]) <= HARMLESS
        else bootstrap(table[:, recovered], lambda s: (s[:, 0] - s[:, 1]) / (s[:, 0] - s[:, 2]), seed),
        "ce_recovered": _recovered(means["zero"], means["reconstructed"], means["clean"]),
        "ce_recovered_mean": _recovered(means["mean"], means["reconstructed"], means["clean"]),
        "ce_recovered_all": _recovered(means["zero_all"], means["reconstructed_all"], means["clean"]),
        **({"ce_added_by_site": added} if several else {}),
    }


def reconstructed(site: str, reconstruct: Callable[[], Tensor], y: Tensor) -> Tensor:
    """Replace a site by its reconstruction."""
    return reconstruct()


def zero(site: str, reconstruct: Callable[[], Tensor], y: Tensor) -> Tensor:
    """Replace a site by zero."""
    return torch.zeros_like(y)


def _recovered(ablated: float, reconstructed: float, clean: float) -> float | None:
    """Share of the ablation's damage that the reconstruction avoids; None where the ablation does none."""
    return (ablated - reconstructed) / (ablated - clean) if abs(ablated - clean) > HARMLESS else None


def sample_blocks(shards: Shards, rows: Bool[Tensor, "row"], tokens: int, seed: int) -> list[Block]:
    """Blocks of the cached text that lie in `rows`, in random order, until they hold `tokens` tokens."""
    starts = torch.cat([(shards.positions == 0).nonzero().squeeze(1), torch.tensor([len(shards)])])
    order = torch.randperm(len(starts) - 1, generator=torch.Generator().manual_seed(seed)).tolist()
    blocks: list[Block] = []
    total = 0
    for i in order:
        first, end = int(starts[i]), int(starts[i + 1])
        if rows[first] and end - first > 1 and total < tokens:
            blocks.append(Block(shards.tokens[first:end], int(shards.documents[first])))
            total += end - first
    return blocks


def log_probs(model: TransformerBridge, blocks: PaddedBlocks) -> Float[Tensor, "batch seq vocab"]:
    """Log-probabilities of every next token, in float32."""
    device = next(model.parameters()).device
    return model(blocks.tokens.to(device)).float().log_softmax(-1)


def block_losses(log_p: Float[Tensor, "batch seq vocab"], blocks: PaddedBlocks) -> list[float]:
    """Summed negative log-likelihood of each block's tokens after the first."""
    targets = blocks.tokens[:, 1:].to(log_p.device)
    nll = -log_p[:, :-1].gather(-1, targets[..., None]).squeeze(-1)
    return (nll * blocks.real[:, 1:].to(log_p.device)).sum(1).tolist()


def divergence(
    clean: Float[Tensor, "batch seq vocab"], changed: Float[Tensor, "batch seq vocab"]
) -> Float[Tensor, "batch before"]:
    """KL(clean || changed) at every position but the last, which predicts nothing."""
    return (clean.exp() * (clean - changed)).sum(-1)[:, :-1]


def block_kl(clean: Tensor, changed: Tensor, blocks: PaddedBlocks) -> list[float]:
    """Summed KL(clean || changed) over the positions that `block_losses` counts."""
    kl = divergence(clean, changed)
    return (kl * blocks.real[:, 1:].to(kl.device)).sum(1).tolist()


@torch.no_grad()
def text_loss(model: TransformerBridge, tokens: Tensor) -> float:
    """Mean cross-entropy in nats of one block of tokens, BOS included, after its first token."""
    padded = pad_blocks([Block(tokens.cpu(), 0)])
    return block_losses(log_probs(model, padded), padded)[0] / (len(tokens) - 1)
