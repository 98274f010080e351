"""Ground truth for dictionaries: each measure is 1 for the truth and falls with what it is there to see."""

import pytest
import torch
from unweave.saes import Dictionary, DictionaryConfig, UserError, train
from unweave.saes.synthetic.compare import Size, checks, compare, summary, table
from unweave.saes.synthetic.families import FamilyCounts, family_numbers
from unweave.saes.synthetic.methods import METHODS, method_config, prefix_widths
from unweave.saes.synthetic.recovery import cosines, match, recovery
from unweave.saes.synthetic.world import Sample, World, WorldConfig
from unweave.viz.bench import bench

SMALL = dict(d=48, features=96, active=4.0, trees=4, branches=3, depth=2)


@pytest.fixture(scope="module")
def world():
    return World(WorldConfig(**SMALL))


class Plain:
    """A world whose features are orthogonal, so that a dictionary can be exactly right: parent 0 of 1 and 2, parent 3 of 4."""

    features = torch.eye(8)[:6]
    parents = torch.tensor([-1, 0, 0, -1, 3, -1])

    def sample(self, rows: int, seed: int) -> Sample:
        generator = torch.Generator().manual_seed(seed)
        fires = torch.rand(rows, 6, generator=generator) < 0.4
        fires[:, 2] &= ~fires[:, 1]
        fires[:, [1, 2, 4]] &= fires[:, [0, 0, 3]]
        values = fires * (1 + torch.rand(rows, 6, generator=generator))
        return Sample(values @ self.features, values)


def truth(order=range(6), **tensors) -> Dictionary:
    """The dictionary of Plain, its latents in some order, with tensors changed."""
    rows = Plain.features[list(order)]
    own = {"W_enc": rows.clone(), "b_enc": torch.zeros(6), "W_dec": rows.clone(), "b_dec": torch.zeros(8), **tensors}
    return Dictionary(DictionaryConfig(activation="relu", latents=6, k=2), own)


def test_the_truth_in_any_order_is_recovered_wholly():
    found = recovery(truth([3, 1, 5, 0, 4, 2]), Plain(), rows=3000)
    for name in ("mcc", "f1", "precision", "recall", "shrinkage", "uniqueness", "split", "parents_found"):
        assert found[name] == pytest.approx(1, abs=1e-6), name
    for name in ("absorption", "missed", "hedging", "carried", "fvu", "dead_share"):
        assert found[name] == pytest.approx(0, abs=1e-6), name
    assert found["l0"] == pytest.approx(
        float((Plain().sample(3000, 2**31 + 1_000_003).values > 0).sum(1).float().mean())
    )


def test_shrunken_values_shrink_and_nothing_else():
    found = recovery(truth(W_enc=0.5 * Plain.features), Plain(), rows=3000)
    assert found["shrinkage"] == pytest.approx(0.5, abs=1e-6)
    assert found["mcc"] == found["f1"] == pytest.approx(1, abs=1e-6)
    assert found["fvu"] > 0.2


def test_a_latent_that_fires_too_often_loses_precision_and_one_that_fires_too_seldom_recall():
    b_enc = torch.zeros(6)
    b_enc[5] = 1.0  # always on
    found = recovery(truth(b_enc=b_enc), Plain(), rows=3000)
    assert found["recall"] == pytest.approx(1)
    assert found["precision"] == pytest.approx((5 + 0.4) / 6, abs=0.01)
    b_enc[5] = -1.5  # half of the time that it should
    found = recovery(truth(b_enc=b_enc), Plain(), rows=3000)
    assert found["precision"] == pytest.approx(1)
    assert found["recall"] == pytest.approx(5.5 / 6, abs=0.01)
    b_enc[5] = -9.0  # dead
    found = recovery(truth(b_enc=b_enc), Plain(), rows=3000)
    assert found["dead_share"] == pytest.approx(1 / 6)
    assert found["f1"] == found["precision"] == found["recall"] == pytest.approx(5 / 6)


def test_absorption_is_seen_where_a_child_has_taken_its_parents_part_over():
    """Latent 0 is silent where child 1 is on, whose latent writes both: parent 0 of children 1 and 2, parent 3 of child 4."""
    W_enc, W_dec = Plain.features.clone(), Plain.features.clone()
    W_enc[0, 1] = -9.0
    W_dec[1] = torch.nn.functional.normalize(Plain.features[0] + Plain.features[1], dim=0)
    found = recovery(truth(W_enc=W_enc, W_dec=W_dec), Plain(), rows=6000)
    assert found["absorption"] == pytest.approx(1 / 3)  # of the pairs (0, 1), (0, 2), (3, 4)
    assert found["missed"] == pytest.approx(0)
    assert found["carried"] == pytest.approx(0.5**0.5 / 3, abs=1e-5)
    assert found["hedging"] == pytest.approx(0, abs=1e-6)


def test_a_parent_that_is_silent_alone_is_missed_and_not_absorbed():
    b_enc = torch.zeros(6)
    b_enc[0] = -9.0
    W_enc = Plain.features.clone()
    W_enc[0, 1] = W_enc[0, 2] = 20.0  # fires with either child only
    found = recovery(truth(b_enc=b_enc, W_enc=W_enc), Plain(), rows=6000)
    assert found["absorption"] == 0
    assert found["missed"] == pytest.approx(1 / 2)  # of the parents 0 and 3


