"""Every activation rule and layout is trained by config alone, becomes as sparse as asked, and no option is idle."""

import dataclasses

import pytest
import torch
from saes_toys import LAYOUTS, shards_of
from torch.testing import assert_close
from unweave.saes import Dictionary, TrainConfig, UserError, train
from unweave.saes.dictionary_config import ACTIVATIONS, DictionaryConfig

D, LATENTS, K, BATCH = 12, 32, 3, 128


def sparse_rows(rows, seed=0):
    """Activations at four sites that share their sparse causes."""
    generator = torch.Generator().manual_seed(seed)
    causes = (torch.rand(rows, LATENTS, generator=generator) < K / LATENTS) * (
        1 + torch.rand(rows, LATENTS, generator=generator)
    )
    unit = torch.nn.functional.normalize
    return {
        site: scale * causes @ unit(torch.randn(LATENTS, D, generator=torch.Generator().manual_seed(number)), dim=1)
        + number
        for number, (site, scale) in enumerate({"a": 1.0, "b": 3.0, "c": 0.5, "d": 2.0}.items(), 1)
    }


def config(rule="topk", layout="sae", steps=30, **changes):
    given = dict(latents=LATENTS, k=K, activation=rule, batch=BATCH, tokens=steps * BATCH, drop_norm=0.0, log_every=5)
    return TrainConfig(**{**given, **LAYOUTS[layout], **changes})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return shards_of(tmp_path_factory.mktemp("rows") / "shards", sparse_rows(1500))


def run(own, data, out=None, **options):
    return train(own, data, out, device="cpu", progress=False, **options)


def stream(steps, seed=0):
    for number in range(steps):
        yield sparse_rows(BATCH, seed * 1000 + number)


