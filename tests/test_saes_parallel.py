"""Training by several ranks takes the steps that one process takes, whatever the rule, the sites and the arrangement."""

import dataclasses
import functools
import importlib
import itertools
import json

import parallel_ranks
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from training_toys import LAYOUTS, RULES, TIED, config, layout_of, pair_of, state_of, tied
from unweave.kernels import encode_batch_topk, encode_topk
from unweave.saes import plain
from unweave.saes import step as fast
from unweave.saes.errors import UserError
from unweave.saes.parallel import Ranks, ranks_of_this_run
from unweave.saes.parallel.plan import traffic
from unweave.saes.parallel.shares import is_shared_out, share_of
from unweave.saes.state import take_step
from unweave.saes.train import initial_weights

PURPOSES = ("candidates", "outputs", "gradients")
GRIDS = {2: [(2, 1), (1, 2)], 4: [(2, 2), (1, 4), (4, 1)]}
# Of the second half almost the first six, so that a rank has nearly all of them, or none.
DEAD = [0, 2, 5, *range(11, 18), 22]


def case(grid, rule="topk", layout="sae", dead=DEAD, steps=3, dtype="float64", **changes) -> dict:
    name = "-".join([*map(str, grid), rule, layout, dtype, *(f"{key}={value}" for key, value in changes.items())])
    return dict(name=name, grid=grid, rule=rule, layout=layout, dead=dead, steps=steps, dtype=dtype, changes=changes)


def selections(ranks: int) -> list[dict]:
    """Where k a token are few, many, or more than one rank has."""
    return [
        dict(name=f"{grid} {kind} {k}", select=dict(grid=grid, kind=kind, k=k))
        for grid, kind, k in itertools.product(GRIDS[ranks], TIED, (1, 4, 11))
    ]


def cases(ranks: int) -> list[dict]:
    """Every rule with every layout on one grid of each size, and what only some of them do."""
    others = GRIDS[ranks][1:]
    every = [case(grid, rule, layout) for grid in GRIDS[ranks][:2] for rule in RULES for layout in LAYOUTS]
    some = [case(grid, rule, "transcoder") for grid in others for rule in RULES]
    special = [
        case(grid, rule, **changes)
        for grid in GRIDS[ranks]
        for rule, changes in [
            ("topk", dict(matryoshka=(3, 14))),
            ("batch_topk", dict(matryoshka=(5,), clip=0.02)),
            ("relu", dict(penalty="anneal", ema=0.9)),
            ("jumprelu", dict(penalty="tanh")),
            ("topk", dict(k=7)),  # more than a quarter of the latents
            ("topk", dict(auxk=0.0)),
        ]
    ]
    special += [
        case(grid, layout=layout, auxk=0.0) for grid in GRIDS[ranks] for layout in ("skip", "shared", "crosscoder")
    ]
    special += [case(grid, rule, steps=1, dtype="float32") for grid in GRIDS[ranks] for rule in RULES]
    named = {one["name"]: one for one in itertools.chain(every if ranks == 2 else every[::3], some, special)}
    return list(named.values())


@pytest.fixture(scope="module", params=GRIDS)
def found(request, tmp_path_factory):
    """What the ranks made of all cases, in one start of so many processes."""
    folder = tmp_path_factory.mktemp("ranks")
    job, result = folder / "job.json", folder / "result.safetensors"
    job.write_text(json.dumps([*cases(request.param), *selections(request.param)]))
    parallel_ranks.run([str(parallel_ranks.HERE / "parallel_host.py"), str(job), str(result)], request.param)
    return request.param, load_file(result)


def alone(one: dict):
    own, dtype = config(one["rule"], one["layout"], **one["changes"]), getattr(torch, one["dtype"])
    state = state_of(own, one["dead"], dtype=dtype)
    update = fast.update if fast.applies(state) else plain.update
    metrics = [take_step(state, update, pair_of(own, 50 + number, dtype=dtype)) for number in range(one["steps"])]
    return state, torch.stack(metrics)


def test_several_ranks_take_the_steps_of_one_process(found):
    ranks, tensors = found
    for one in cases(ranks):
        state, metrics = alone(one)
        expected = {"metrics": metrics, **state.weights, "smallest": state.smallest, "penalty": state.weight}
        close = dict(rtol=1e-7, atol=1e-9) if one["dtype"] == "float64" else dict(rtol=1e-4, atol=1e-5)
        for key, tensor in {**expected, "silent_tokens": state.silent_tokens}.items():
            note = functools.partial("{} {}: {}".format, one["name"], key)
            assert_close(tensors[f"{one['name']}/{key}"], tensor, **close, msg=note)


def test_ranks_choose_what_one_process_chooses_among_ties(found):
    ranks, tensors = found
    for one in selections(ranks):
        x, W_enc, b_enc = tied(one["select"]["kind"])
        for name, encode in {"batch": encode_batch_topk, "top": encode_topk}.items():
            values, indices = encode(x, W_enc, b_enc, one["select"]["k"])
            dense = torch.zeros(len(x), len(W_enc), dtype=x.dtype).scatter_add_(1, indices, values)
            assert torch.equal(tensors[f"{one['name']}/{name}"], dense), (one["name"], name)


def test_ranks_send_what_the_plan_says(found):
    ranks, tensors = found
    checked = 0
    for one in cases(ranks):
        own = config(one["rule"], one["layout"], **one["changes"])
        if own.dictionary.activation != "topk" or own.auxk or not fast.applies(state_of(own)):
            continue
        planned = traffic(own, layout_of(own), *one["grid"], element=8)
        sent = dict(zip(PURPOSES, tensors[f"{one['name']}/sent"].tolist(), strict=True))
        assert sent == pytest.approx({name: planned[name] for name in PURPOSES}, abs=8), one["name"]
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("layout", ["sae", "transcoder", "cross-layer", "shared"])
@pytest.mark.parametrize("drawn", [2**16, 16])
def test_a_rank_begins_with_its_rows_of_the_whole(layout, drawn, monkeypatch):
    own = config("gated", layout, latents=66, k=3)
    whole = layout_of(own)
    expected = initial_weights(own, whole, torch.device("cpu"))
    monkeypatch.setattr(importlib.import_module("unweave.saes.train"), "DRAWN", drawn)
    for rank in range(2):
        ranks = Ranks()
        ranks.latent, ranks.latent_rank = 2, rank
        share = dataclasses.replace(whole, rank=rank, ranks=2)
        for name, tensor in initial_weights(own, share, torch.device("cpu")).items():
            expected_rows = (
                share_of(expected[name], len(whole.blocks), ranks) if is_shared_out(name) else expected[name]
            )
            assert torch.equal(tensor, expected_rows), (rank, name)


@pytest.mark.parametrize(
    ("changes", "latent_ranks", "message"),
    [
        ({}, 3, "latent ranks that divide the 4 processes"),
        (dict(batch=41), 2, "a batch that 2 data ranks can share"),
        (dict(latents=25), 2, "latents that 2 ranks can share"),
        (dict(optimizer="factored"), 2, "a factored moment is a mean over all latents"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(changes, latent_ranks, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=message):
        ranks_of_this_run(config(**changes), latent_ranks, torch.device("cpu"))
