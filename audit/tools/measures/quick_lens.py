"""The activation-difference lens on ordinary text, at once: what the target says more than the base at the first tokens of any text.

A narrow fine-tune shows there even on text that has nothing to do with it (Minder et al. 2025, arXiv 2510.13900); audit/diffing/lens.py has
the method and its controls. Read on the baseline text at the stream after the middle block; no dictionary is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ....saes import UserError, model_info, token_strings
from ....saes.capture import capture
from ....saes.text import Block, pad_blocks
from ...diffing.lens import MASSIVE, POSITIONS, FirstTokens, read_off
from ...diffing.result import Diff
from ..answers import Answer
from ..untrusted import token, untrusted
from .baseline import BATCH, baseline_blocks, neutral

if TYPE_CHECKING:
    from ..session import Session

CONTROLS, FDR = 99, 0.05


def quick_lens(session: Session, k: int) -> Answer:
    """The tokens that are raised and lowered most, beside two random halves of the base's own texts, and random directions."""
    workspace = session.workspace
    base, target = workspace.model("base"), workspace.model("target")
    layer = model_info(target).n_layers // 2
    site = f"blocks.{layer}.hook_resid_post"
    if model_info(base).tokenizer != model_info(target).tokenizer:
        raise UserError("expected models of one tokenizer for the lens; these differ; ask by chat or compare_texts")
    blocks = baseline_blocks(base, neutral(workspace.corpus))
    first = _first(_table(base, blocks, site), _table(target, blocks, site))
    found = Diff({"method": "lens"}, read_off(target, first, controls=CONTROLS, seed=session.seed, fdr=FDR))
    order = found.order()
    names = token_strings(target, found.columns["token"][order])
    rows: dict[str, dict[str, Any]] = {}
    for name, place in zip(names, order, strict=True):
        row = {
            "token": untrusted(token(name)),
            **{each: column[place].item() for each, column in found.columns.items() if each in SHOWN},
        }
        row["found"] = bool(found.columns["is_found"][place])
        rows.setdefault(name, row)  # a token that several positions raise is told once, where most
    result = {
        "diff": None, "method": "lens", "layer": layer, "found": found.discoveries, "of": len(found), "fdr": FDR, "documents": len(blocks),
        "random_high": float(found.columns["random_high"][0]), "rows": list(rows.values())[:k],
    }  # fmt: skip
    return Answer(result, "rows", session.about(), session.seed)


SHOWN = ("position", "score", "p", "q")


def _table(model: Any, blocks: list[Block], site: str) -> Float[Tensor, "position document d"]:
    """Activations at the first positions after the BOS; NaN where a document has no such token, or a massive activation there."""
    parts = []
    for start in range(0, len(blocks), BATCH):
        some = blocks[start : start + BATCH]
        rows = capture(
            model, pad_blocks([Block(block.tokens[: POSITIONS + 1], block.document) for block in some]), [site]
        )[site]
        lengths = [min(len(block.tokens), POSITIONS + 1) for block in some]
        for part in rows.double().split(lengths):
            padded = torch.full((POSITIONS + 1, rows.shape[1]), torch.nan, dtype=torch.float64)
            padded[: len(part)] = part
            parts.append(padded[1:])
    table = torch.stack(parts, 1)
    norms = table.norm(dim=2)
    is_massive: Bool[Tensor, "position document"] = norms > MASSIVE * norms[norms.isfinite()].median()
    return table.masked_fill(is_massive[:, :, None], torch.nan)


def _first(a: Float[Tensor, "position document d"], b: Float[Tensor, "position document d"]) -> FirstTokens:
    known = (a.isfinite().all(2) & b.isfinite().all(2)).double()
    return FirstTokens(a.nan_to_num() * known[:, :, None], b.nan_to_num() * known[:, :, None], known)
