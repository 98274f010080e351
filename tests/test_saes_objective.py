"""The objective of training: its gradients, its parts, and the fast step against it."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close
from training_toys import BATCH, DENSE, LATENTS, LAYOUTS, RULES, config, layout_of, pair_of, randn, state_of
from unweave.saes import plain
from unweave.saes import step as fast
from unweave.saes.adam import Adam, Factored
from unweave.saes.dictionary import Dictionary
from unweave.saes.fold import Scaling, fold
from unweave.saes.jumprelu import jumprelu, step
from unweave.saes.layout import columns
from unweave.saes.losses import variation
from unweave.saes.objective import Schedule, objective
from unweave.saes.rows import Pair, fit_scaling, geometric_median
from unweave.saes.state import take_step


def gradients_of(state, pair):
    is_dead = state.silent_tokens > state.config.dead_tokens
    return plain.summed(state, pair, Schedule(state.weight, 0.7, is_dead))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("cross-layer")])
def test_the_fast_step_is_the_plain_one(layout):
    own = config(layout=layout, auxk=0.0)
    a, b, pair = state_of(own), state_of(own), pair_of(own)
    assert fast.applies(a)
    for _ in range(3):
        assert_close(take_step(a, fast.update, pair), take_step(b, plain.update, pair), rtol=1e-9, atol=1e-9)
    for name, tensor in a.weights.items():
        assert_close(tensor, b.weights[name], rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    assert_close(a.silent_tokens, b.silent_tokens, rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        dict(activation="batch_topk"),
        dict(matryoshka=(8,)),
        dict(clip=1.0),
        dict(accumulate=2),
        dict(optimizer="factored"),
    ],
)
def test_the_fast_step_leaves_alone_what_it_cannot_do(changes):
    assert not fast.applies(state_of(config(**changes)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("topk", {}),
        ("topk", dict(matryoshka=(3, 6))),
        ("relu", {}),
        ("relu", dict(penalty="anneal")),
        ("relu", dict(penalty="tanh")),
        ("gated", {}),
        ("gated", dict(matryoshka=(5,))),
        ("jumprelu", dict(penalty="tanh", sparsity=0.1)),
    ],
)
def test_gradients_are_those_of_finite_differences(rule, changes, layout):
    """Of everything that the loss is smooth in: not of the thresholds, which have pseudo-gradients, and what they pass on."""
    state = state_of(config(rule, layout, **changes))
    pair = pair_of(state.config)
    _, found = gradients_of(state, pair)

    def loss():
        return float(gradients_of(state, pair)[0].loss)

    generator = torch.Generator().manual_seed(3)
    for name, w in state.weights.items():
        if name == "log_threshold" or (rule == "gated" and name not in ("r_mag", "b_mag")):
            continue  # a gate's step has no gradient, and the decoder is held fixed in the gate's own loss
        direction = torch.randn(w.shape, generator=generator, dtype=torch.float64) * (w != 0 if name == "W_dec" else 1)
        w += 1e-6 * direction
        above = loss()
        w -= 2e-6 * direction
        slope = (above - loss()) / 2e-6
        w += 1e-6 * direction
        assert float((found[name] * direction).sum()) == pytest.approx(slope, rel=2e-4, abs=1e-7), name


def test_pseudo_gradients_of_a_threshold_by_hand():
    pre = torch.tensor([[0.4, 1.2], [0.6, 3.0]], dtype=torch.float64)
    threshold = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    out = jumprelu(pre, threshold, 0.5)
    assert out.tolist() == [[0.0, 1.2], [0.6, 3.0]]
    out.sum().backward()
    assert threshold.grad.tolist() == [-(0.5 / 0.5) * 2, -(1.0 / 0.5)]  # both of the first are near, one of the second
    threshold.grad = None
    count = step(pre, threshold, 0.5)
    assert count.tolist() == [[0.0, 1.0], [1.0, 1.0]]
    count.sum().backward()
    assert threshold.grad.tolist() == [-2 / 0.5, -1 / 0.5]


@pytest.mark.parametrize("rule", ["topk", *DENSE])
@pytest.mark.parametrize("layout", ["sae", "cross-layer", "shared"])
def test_a_batch_in_parts_gives_the_same_step(rule, layout, monkeypatch):
    whole = state_of(config(rule, layout, auxk=0.0))
    terms, expected = gradients_of(whole, pair_of(whole.config))
    if rule == "topk":
        parts = state_of(config(rule, layout, auxk=0.0, accumulate=7))
    else:
        monkeypatch.setattr(plain, "HELD", LATENTS * 9)
        parts = state_of(config(rule, layout, auxk=0.0))
    assert len(plain.parts(parts, pair_of(parts.config))) > 4
    found, gradients = gradients_of(parts, pair_of(parts.config))
    assert_close(found, terms, rtol=1e-9, atol=1e-12)
    assert_close(gradients, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", ["sae", "crosscoder", "cross-layer"])
def test_what_revives_reaches_dead_latents_and_no_others(rule, layout):
    dead = [1, 5, 13]
    state = state_of(config(rule, layout), dead=dead)
    pair = pair_of(state.config)
    if rule == "jumprelu":
        state.weights["log_threshold"][dead] = 3.0  # out of reach
    with_it = gradients_of(state, pair)[1]
    state.config = dataclasses.replace(state.config, auxk=0.0)
    without = gradients_of(state, pair)[1]
    reached = ["log_threshold", "b_enc", "W_enc"] if rule == "jumprelu" else ["b_enc", "W_enc", "W_dec"]
    for name in reached:
        moved = (with_it[name] - without[name]).reshape(LATENTS, -1).abs().amax(1) > 0
        assert moved.nonzero().squeeze(1).tolist() == dead, name


@pytest.mark.parametrize("layout", ["sae", "skip", "cross-layer"])
def test_the_gates_own_loss_moves_the_gates_and_no_decoder(layout):
    """By the definition of the gated loss, written out for one layout at a time."""
    state = state_of(config("gated", layout, sparsity=0.0, auxk=0.0))
    pair, w = pair_of(state.config), {name: t.clone().requires_grad_() for name, t in state.weights.items()}
    x = pair.x - w["b_dec"] if layout == "sae" else pair.x
    fixed = w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in w else 0)
    real = gate = fixed
    for block in state.layout.blocks:
        rows = block.latents
        pre = x[:, block.reads] @ w["W_enc"][rows].T + w["b_enc"][rows]
        value = (w["r_mag"][rows].exp() * (pre - w["b_enc"][rows]) + w["b_mag"][rows]).relu() * (pre > 0)
        real = real + value @ w["W_dec"][rows]
        gate = gate + pre.relu() @ w["W_dec"][rows].detach()
    gate = gate - fixed + fixed.detach()
    loss = ((pair.y - real).square().sum() + (pair.y - gate).square().sum()) / variation(pair.y)
    expected = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))
    for block in state.layout.blocks:
        expected["W_dec"][block.latents, : block.writes.start] = 0
    terms, found = gradients_of(state, pair)
    assert_close(terms.loss, loss.detach())
    assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_prefixes_reconstruct_by_themselves():
    state = state_of(config("relu", matryoshka=(4, 10), sparsity=0.0, auxk=0.0))
    pair, w = pair_of(state.config), state.weights
    codes = ((pair.x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]).relu()
    errors = [(pair.y - codes[:, :p] @ w["W_dec"][:p] - w["b_dec"]).square().sum() for p in (4, 10, LATENTS)]
    assert_close(gradients_of(state, pair)[0].loss, sum(errors) / 3 / variation(pair.y))


@pytest.mark.parametrize("rule", RULES)
def test_a_cross_layer_latent_reads_its_site_and_writes_no_earlier_one(rule):
    state = state_of(config(rule, "cross-layer"))
    for seed in range(3):
        take_step(state, plain.update, pair_of(state.config, seed))
    blocks = state.layout.blocks
    for block in blocks:
        assert not state.weights["W_dec"][block.latents, : block.writes.start].any()
        assert_close(state.weights["W_dec"][block.latents].norm(dim=1), torch.ones(LATENTS // 3).double())
    dictionary = Dictionary(
        state.config.dictionary, {n: t.float() for n, t in state.result().items()}, widths=state.layout.widths
    )
    x = pair_of(state.config).x.float()
    changed = x.clone()
    changed[:, blocks[2].reads] += 1
    before, after = (dictionary.encode(one).dense(LATENTS) for one in (x, changed))
    same = (before == after).all(0)
    assert same[: 2 * LATENTS // 3].all() and not same[2 * LATENTS // 3 :].all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_folding_changes_nothing_but_the_units(rule, layout):
    own = config(rule, layout)
    sites = layout_of(own)
    d_in, d_out = sites.d_in, sites.d_out
    x = randn(BATCH, d_in, seed=9) * 3 + 2
    y = x if sites.reads == sites.writes else randn(BATCH, d_out, seed=10) * 5 - 1
    fitted = fit_scaling([Pair(x, y)], "mean", sites)
    scaling = Scaling(*(value.double() if isinstance(value, torch.Tensor) else value for value in fitted))
    state = state_of(own)
    trained = Dictionary(
        own.dictionary,
        fold(state.result(), Scaling(torch.zeros(d_in).double(), 1.0, torch.zeros(d_out).double(), 1.0), sites),
    )
    raw = Dictionary(own.dictionary, fold(state.result(), scaling, sites))
    inner = {site: (x[:, c] - scaling.mean_in[c]) / (scaling.scale_in if isinstance(scaling.scale_in, float) else scaling.scale_in[c])
        for site, c in zip(sites.reads, columns(sites.reads), strict=True)}  # fmt: skip
    outer = {site: x[:, c] for site, c in zip(sites.reads, columns(sites.reads), strict=True)}
    if sites.is_shared:
        expected, found = (
            torch.cat([trained(inner)[s] for s in sites.writes], 1),
            torch.cat([raw(outer)[s] for s in sites.writes], 1),
        )
        for site in sites.reads:
            a, b = trained.at(site).encode(inner[site]).dense(LATENTS), raw.at(site).encode(outer[site]).dense(LATENTS)
            assert_close(a > 0, b > 0)
    else:
        a, b = trained.encode(inner), raw.encode(outer)
        assert_close(a.dense(LATENTS) > 0, b.dense(LATENTS) > 0)
        expected, found = trained.decode_flat(a, inner), raw.decode_flat(b, outer)
    close = 1e-5 if layout == "shared transcoder" else 1e-9  # one pair of matrices, two ratios of float32 scales
    assert_close(found, expected * scaling.scale_out + scaling.mean_out, rtol=close, atol=close)


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_that_is_not_finite_changes_nothing(rule):
    state = state_of(config(rule, ema=0.9))
    pair = pair_of(state.config)
    take_step(state, plain.update, pair)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    broken = pair.x.clone()
    broken[3, 2] = torch.nan
    metrics = dict(zip(state.metrics, take_step(state, plain.update, Pair(broken, broken)).tolist(), strict=True))
    assert metrics["is_skipped"] == 1
    for name, tensor in state.tensors().items():
        if not name.startswith("average"):
            assert_close(tensor, before[name], rtol=0, atol=0, msg=name)
    assert not take_step(state, plain.update, pair)[state.metrics.index("is_skipped")]


def test_a_long_gradient_is_shortened():
    free, clipped = state_of(config("relu")), state_of(config("relu", clip=1e-3))
    seen = {}
    for state in (free, clipped):
        state.adam.update = lambda name, weight, gradient, lr, state=state: seen.setdefault(id(state), []).append(
            gradient.flatten()
        )
        take_step(state, plain.update, pair_of(state.config))
    long, short = (torch.cat(seen[id(state)]) for state in (free, clipped))
    assert long.norm() > 0.01 and short.norm() <= 1e-3
    assert_close(short / short.norm(), long / long.norm(), rtol=1e-6, atol=1e-9)


def test_the_factored_optimiser_is_adam_where_squares_are_an_outer_product():
    g = torch.outer(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, -1.0, 0.5, 2.0]))
    weights = {"W": torch.zeros(3, 4), "b": torch.zeros(3)}
    ours, theirs = ({name: w.clone() for name, w in weights.items()} for _ in range(2))
    factored, adam, lr = Factored(ours), Adam(theirs), torch.tensor(0.1)
    for _ in range(3):
        for optimiser, held in ((factored, ours), (adam, theirs)):
            optimiser.begin(torch.zeros(()))
            for name in held:
                optimiser.update(name, held[name], g if name == "W" else g[:, 0].contiguous(), lr)
    assert_close(ours, theirs, rtol=1e-2, atol=0)  # the first moment has eight bits
    size = sum(t.numel() * t.element_size() for name, t in factored.tensors().items() if name.startswith("W"))
    assert size == 3 * 4 * 2 + (3 + 4) * 4


def test_the_geometric_median_has_the_least_summed_distance():
    x = torch.cat([randn(50, 3), randn(5, 3, seed=1) + 100])
    point = geometric_median(x)

    def summed(at):
        return float((x - at).norm(dim=1).sum())

    assert all(summed(point) <= summed(point + 1e-3 * randn(3, seed=seed)) for seed in range(20))
    assert (point - x[:50].mean(0)).norm() < 0.1 * (x.mean(0) - x[:50].mean(0)).norm()


def test_the_objective_is_a_pure_function():
    own = config("relu")
    state, pair = state_of(own), pair_of(own)
    now = Schedule(state.weight, 1.0, torch.zeros(LATENTS, dtype=torch.bool))
    given = (own, state.layout, state.weights, pair.x, pair.y, variation(pair.y), BATCH, now, lambda x, W: (x, W))
    before = {name: tensor.clone() for name, tensor in state.weights.items()}
    assert_close(objective(*given), objective(*given), rtol=0, atol=0)
    assert_close(state.weights, before, rtol=0, atol=0)