def test_hedging_is_a_parent_that_holds_its_children():
    W_dec = Plain.features.clone()
    W_dec[3] = torch.nn.functional.normalize(Plain.features[3] + 0.5 * Plain.features[4], dim=0)
    found = recovery(truth(W_dec=W_dec), Plain(), rows=3000)
    assert found["hedging"] == pytest.approx(0.5 / 1.25**0.5 / 3, abs=1e-5)
    assert found["carried"] == pytest.approx(0, abs=1e-6)


def test_two_latents_for_one_feature_are_split_and_not_unique():
    rows = Plain.features[[0, 1, 2, 3, 4, 4]]
    found = recovery(truth(W_enc=rows, W_dec=rows), Plain(), rows=3000)
    assert found["split"] == pytest.approx(6 / 5)
    assert found["uniqueness"] == pytest.approx(5 / 6)
    assert found["mcc"] == pytest.approx(5 / 6)


def test_a_latent_that_points_the_other_way_is_no_match():
    matched = match(Plain.features, -Plain.features)
    assert matched.cosine.max() <= 0
    assert match(Plain.features, Plain.features[:3]).feature.tolist() == [0, 1, 2]


def test_families_without_parents_have_no_number():
    counts = FamilyCounts(torch.full((6,), -1), torch.arange(6))
    counts.add(torch.ones(3, 6, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool))
    numbers = family_numbers(counts, torch.ones(6), cosines(Plain.features, Plain.features), Plain.features)
    assert all(number != number for number in numbers.values())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_most_of_a_small_world(method, world):
    config = method_config(method, latents=48, k=4, tokens=24_576, batch=256, seed=0)
    rows = world.sample(24_576, 0).x
    own = train(config, rows.split(256), device="cpu", progress=False)
    found = recovery(own, world, rows=4096)
    assert found["mcc"] > 0.5  # first weights: .43
    assert found["l0"] == pytest.approx(
        4, abs=1 if "topk" in method else 3
    )  # penalties have a hundred steps to get there
    assert found["fvu"] < 0.6


def test_methods_are_what_their_names_say():
    config = method_config("batch_topk matryoshka", latents=64, k=4, tokens=10, batch=5, seed=3)
    assert (config.dictionary.activation, config.dictionary.matryoshka) == ("batch_topk", (4, 8, 16, 32))
    assert config.seed == 3
    assert method_config("relu tanh", latents=64, k=4, tokens=10, batch=5, seed=0).penalty == "tanh"
    assert method_config("topk", latents=64, k=4, tokens=10, batch=5, seed=0).dictionary.matryoshka == ()
    assert prefix_widths(2) == (1,)
    with pytest.raises(UserError, match="methods among"):
        method_config("relu matryoshka", latents=64, k=4, tokens=10, batch=5, seed=0)


TINY = Size(tokens=2048, drawn=1024, latents=96, k=4, batch=256, judged=512, toy_tokens=1024, toy_steps=20)


def test_a_comparison_has_a_row_a_method_with_its_deviation():
    told = []
    rows = compare(("topk", "batch_topk"), 2, TINY, WorldConfig(**SMALL), told.append)
    assert [row.method for row in rows] == ["topk", "batch_topk"]
    assert len(told) == 4
    again = compare(("topk",), 2, TINY, WorldConfig(**SMALL))
    assert again[0].mean["mcc"] == rows[0].mean["mcc"]  # whatever else is trained beside it
    assert rows[0].deviation["mcc"] > 0
    text = table(rows)
    assert text.count("\n") == 3
    assert "| topk | " in text
    assert [one.name.split()[0] for one in checks(rows)] == ["batch_topk", "batch_topk"]
    with pytest.raises(UserError, match="at least one seed"):
        compare(("topk",), 0, TINY)


def test_a_ranking_that_is_turned_around_is_missed():
    numbers = {"mcc": 0.9, "fvu": 0.1, "absorption": 0.3}
    rows = [summary("topk", [numbers]), summary("batch_topk", [{**numbers, "mcc": 0.8}])]
    assert [one.passed for one in checks(rows)] == [False, True]
    noisy = [summary("topk", [numbers, {**numbers, "mcc": 0.7}]), rows[1]]
    assert [one.passed for one in checks(noisy)] == [True, True]
    nested = [summary("topk", [numbers]), summary("topk matryoshka", [{**numbers, "absorption": 0.4}])]
    assert [one.passed for one in checks(nested)] == [False]


def test_the_command_takes_the_options_of_its_bench(monkeypatch):
    import unweave.saes.synthetic.compare as module

    monkeypatch.setattr(module, "QUICK", TINY)
    monkeypatch.setattr(module, "WorldConfig", lambda: WorldConfig(**SMALL))
    found = bench("synthetic", methods=("topk",), seeds=1, quick=True)
    assert [row["method"] for row in found["rows"]] == ["topk"]
    assert found["missed"] == 0
    for wrong in (
        dict(what="speed"),
        dict(what="circuits", quick=True),
        dict(what="synthetic", suites=("programs",)),
        dict(what="synthetic", methods=("nothing",), quick=True),
    ):
        with pytest.raises(UserError, match="expected"):
            bench(**wrong)
