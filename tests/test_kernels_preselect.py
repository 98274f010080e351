"""The pre-selection in bfloat16: its bounds are bounds, and what it calls proven is the definition, on data made to break it.

The definition is here the stable sort of the float32 pre-activations that the candidates get (`contract`), so nothing is
compared with a tolerance. It runs, slowly, where the CPU has no tile instructions.
"""

from functools import cache
from math import isnan

import pytest
import torch
from kernel_tools import exactly, integers, poison_memory, randn
from unweave.kernels import contract, reference, select_topk
from unweave.kernels.cpu import encode as blocks_of
from unweave.kernels.cpu import preselect

TOKENS, LATENTS = 24, 400
BELOW_TIE = 2.0**-8 - 2.0**-20  # what rounding to bfloat16 takes off 1 + this: nearly all it can


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of tokens, latents and rows, none of which divides the shapes; memory that shows what is not written."""
    monkeypatch.setattr(preselect, "BLOCK", (13, 150))
    monkeypatch.setattr(preselect, "ROWS", 190)
    check = poison_memory(monkeypatch)
    yield
    check()


def between(low, high, *shape, seed=0):
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def grid(*shape, seed=0):
    """1 + small multiples of 2^-9: half of them are halfway between two bfloat16, and in float32 short sums of products are exact."""
    return 1 + integers(*shape, seed=seed, low=0, high=8).cpu() / 512


def gaussian(d=40, x_scale=1.0, W_scale=1.0, b_scale=1.0):
    shapes = ((TOKENS, d), (LATENTS, d), (LATENTS,))
    return tuple(
        randn(*shape, seed=seed).cpu() * scale
        for seed, (shape, scale) in enumerate(zip(shapes, (x_scale, W_scale, b_scale), strict=True))
    )


def positive(d, low=1.0, high=2.0):
    return between(low, high, TOKENS, d), between(low, high, LATENTS, d, seed=1), between(-1, 1, LATENTS, seed=2)


@cache
def cases():
    """Inputs x, W, b by what is hard about them."""
    x, W, b = gaussian()
    scales = 10.0 ** torch.arange(-18, 18, 36 / LATENTS)[:LATENTS]
    masked = torch.where(torch.arange(LATENTS) % 3 > 0, -torch.inf, b)
    return {
        "gaussian": (x, W, b),
        "bfloat16 itself": tuple(part.bfloat16().float() for part in gaussian(500)),
        "integers": (integers(TOKENS, 9).cpu(), integers(LATENTS, 9, seed=1).cpu(), integers(LATENTS, seed=2).cpu()),
        "one dimension, where the bound is tight": positive(1),
        "three dimensions": positive(3),
        "signs mixed in one dimension": gaussian(1),
        "every entry loses the most": (
            torch.full((TOKENS, 33), 1 + BELOW_TIE),
            (1 + BELOW_TIE) * between(1, 1.0001, LATENTS, 33),
            torch.zeros(LATENTS),
        ),
        "every entry gains the most": positive(33, 1.0039063, 1.005),
        "crowded": (grid(TOKENS, 8), grid(LATENTS, 8, seed=1), integers(LATENTS, seed=2).cpu() / 512),
        "norms that round down": (torch.eye(TOKENS, 40), torch.eye(LATENTS, 40) * 1.0000001, torch.zeros(LATENTS)),
        "large bias": gaussian(b_scale=1e6),
        "bias alone": gaussian(x_scale=0.0),
        "rows of every scale": (x, W * scales[:, None], b * 0),
        "tokens of every scale": (x * scales[:TOKENS, None], W, b * 0),
        "latents that are masked": (x, W, masked),
        "nearly all masked": (x, W, torch.where(torch.arange(LATENTS) < 12, b, -torch.inf)),
        "constant tokens": (torch.ones(TOKENS, 40), W, b),
        "wide": gaussian(3000),
        "tiny": gaussian(x_scale=1e-20, W_scale=1e-20, b_scale=0),
        "squares underflow": gaussian(x_scale=1e15, W_scale=1e-25, b_scale=0),
        "denormal weights": gaussian(x_scale=1e17, W_scale=1e-39, b_scale=0),
        "denormal tokens": gaussian(x_scale=1e-39, W_scale=1e17, b_scale=0),
        "denormal bias": gaussian(x_scale=0.0, b_scale=1e-39),
        "huge": gaussian(x_scale=1e15, W_scale=1e15),
        "squares overflow": gaussian(x_scale=1e30, W_scale=1.0),
        "sums overflow": gaussian(x_scale=1e18, W_scale=1e20),
        "at the end of the range": gaussian(x_scale=1e38, W_scale=1e38, b_scale=1e38),
    }


def float32_preactivations(x, W, b):
    return contract(x, torch.arange(len(W)).expand(len(x), -1), W) + b


@pytest.mark.parametrize("name", cases())
def test_no_pre_activation_exceeds_its_bound(name):
    """The bound as it is meant (its columns multiplied in float64), and as it is computed (in bfloat16)."""
    x, W, b = cases()[name]
    left, right = preselect._left(x), preselect._right(W, b)
    meant, computed = left.double() @ right.double().T, preselect._before_rounding((left @ right.T).float())
    for pre in (x.double() @ W.double().T + b, float32_preactivations(x, W, b).double()):
        assert not (meant < pre - preselect.TINY).any()
        assert not (computed < pre).any()


@pytest.mark.parametrize("k", [1, 8, 50])
@pytest.mark.parametrize("name", cases())
def test_what_is_proven_is_the_definition(name, k):
    x, W, b = cases()[name]
    values, indices, is_proven = preselect.select_topk(x, W, b, k)
    expected = reference.topk(float32_preactivations(x, W, b), k)
    exactly((values[is_proven], indices[is_proven]), (part[is_proven] for part in expected))


@pytest.mark.parametrize(
    ("name", "k", "share"), [("gaussian", 8, 1), ("gaussian", 50, 1), ("latents that are masked", 8, 1),
                             ("nearly all masked", 8, 1), ("large bias", 8, 0.5), ("wide", 8, 0.9), ("crowded", 8, 0)]
)  # fmt: skip
def test_ordinary_tokens_are_proven(name, k, share):
    assert preselect.select_topk(*cases()[name], k).is_proven.float().mean() >= share


def test_the_proof_fails_exactly_where_a_left_out_latent_could_be_chosen():
    """The last latent is 1 + BELOW_TIE but looks like 1; what is chosen rises from token to token past what rounding hides."""
    x = torch.ones(64, 2)
    x[:, 1] = torch.arange(64) * 2.0**-11
    W = torch.cat([torch.ones(200, 2), torch.zeros(200, 2)])
    W[:, 1] = (torch.arange(400) == 0).float()
    W[199, 0] += BELOW_TIE
    values, indices, is_proven = preselect.select_topk(x, W, torch.zeros(400), 1)
    expected = reference.topk(float32_preactivations(x, W, torch.zeros(400)), 1)
    assert expected[1][0] == 199 and expected[1][-1] == 0
    exactly((values[is_proven], indices[is_proven]), (part[is_proven] for part in expected))
    assert not is_proven[0] and is_proven[-1]
    assert (is_proven.int().diff() >= 0).all()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["token", "latent", "bias"])
def test_what_is_not_finite_is_not_proven_or_right(where, poison):
    x, W, b = (part.clone() for part in cases()["gaussian"])
    {"token": x[5], "latent": W[70], "bias": b[70:71]}[where][0] = poison
    values, indices, is_proven = preselect.select_topk(x, W, b, 8)
    expected = reference.topk(float32_preactivations(x, W, b), 8)
    exactly((values[is_proven], indices[is_proven]), (part[is_proven] for part in expected))
    assert not is_proven[5] or where == "bias"
    assert is_proven.sum() == {"token": TOKENS - 1, "latent": 0, "bias": TOKENS * (not isnan(poison))}[where]


@pytest.mark.parametrize("k", [1, 8, 50])
@pytest.mark.parametrize("name", ["tied", "crowded", "all equal", "zero tokens"])
def test_unproven_tokens_are_redone(name, k, monkeypatch):
    """Sums of these are exact, so the whole encoder equals the definition bit for bit, whoever computed a token."""
    monkeypatch.setattr(preselect, "pays", lambda *_: True)
    monkeypatch.setattr(blocks_of, "TOKENS", 5)
    monkeypatch.setattr(blocks_of, "LATENTS", 170)
    x, W, b = {
        "tied": (integers(TOKENS, 2).cpu(), integers(LATENTS, 2, seed=1).cpu(), torch.zeros(LATENTS)),
        "crowded": cases()["crowded"],
        "all equal": (torch.ones(TOKENS, 4), torch.ones(LATENTS, 4), torch.zeros(LATENTS)),
        "zero tokens": (torch.zeros(TOKENS, 4), grid(LATENTS, 4), torch.zeros(LATENTS)),
    }[name]
    assert preselect.select_topk(x, W, b, k).is_proven.float().mean() < 1
    exactly(select_topk(x, W, b, k), [part[0] for part in reference.encode_topk(x, W[None], b[None], k)])


@pytest.mark.parametrize("latents", [1, 33, 34, 65, 149, 150, 151])
def test_fewer_latents_than_candidates_or_than_a_block(latents):
    x, W, b = integers(TOKENS, 5).cpu(), integers(latents, 5, seed=1).cpu(), integers(latents, seed=2).cpu()
    for k in {1, min(33, latents), latents}:
        values, indices, is_proven = preselect.select_topk(x, W, b, k)
        expected = reference.topk(float32_preactivations(x, W, b), k)
        exactly((values[is_proven], indices[is_proven]), (part[is_proven] for part in expected))
        if preselect.candidates(k) >= latents:
            exactly((values, indices), expected)


def test_no_tokens():
    x, W, b = cases()["gaussian"]
    assert [part.shape for part in preselect.select_topk(x[:0], W, b, 3)] == [(0, 3), (0, 3), (0,)]


def test_it_pays_where_the_cpu_is_fast_and_the_shape_large(monkeypatch):
    monkeypatch.setattr(preselect, "has_fast_bfloat16", lambda: True)
    x, W = torch.zeros(256, 2), torch.zeros(16 * preselect.candidates(32), 2)
    assert preselect.pays(x, W, 32)
    assert not preselect.pays(x[1:], W, 32)
    assert not preselect.pays(x, W[1:], 32)
    assert not preselect.pays(x.double(), W.double(), 32)
    monkeypatch.setattr(preselect, "has_fast_bfloat16", lambda: False)
    assert not preselect.pays(x, W, 32)


def test_it_does_not_pay_where_torch_is_told_not_to_use_the_tiles(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert preselect.has_fast_bfloat16()
    before = torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        assert not preselect.has_fast_bfloat16()
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before[0])
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not preselect.has_fast_bfloat16()


def test_tokens_whose_sums_may_overflow_are_not_proven():
    x = torch.stack([torch.full((8,), 2e19), torch.full((8,), 1.0)])
    W = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) * 1e18
    W[7] = 3e18  # far above the others, so that nothing else stands in the way
    found = preselect.select_topk(x, W, torch.zeros(200), 1)
    assert found.is_proven.tolist() == [False, True]
    assert found.indices[1].tolist() == [7]
