"""Stage-wise dictionaries: which latents of a dictionary of A turn when it is trained on with B's activations (Anthropic, December 2024).

    S        a dictionary of A (given, or trained on the first half of the documents)
    S → A'   trained on with A's activations of the second half           the control
    S → B'   trained on with B's activations of the same tokens, in the same order, at the same rate

    cosine, cosine_control   of each decoder row with what it was
    rotation                 cosine_control - cosine: how much further B turned it than more training does by itself
    moved                    the direction it turned to: B' row - A' row
    score                    mean of its activation times how far B lies beyond A along `moved`, token by token

A latent that fires seldom turns far in both runs, wherever to; so ranking goes by what there is in B to turn to, not by the angle.

If B is A the two runs are one and every rotation is exactly 0. Whether the models differ along `moved`, where the latent fires, is
tested on documents that no training saw (reading.py, statistics.py). The published recipe takes two orders (data then model, model
then data); here the data stay and only the model changes, so one order is left, and the control takes the place of the other.
"""

from __future__ import annotations

import dataclasses
from contextlib import closing

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...saes import Dictionary, Shards, TrainConfig, UserError
from ...saes.joined import JoinedShards
from ...saes.rows import ShardRows, open_rows
from ...saes.runs.run import Run
from ...saes.train import Session
from .crosscoder import Columns, effect_columns
from .reading import Reading, of_two, on_cpu, projected
from .statistics import benjamini_hochberg, differences, sign_flip

RATE = 0.1  # of the usual learning rate, for what is trained on


def train_from(
    config: TrainConfig,
    shards: Shards,
    rows: Bool[Tensor, "row"],
    start: Dictionary | None = None,
    progress: bool = True,
) -> Dictionary:
    """Train on the chosen `rows` (of those that training keeps), from the weights of `start` where it is given.

    `start` is a TopK or BatchTopK dictionary of one site that it reads and writes; its biases and thresholds are brought to the
    scale that training sees, its decoder rows to unit length. UserError for another kind of dictionary, and for rows that are none.
    """
    opened = open_rows(config, shards)
    assert isinstance(opened, ShardRows)
    opened.rows = opened.rows[rows[opened.rows]]
    if len(opened.rows) < config.batch:
        raise UserError(
            f"expected at least a batch of {config.batch:,} tokens to train on; got {len(opened.rows):,}; give more text or lower "
            "the batch"
        )
    run = Run(config, None, False, progress, ())
    try:
        session = Session(run, config, opened, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        if start is not None:
            _take_over(session, start)
        with closing(session.pairs()) as pairs:
            for pair in pairs:
                session.take(pair)
        return on_cpu(session.finish())
    finally:
        run.close()


def _take_over(session: Session, start: Dictionary) -> None:
    """Put the weights of `start`, which act on raw activations, into a session that sees centred and scaled ones."""
    shape, scaling = start.config, session.rows.scaling
    if not start.is_sae or not start.is_single or shape.activation not in ("topk", "batch_topk") or shape.matryoshka:
        raise UserError(
            f"expected a TopK or BatchTopK dictionary that writes the one site that it reads; got {start!r}; give another, or none"
        )
    scale = float(scaling.scale_out)
    lengths = start.W_dec.detach().norm(dim=1).clamp_min(1e-12)
    weights = {
        "W_dec": start.W_dec / lengths[:, None],
        "W_enc": start.W_enc * lengths[:, None],
        "b_enc": start.b_enc * lengths / scale,
        "b_dec": (start.b_dec - scaling.mean_out) / scale,
    }
    for name, tensor in weights.items():
        session.state.weights[name].copy_(tensor.detach())
    if start.threshold is not None:
        session.state.smallest.fill_(float(start.threshold.median()) / scale)


def halves(shards: Shards, rows: Bool[Tensor, "row"], seed: int) -> tuple[Bool[Tensor, "row"], Bool[Tensor, "row"]]:
    """The rows of two random halves of the documents in `rows`."""
    numbers = shards.documents[rows].unique()
    order = numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))]
    first = torch.isin(shards.documents, order[: len(order) // 2])
    return rows & first, rows & ~first


def trained_on(
    dictionary: Dictionary,
    config: TrainConfig,
    shards: JoinedShards,
    rows: Bool[Tensor, "row"],
    progress: bool = True,
) -> tuple[Dictionary, Dictionary]:
    """`dictionary` trained on with A's activations and with B's, on the same `rows` of the joined Shards in the same order."""
    made: list[Dictionary] = []
    for part in shards.parts.values():
        shape = dataclasses.replace(dictionary.config, site=tuple(part.sites), site_out=())
        # No revival of dead latents: a latent may move only for what it fires on.
        rate = RATE * config.peak_lr
        own = dataclasses.replace(config, dictionary=shape, lr=rate, auxk=0.0, warmup=0.1)
        made.append(train_from(own, part, rows, dictionary, progress))
    return made[0], made[1]


def rotated(
    start: Dictionary,
    control: Dictionary,
    tuned: Dictionary,
    shards: Shards,
    rows: Bool[Tensor, "row"],
    seed: int,
    fdr: float,
) -> tuple[Columns, Reading]:
    """Every number of each latent, measured on `rows` of the joined Shards, and what the latents write in A and B."""
    D_0, D_a, D_b = (each.W_dec.detach().double() for each in (start, control, tuned))
    cosines = [torch.cosine_similarity(D_0, D, dim=1) for D in (D_b, D_a)]
    rotation = cosines[1] - cosines[0]
    moved = _unit(torch.nn.functional.normalize(D_b, dim=1) - torch.nn.functional.normalize(D_a, dim=1))
    reading = of_two(control, tuned)
    by_document = projected(reading, moved.to(reading.written[0].dtype), shards, rows)
    change = differences(by_document.a, by_document.b)
    p = sign_flip(change, seed, fdr=fdr)
    q = benjamini_hochberg(p)
    columns = {
        "cosine": cosines[0],
        "cosine_control": cosines[1],
        "rotation": rotation,
        "mean": by_document.mean,
        "density": by_document.density,
        "p": p,
        "q": q,
        "score": change.mean(0),
        "is_found": (q <= fdr) & (rotation > 0) & (change.mean(0) > 0),
        **effect_columns(by_document.a, by_document.b, seed),
    }
    return columns, reading


def _unit(rows: Float[Tensor, "latent d"]) -> Float[Tensor, "latent d"]:
    """Rows of unit length; those that are nothing but rounding become 0, so that no direction is made of it."""
    lengths = rows.norm(dim=1, keepdim=True)
    return torch.where(lengths > 1e-6, rows / lengths.clamp_min(1e-30), 0.0)
