"""Which latents fire on which token of a text, as a small table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..cache import capture
from ..dictionary import Dictionary
from ..drawn import drawn
from ..errors import UserError
from ..models import model_info, to_tokens, token_strings
from ..sites import resolve_site
from ..splice import check_model
from ..text import Block, pad_blocks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Firing(NamedTuple):
    """One active latent on one token; `is_kept` is False where the dictionary does not answer for the token (keep.py)."""

    position: int
    token: str
    latent: int
    value: float
    is_kept: bool


class FeatureTable(list[Firing]):
    """Rows of `features`, by position, strongest first; prints as a table, `.latents()` ranks latents over the text."""

    _repr_html_ = drawn

    def latents(self) -> list[tuple[int, float]]:
        """Latents by their largest value on tokens that the dictionary answers for."""
        best: dict[int, float] = {}
        for row in self:
            if row.is_kept:
                best[row.latent] = max(row.value, best.get(row.latent, 0.0))
        return sorted(best.items(), key=lambda item: -item[1])

    def __str__(self) -> str:
        lines = []
        for position, rows in _by_position(self):
            found = "  ".join(f"{row.latent}:{row.value:.3g}" for row in rows)
            note = "" if rows[0].is_kept else "  (outside the training rule)"
            lines.append(f"{position:>4} {rows[0].token!r:<16} {found}{note}")
        return "\n".join(lines)

    __repr__ = __str__


def _by_position(rows: list[Firing]) -> Iterator[tuple[int, list[Firing]]]:
    for position in dict.fromkeys(row.position for row in rows):
        yield position, [row for row in rows if row.position == position]


@torch.no_grad()
def features(model: TransformerBridge, dictionary: Dictionary, text: str, top: int = 5) -> FeatureTable:
    """The `top` strongest latents of `dictionary` on every token of `text` (BOS included, as the model reads it).

    Raises UserError for empty text, text longer than the model's context, or a dictionary of another model.
    """
    check_model(dictionary, model)
    tokens = to_tokens(model, text).cpu()
    n_ctx = model_info(model).n_ctx
    if len(tokens) > n_ctx:
        raise UserError(f"expected text of at most {n_ctx} tokens; got {len(tokens)}; cut it")
    sites = {name: resolve_site(model, name) for name in dictionary.sites}
    rows = capture(model, pad_blocks([Block(tokens, 0)]), list(dict.fromkeys(sites.values())))
    part = {name: rows[site].to(dictionary.W_enc.device) for name, site in sites.items()}
    codes = dictionary.encode(part)
    kept = dictionary.kept(torch.arange(len(tokens)), part, tokens).tolist()
    table = FeatureTable()
    for position, token in enumerate(token_strings(model, tokens)):
        for value, latent in zip(
            codes.values[position, :top].tolist(), codes.indices[position, :top].tolist(), strict=True
        ):
            if value > 0:
                table.append(Firing(position, token, latent, value, kept[position]))
    return table