@pytest.mark.parametrize(
    ("rule", "penalty"),
    [("relu", "l1"), ("relu", "anneal"), ("relu", "tanh"), ("gated", "l1"), ("jumprelu", "l0"), ("jumprelu", "tanh")],
)
def test_a_penalty_is_steered_to_k(rule, penalty):
    steps = 500
    own = config(rule, steps=steps, penalty=penalty, tokens=steps * BATCH)
    dictionary = run(own, (item["a"] for item in stream(steps)))
    x = torch.cat([item["a"] for item in stream(8, seed=7)])
    l0 = float(dictionary.encode(x).l0().float().mean())
    assert l0 == pytest.approx(K, rel=0.15)
    fvu = (x - dictionary(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < 0.6


def test_a_weight_that_is_given_stays():
    own = config("relu", sparsity=0.37, warmup=0.0)
    run_out = []
    for item in stream(1):
        run_out.append(item["a"])
    from unweave.saes import plain
    from unweave.saes.rows import Pair
    from unweave.saes.state import TrainState, take_step
    from unweave.saes.train import initial_weights

    layout = layout_of_one(own)
    state = TrainState(own, initial_weights(own, layout, torch.device("cpu")), layout)
    for _ in range(3):
        metrics = take_step(state, plain.update, Pair(run_out[0], run_out[0]))
        assert float(metrics[state.metrics.index("sparsity")]) == pytest.approx(0.37)


def layout_of_one(own):
    from unweave.saes.layout import Layout

    return Layout(own.dictionary, {"a": D}, {"a": D})


def test_batch_topk_learns_a_threshold_that_keeps_k_on_average_and_looks_at_one_token():
    steps = 200
    dictionary = run(config("batch_topk", steps=steps), (item["a"] for item in stream(steps)))
    x = torch.cat([item["a"] for item in stream(8, seed=7)])
    codes = dictionary.encode(x)
    assert float(codes.l0().float().mean()) == pytest.approx(K, rel=0.15)
    assert len(dictionary.threshold.unique()) == 1
    for token in (0, 5, 77):
        assert_close(
            dictionary.encode(x[token : token + 1]).dense(LATENTS)[0], codes.dense(LATENTS)[token], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("layout", ["sae", "crosscoder", "cross-layer", "shared"])
@pytest.mark.parametrize("rule", ACTIVATIONS)
def test_training_explains_variance_in_every_layout(rule, layout):
    steps = 120
    dictionary = run(config(rule, layout, steps=steps), stream(steps))
    x = sparse_rows(400, seed=99)
    out = dictionary(x)
    if isinstance(out, torch.Tensor):
        out = {
            site: out if out.ndim == 2 else out[:, number] for number, site in enumerate(dictionary.config.sites_out)
        }
    for site, found in out.items():
        error = (x[site] - found).square().sum() / (x[site] - x[site].mean(0)).square().sum()
        assert error < 0.9, site


def test_no_option_is_idle(shards, tmp_path, monkeypatch):
    """Each field, changed: the weights differ, or the run's files do, or it is refused."""
    base = dict(rule="jumprelu", layout="sae", steps=12, dead_after=1, drop_norm=1.5)
    monkeypatch.setitem(shards.manifest, "special", shards.tokens[:1].tolist())
    changed = {
        "site": dict(site="b"),
        "site_out": dict(site_out="b"),
        "across": dict(site=("a", "b"), across="shared"),
        "activation": dict(activation="gated"),
        "latents": dict(latents=40),
        "k": dict(k=5),
        "matryoshka": dict(matryoshka=(4,)),
        "skip": dict(site_out="b", skip=True),
        "tokens": dict(tokens=20 * BATCH),
        "batch": dict(batch=BATCH // 2),
        "lr": dict(lr=1e-4),
        "matmul": dict(matmul="bfloat16"),
        "seed": dict(seed=1),
        "warmup": dict(warmup=0.5),
        "decay": dict(decay=0.9),
        "penalty": dict(penalty="tanh"),
        "sparsity": dict(sparsity=0.5),
        "bandwidth": dict(bandwidth=0.3),
        "auxk": dict(auxk=0.5),
        "dead_after": dict(dead_after=10**6),
        "center": dict(center="median"),
        "accumulate": dict(accumulate=4),
        "clip": dict(clip=0.05),
        "optimizer": dict(optimizer="factored"),
        "ema": dict(ema=0.5),
        "drop_positions": dict(drop_positions=3),
        "drop_special": dict(drop_special=False),
        "drop_norm": dict(drop_norm=1.05),
        "massive": dict(massive="clip"),
        "held_out": dict(held_out=0.4),
        "window": dict(window=1),
        "log_every": dict(log_every=1),
        "checkpoint_every": dict(checkpoint_every=1),
    }
    fields = {field.name for kind in (TrainConfig, DictionaryConfig) for field in dataclasses.fields(kind)} - {
        "dictionary"
    }
    assert fields == set(changed)
    usual = run(config(**base), shards, tmp_path / "usual")
    same = []
    for name, changes in changed.items():
        other = run(config(**{**base, **changes}), shards, tmp_path / name)
        weights = all(
            a.shape == b.shape and torch.equal(a, b)
            for a, b in zip(usual.parameters(), other.parameters(), strict=False)
        )
        logs = [(tmp_path / folder / "metrics.jsonl").read_text().count("\n") for folder in ("usual", name)]
        if weights and logs[0] == logs[1]:
            same.append(name)
    # Parts of a batch are summed in another order only; checkpoints are gone once a run has ended.
    assert set(same) <= {"accumulate", "checkpoint_every"}


def test_a_site_that_is_not_there_and_widths_that_differ_are_user_errors(tmp_path):
    rows = sparse_rows(300)
    data = shards_of(tmp_path / "shards", {"a": rows["a"], "wide": torch.cat([rows["a"], rows["b"]], 1)})
    with pytest.raises(UserError, match="cached site"):
        run(config(site=("a", "x")), data)
    with pytest.raises(UserError, match="one width"):
        run(config(site=("a", "wide"), across="shared"), data)
    both = run(config(site=("a", "wide"), steps=5), data)
    assert {site: tuple(out.shape) for site, out in both({"a": rows["a"], "wide": torch.cat([rows["a"], rows["b"]], 1)}).items()} == {
        "a": (300, D), "wide": (300, 2 * D)}  # fmt: skip


def test_a_shared_dictionary_asks_for_the_site():
    dictionary = run(config(layout="shared", steps=5), stream(5))
    x = sparse_rows(9)
    with pytest.raises(UserError, match=r"call at\(site\)"):
        dictionary.encode(x["a"])
    with pytest.raises(UserError, match=r"call at\(site\)"):
        dictionary.encode({"a": x["a"], "b": x["b"]})
    one = dictionary.at("b")
    assert one.config.site == ("b",) and one.is_single and torch.equal(one.W_enc, dictionary.W_enc)
    assert_close(one.encode(x["b"]).values, dictionary.encode({"b": x["b"]}).values)
    assert_close(dictionary({"b": x["b"]})["b"], one(x["b"]))
    assert isinstance(dictionary, Dictionary)
