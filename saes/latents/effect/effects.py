"""What a latent does to the model's predictions where it fires: the run as it is against the run without it.

For one latent j and one example, the model reads the example's block as it stands in the text (BOS included) up to the
example's last token, once as it is and once with

    y' = y − a_j W_dec[j]     at every token of the block on which j fires (a_j > 0 and the dictionary answers for it)

at the written site; the reconstruction error stays, and attention and norms answer freely. Of every shown token t

    loss_change     = −log p'(t | before) + log p(t | before), in nats: above 0 where the latent helps to predict t.
                      A loss belongs to the token that is predicted: what changes it happened before t, not at t
    logit_up        = the next tokens v after t whose log p(v) − log p'(v) is largest, if above 0: what the latent raises
    logit_down      = likewise the lowest, below 0

Logits mean something only up to a constant per position, so their changes are those of log-probabilities; and among tokens
that the model would never say these are large at random (smollm2-135m: "Intf" and "firehose" above " Paris"), so v must
have at least `least_probability` in one of the runs. Before the first token on which the latent fires, all of it is exactly
0 and the lists are empty. A block's first token is predicted by nobody: NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, SupportsInt

import torch
from jaxtyping import Float
from torch import Tensor

from ...dictionary import Dictionary
from ...errors import UserError
from ...models import model_info
from ...splice import check_model
from ..shelf.feature import Example
from .effect_runs import Run, Window, batches, run_both

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from ..shelf.store import FeatureStore

Changes = list[tuple[str, float]]


class Effect(NamedTuple):
    """Of one example, by shown token: the latent's value, its effect on the loss, the token's probability with and without it,
    and the next tokens that it raises and lowers most, (token, change of log-probability) each."""

    row: int
    focus: int
    tokens: list[str]
    values: Float[Tensor, "token"]
    loss_change: Float[Tensor, "token"]
    probability: Float[Tensor, "token"]
    probability_without: Float[Tensor, "token"]
    logit_up: list[Changes]
    logit_down: list[Changes]


@torch.no_grad()
def effects(
    store: FeatureStore,
    latent: int,
    model: TransformerBridge,
    dictionary: Dictionary,
    examples: Iterable[Example | SupportsInt] | None = None,
    *,
    top: int = 5,
    least_probability: float = 1e-3,
    memory_mib: int = 256,
) -> list[Effect]:
    """What removing `latent` does at each of `examples` (of the store; or rows of its text; all its top examples if None).

    `top` is how many raised and lowered tokens are kept at most, of those that have `least_probability` with the latent or
    without; `memory_mib` is about what the logits of one batch may take. Raises UserError if store, dictionary and model do
    not belong together, or for a latent or a row that the store lacks.
    """
    check_together(store, model, dictionary)
    if not 0 <= latent < len(store):
        raise UserError(f"expected a latent in [0, {len(store)}); got {latent}")
    chosen = store[latent].examples if examples is None else examples
    windows = [window_of(store, latent, example) for example in chosen]
    found: dict[int, Effect] = {}
    for batch in batches(windows, model.cfg.d_vocab, memory_mib):
        some = [windows[i] for i in batch]
        run = run_both(model, dictionary, latent, store.tokens, some)
        found |= zip(batch, read(store, some, run, top, least_probability), strict=True)
    return [found[i] for i in range(len(windows))]


def check_together(store: FeatureStore, model: TransformerBridge, dictionary: Dictionary) -> None:
    """UserError unless the store was collected with this dictionary on this model."""
    check_model(dictionary, model)
    known = store.manifest["dictionary"]["fingerprint"]
    if known != dictionary.fingerprint:
        raise UserError(
            f"expected the dictionary that {store.folder} was collected with ({known[:8]}); got {dictionary.fingerprint[:8]}; "
            "load that one"
        )
    about, info = store.manifest["model"], model_info(model)
    if about.get("fingerprint") not in (None, info.fingerprint):
        raise UserError(
            f"expected the model of {store.folder} ({about.get('name')}, weights {about['fingerprint'][:8]}); got {info.name} "
            f"(weights {info.fingerprint[:8]}); load that model"
        )


def window_of(store: FeatureStore, latent: int, example: Example | SupportsInt) -> Window:
    """The rows that an example shows, or those that would be shown around a row."""
    row = example.row if isinstance(example, Example) else int(example)
    if not 0 <= row < len(store.tokens):
        raise UserError(f"expected a row in [0, {len(store.tokens)}); got {row}")
    if not isinstance(example, Example):
        example = store.example_at(latent, row)
    start = row - example.focus
    block, stop = row - int(store.positions[row]), start + len(example.tokens)
    if not block <= start <= row < stop <= len(store.tokens) or bool((store.positions[block + 1 : stop] <= 0).any()):
        raise UserError(f"expected an example of {store.folder}; got one that its text does not have at row {row}")
    return Window(block, start, stop, row)


def read(
    store: FeatureStore, windows: Sequence[Window], run: Run, top: int, least_probability: float
) -> Iterator[Effect]:
    """What a run says of each window."""
    is_likely = torch.maximum(run.with_it, run.without) >= math.log(least_probability)
    change = torch.where(is_likely, run.with_it - run.without, 0.0)
    size = min(top, change.shape[2])
    extremes = [[part.cpu() for part in change.topk(size, 2, largest=is_up)] for is_up in (True, False)]
    for i, window in enumerate(windows):
        shown = window.stop - window.start
        inside = slice(window.start - window.block, window.stop - window.block)
        ids = store.tokens[window.start : window.stop].long()
        has_fired = run.has_fired[i, : shown + 1]  # before the first shown token, and after each
        predicted = [part[i, :shown].cpu().gather(1, ids[:, None])[:, 0] for part in (run.with_it, run.without)]
        predicted[1] = torch.where(has_fired[:-1], predicted[1], predicted[0])
        if window.start == window.block:
            for part in predicted:
                part[0] = torch.nan
        yield Effect(
            row=window.row,
            focus=window.row - window.start,
            tokens=[store.vocabulary[token] for token in ids.tolist()],
            values=run.values[i, inside],
            loss_change=predicted[0] - predicted[1],
            probability=predicted[0].exp(),
            probability_without=predicted[1].exp(),
            logit_up=[_named(store, extremes[0], i, 1 + t, 1) if has_fired[1 + t] else [] for t in range(shown)],
            logit_down=[_named(store, extremes[1], i, 1 + t, -1) if has_fired[1 + t] else [] for t in range(shown)],
        )


def _named(store: FeatureStore, extremes: list[Tensor], window: int, place: int, sign: int) -> Changes:
    """Tokens with their changes where these have the sign."""
    values, tokens = (part[window, place].tolist() for part in extremes)
    return [
        (store.vocabulary[token], change) for token, change in zip(tokens, values, strict=True) if sign * change > 0
    ]
