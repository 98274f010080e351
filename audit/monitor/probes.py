"""Probes from positive and negative texts, judged on texts that they were not fitted on, beside probes of shuffled labels.

Each text gives one row, the mean activation of its tokens. A random half of each kind fits the probe that judges the other half: its
AUC there, with an interval over texts, and the same for SHUFFLED probes fitted with the labels shuffled (which have seen the same
texts). The probe that is returned is fitted on all texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...saes import UserError, resolve_site
from ...saes.judge.logistic import fit
from ..labels.scores import Answer, score
from .reading import Item, read
from .rows import activations
from .signals import Probe

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LEAST, SHUFFLED = 8, 20
RIDGE = 1e-2


def train_probe(
    model: TransformerBridge,
    site: str,
    positive: Sequence[Item],
    negative: Sequence[Item],
    kind: Literal["logistic", "means"] = "logistic",
    seed: int = 0,
) -> Probe:
    """A probe at `site` that tells `positive` texts or chats from `negative` ones; its `quality` is measured as the module says.

    UserError for fewer than LEAST of either kind, and for another kind of probe.
    """
    if kind not in ("logistic", "means"):
        raise UserError(f"expected a probe by logistic or means; got {kind!r}; choose one")
    if min(len(positive), len(negative)) < LEAST:
        raise UserError(
            f"expected at least {LEAST} positive and negative texts each; got {len(positive)} and {len(negative)}; give more"
        )
    x = torch.stack([mean_activation(model, site, item) for item in (*positive, *negative)])
    y = torch.arange(len(x)) < len(positive)
    generator = torch.Generator().manual_seed(seed)
    is_fitted = halves(y, generator)
    found = score(answers(fitted(site, x[is_fitted], y[is_fitted], kind), x[~is_fitted], y[~is_fitted]), seed)
    assert found is not None
    chance = []
    for _ in range(SHUFFLED):
        mixed = y[is_fitted][torch.randperm(int(is_fitted.sum()), generator=generator)]
        one = score(answers(fitted(site, x[is_fitted], mixed, kind), x[~is_fitted], y[~is_fitted]), seed)
        chance.append(one.auc if one is not None and one.auc is not None else 0.5)
    shuffled = torch.tensor(chance, dtype=torch.float64)
    quality: dict[str, Any] = {
        "auc": found.auc, "low": found.auc_low, "high": found.auc_high, "texts": found.n, "chance": 0.5,
        "shuffled": float(shuffled.mean()), "shuffled_most": float(shuffled.max()), "shuffled_probes": SHUFFLED,
    }  # fmt: skip
    whole = fitted(site, x, y, kind)
    return Probe(site, whole.direction, whole.centre, whole.bias, kind, quality)


def fitted(site: str, x: Float[Tensor, "text d"], y: Bool[Tensor, "text"], kind: Literal["logistic", "means"]) -> Probe:
    """The probe of some rows."""
    if kind == "means":
        one, other = x[y].mean(0), x[~y].mean(0)
        direction = (one - other) / (one - other).norm().clamp_min(1e-12)
        return Probe(site, direction, (one + other) / 2, 0.0, kind)
    found = fit(x, y, RIDGE)
    return Probe(site, found.weight / found.scale, found.mean, float(found.bias), kind)


def answers(probe: Probe, x: Float[Tensor, "text d"], y: Bool[Tensor, "text"]) -> list[Answer]:
    """What a probe says of rows, each a text of its own."""
    nothing = torch.zeros(len(x), dtype=torch.int64)
    given = probe.scores({probe.site: x}, nothing, nothing)
    return [
        Answer(bool(truth), value > 0, value, place)
        for place, (truth, value) in enumerate(zip(y.tolist(), given.tolist(), strict=True))
    ]


def halves(y: Bool[Tensor, "text"], generator: torch.Generator) -> Bool[Tensor, "text"]:
    """A random half of each kind."""
    chosen = torch.zeros_like(y)
    for kind in (y, ~y):
        places = kind.nonzero().squeeze(1)
        chosen[places[torch.randperm(len(places), generator=generator)[: (len(places) + 1) // 2]]] = True
    return chosen


def mean_activation(model: TransformerBridge, site: str, item: Item) -> Float[Tensor, "d"]:
    """The mean over the tokens of what was said, in float64."""
    reading = read(model, item)
    name = resolve_site(model, site)
    parts = []
    for block, messages in zip(reading.blocks, reading.messages, strict=True):
        parts.append(activations(model, block, [name])[name][messages >= 0].double())
    rows = torch.cat(parts)
    if not len(rows):
        raise UserError("expected texts with at least one token; got one without; leave it out")
    return rows.mean(0)
