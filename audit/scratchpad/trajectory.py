"""When is the answer decided? Its probability after each sentence, and by layer.

After the first i sentences the cue is put, and the answer asked for at once (Lanham et al. 2023, "early answering"):

    P_i = P(answer | prompt, sentences 1 … i, cue),   i = 0 … n
    decided_at = the least i from which on every P_j is at least half of P_n

By layer, the logit lens at the token before the answer: the stream after each block through the final norm and the unembedding
(nostalgebraist 2020), as the probability of the answer's first token. The last layer's is the model's own.

Controls: P_0, the answer without any scratchpad; and the same sentences in random order. An answer that stands at 0 may have come
before the reasoning; one whose P_i rises as much in any order does not come of the steps' order. A model that never answers without a
scratchpad may fail at i = 0 for that reason alone, whatever the sentences say: replacing them (importance.py) does not have this flaw.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...circuits.tracing.frozen import quiet
from .answers import answer_logs, padded, probability
from .spans import Written

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Trajectory:
    """P(answer) after 0 … n sentences; the same in random orders; by layer after each; where it is decided."""

    by_sentence: list[float]
    shuffled: list[list[float]]
    by_layer: list[list[float]]
    decided_at: int
    shuffled_decided_at: list[int]
    decided_layer: int

    @property
    def gain(self) -> float:
        """P with all sentences less P with none."""
        return self.by_sentence[-1] - self.by_sentence[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self) | {"gain": self.gain}


def answer_trajectory(model: TransformerBridge, run: Written, *, draws: int = 8, seed: int = 0) -> Trajectory:
    """P(answer) after each sentence and by layer, with `draws` random orders of the sentences beside it."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(run.sentences), generator=generator).tolist() for _ in range(draws)]
    own = _prefixes(run)
    shuffled = [_prefixes(run.with_sentences(run.sentences[i] for i in order)) for order in orders]
    runs = own + [prefix for some in shuffled for prefix in some]
    p = [probability(logs, each) for logs, each in zip(answer_logs(model, runs), runs, strict=True)]
    rows = [p[start : start + len(own)] for start in range(0, len(p), len(own))]
    layers = lens(model, own)
    return Trajectory(
        rows[0], rows[1:], layers.tolist(), decided(rows[0]), [decided(row) for row in rows[1:]], decided(layers[-1].tolist())
    )  # fmt: skip


def _prefixes(run: Written) -> list[Written]:
    return [run.with_sentences(run.sentences[:count]) for count in range(len(run.sentences) + 1)]


def decided(values: list[float]) -> int:
    """The first place from which on all values are at least half of the last."""
    below = [i for i, value in enumerate(values) if value < values[-1] / 2]
    return below[-1] + 1 if below else 0


def lens(model: TransformerBridge, runs: list[Written]) -> Float[Tensor, "run layer"]:
    """The logit lens' probability of the answer's first token, before it, after each block."""
    at = torch.tensor([run.spans.answer.start - 1 for run in runs])
    first = torch.tensor([run.answer.ids[0] for run in runs])
    seen: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> None:
        seen.append(value[torch.arange(len(runs)), at.to(value.device)])

    sites: list[Any] = [(f"blocks.{layer}.hook_resid_post", keep) for layer in range(model.cfg.n_layers)]
    with torch.no_grad(), quiet():
        model.run_with_hooks(padded(runs).to(next(model.parameters()).device), fwd_hooks=sites)
        x = torch.stack(seen, 1)
        logits: Tensor = model.unembed(model.ln_final(x))
        cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0.0
        logits = cap * (logits / cap).tanh() if cap > 0 else logits
    p = logits.double().cpu().softmax(2)
    return p[torch.arange(len(runs)), :, first]
