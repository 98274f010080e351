"""Worlds whose features are known are as they say, the toy model of superposition is Elhage's, and the matching is the best."""

import itertools

import pytest
import torch
from unweave.saes import UserError
from unweave.saes.layout import Layout
from unweave.saes.synthetic.assignment import assign
from unweave.saes.synthetic.methods import method_config
from unweave.saes.synthetic.recovery import match
from unweave.saes.synthetic.superposition import Superposition
from unweave.saes.synthetic.world import World, WorldConfig, batches
from unweave.saes.train import initial_weights

SMALL = dict(d=48, features=96, active=4.0, trees=4, branches=3, depth=2)


@pytest.fixture(scope="module")
def world():
    return World(WorldConfig(**SMALL))


@pytest.fixture(scope="module")
def sample(world):
    return world.sample(40_000, 3)


def test_activations_are_the_sum_of_what_is_active(sample):
    world = World(WorldConfig(**SMALL, noise=0.0))
    sample = world.sample(200, 3)
    torch.testing.assert_close(sample.x, sample.values @ world.features + world.offset, rtol=1e-6, atol=1e-6)
    assert world.offset.norm() == pytest.approx(2.0, rel=1e-6)
    noisy = World(WorldConfig(**SMALL, noise=0.5)).sample(4000, 3)
    assert (noisy.x - noisy.values @ world.features - world.offset).std() == pytest.approx(0.5, rel=0.01)


def test_frequencies_are_those_that_were_asked_for(world, sample):
    found = (sample.values > 0).double().mean(0)
    assert float(found.sum()) == pytest.approx(4.0, rel=0.02)
    error = (found - world.frequencies).abs() / (world.frequencies / len(sample.x)).sqrt()
    assert error.max() < 5
    top = world.frequencies[: world.config.top]
    assert top[10] / top[40] == pytest.approx((41 / 11) ** 0.5, rel=1e-5)  # Zipf with exponent 1/2


def test_a_parent_is_active_whenever_its_child_is_and_at_most_one_child(world, sample):
    active = sample.values > 0
    child = (world.parents >= 0).nonzero().squeeze(1)
    assert len(child) == 4 * (3 + 9)
    assert active[:, child].any()
    assert active[:, world.parents[child]][active[:, child]].all()
    for parent in world.parents[child].unique():
        siblings = active[:, world.parents == parent].sum(1)
        assert siblings.max() == 1
        share = siblings[active[:, parent]].double().mean()
        assert float(share) == pytest.approx(0.7, abs=5 * (0.21 / int(active[:, parent].sum())) ** 0.5)


def test_members_of_a_group_fire_together_and_others_do_not(world, sample):
    fires = (sample.values[:, : world.config.top] > 0).double()
    fires = fires - fires.mean(0)
    fires = fires / fires.norm(dim=0)
    r = fires.T @ fires
    same = world.group_of[:, None] == world.group_of
    same.fill_diagonal_(False)
    other = ~same & ~torch.eye(len(r), dtype=torch.bool)
    assert r[same].mean() > 0.08
    assert r[other].mean().abs() < 0.002


def test_a_childs_magnitude_follows_its_parents(world, sample):
    child = int(world.levels[1][0])
    on = sample.values[:, child] > 0
    pair = torch.stack([sample.values[on, child], sample.values[on, int(world.parents[child])]])
    assert torch.corrcoef(pair)[0, 1] > 0.5
    alone = sample.values[:, 1][sample.values[:, 1] > 0]
    assert alone.std() / alone.mean() == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_truth_is_not_where_training_begins(seed):
    """Both are drawn from small seeds: with the same generator the first weights were the true features."""
    config = method_config("topk", latents=96, k=4, tokens=10, batch=5, seed=seed)
    W_dec = initial_weights(config, Layout(config.dictionary, {"": 48}, {"": 48}), torch.device("cpu"))["W_dec"]
    for world_seed in (0, 1):
        features = World(WorldConfig(**{**SMALL, "seed": world_seed})).features
        assert match(features, W_dec).cosine.mean() < 0.55


def test_the_same_seed_gives_the_same_activations_and_another_others(world):
    again = World(WorldConfig(**SMALL))
    assert torch.equal(world.sample(50, 7).x, again.sample(50, 7).x)
    assert not torch.equal(world.sample(50, 7).x, world.sample(50, 8).x)
    first, second = itertools.islice(batches(world, 20, 0), 2)
    assert first.shape == (20, 48)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "wrong", [dict(features=40), dict(share=1.0), dict(active=1000.0), dict(together=-0.1), dict(active=0.0)]
)
def test_worlds_that_cannot_be_are_a_user_error(wrong):
    with pytest.raises(UserError, match="expected"):
        WorldConfig(**{**SMALL, **wrong})


@pytest.mark.parametrize("row, col", [(1, 1), (2, 5), (5, 2), (6, 6)])
def test_the_assignment_is_the_best_of_all(row, col):
    for seed in range(20):
        score = torch.randn(row, col, generator=torch.Generator().manual_seed(seed)).round(decimals=1)  # with ties
        found = assign(score)
        pairs = found >= 0
        assert pairs.sum() == min(row, col) == len(found[pairs].unique())
        tall = score if row <= col else score.T
        best = max(
            sum(float(tall[i, j]) for i, j in enumerate(order))
            for order in itertools.permutations(range(max(row, col)), min(row, col))
        )
        assert float(score[pairs.nonzero().squeeze(1), found[pairs]].sum()) == pytest.approx(best, abs=1e-5)
    with pytest.raises(ValueError, match="finite"):
        assign(torch.tensor([[float("nan")]]))


def test_the_assignment_of_a_large_table_is_scipys():
    scipy = pytest.importorskip("scipy.optimize")
    score = torch.rand(150, 211, generator=torch.Generator().manual_seed(0))
    rows, columns = scipy.linear_sum_assignment(-score.numpy())
    found = assign(score)
    assert float(score[torch.arange(150), found].sum()) == pytest.approx(float(score[rows, columns].sum()), rel=1e-6)


def test_sparse_features_share_two_dimensions_as_a_pentagon_and_dense_ones_do_not():
    """Elhage et al. 2022: five sparse features in two dimensions stand at 72 degrees; dense ones leave room for two."""
    sparse = Superposition(5, 2, active=0.1)
    cosine = (sparse.features @ sparse.features.T).sort(1).values
    wanted = torch.tensor([72.0, 144.0]).deg2rad().cos().tolist()
    expected = torch.tensor([wanted[1], wanted[1], wanted[0], wanted[0], 1.0]).expand(5, 5)
    torch.testing.assert_close(cosine, expected, rtol=0, atol=0.03)
    dense = Superposition(5, 2, active=4.9, importance=0.7)
    assert dense.kept.tolist() == [0, 1]
    assert abs(float(dense.features[0] @ dense.features[1])) < 0.05


def test_twice_as_many_sparse_features_as_dimensions_become_antipodal_pairs():
    toy = Superposition(8, 4, active=0.2)
    cosine = (toy.features @ toy.features.T).fill_diagonal_(0)
    torch.testing.assert_close(cosine.min(1).values, torch.full((8,), -1.0), rtol=0, atol=0.02)
    sample = toy.sample(100, 0)
    torch.testing.assert_close(sample.x, sample.values @ toy.features, rtol=1e-4, atol=1e-5)
