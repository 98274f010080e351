"""Activations straight from the model are those that a cache would hold, mixed within windows; one forward pass feeds all runs."""

import threading
import time

import pytest
import torch
from saes_toys import MLP_IN, MLP_OUT, RESID, cached, ends_within, model, texts
from torch.testing import assert_close
from unweave.saes import TrainConfig, UserError, evaluate, grid, stream, train, train_many
from unweave.saes import streamed as streamed_module
from unweave.saes.capture import capture

SITES = (RESID, MLP_IN, MLP_OUT)
BASE = TrainConfig(site=RESID, latents=48, k=4, batch=64, tokens=64 * 9, checkpoint_every=2, log_every=1)
BUFFER = 128


def made(some=None, **options):
    options = {"context": 16, "batch": 4, "buffer": BUFFER, **options}
    return stream(model(), texts(30) if some is None else some, SITES, **options)


def run(data, config=BASE, out=None, **options):
    return train(config, data, out, device="cpu", progress=False, **options)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def slow_capture(monkeypatch, seconds, passes=None):
    def slow(*given):
        if passes is not None:
            passes.append(1)
        time.sleep(seconds)
        return capture(*given)

    monkeypatch.setattr(streamed_module, "capture", slow)


@pytest.fixture
def shards(tmp_path):
    return cached(tmp_path / "shards", SITES, count=30)


@pytest.mark.parametrize("buffer", [1, BUFFER, 10**6])
def test_rows_are_those_of_a_cache_in_another_order(shards, buffer):
    batches = list(made(buffer=buffer))
    columns = {
        what: torch.cat([getattr(batch, what) for batch in batches]) for what in ("tokens", "positions", "documents")
    }
    # Documents of more than a block have a position twice: blocks stay in order within a window of one pass only.
    key = columns["documents"] * 1000 + columns["positions"] * 50 + columns["tokens"]
    want = shards.documents * 1000 + shards.positions * 50 + shards.tokens
    order, wanted = key.argsort(stable=True), want.argsort(stable=True)
    assert torch.equal(key[order], want[wanted])
    for site in SITES:
        rows = torch.cat([batch.activations[site] for batch in batches])[order]
        assert_close(rows.sum(1).sort().values, shards[site][wanted].sum(1).sort().values, rtol=1e-9, atol=1e-9)
        alone = torch.cat([key[order].diff(prepend=torch.tensor([-1])) > 0])
        alone &= torch.cat([alone[1:], torch.tensor([True])])
        assert alone.sum() > 100
        assert_close(rows[alone], shards[site][wanted][alone], rtol=1e-9, atol=1e-9)


def windows(shards, buffer, batch=4):
    """The rows of each window, by definition: forward passes until there are `buffer` tokens."""
    starts = [*(shards.positions == 0).nonzero()[:, 0].tolist(), len(shards)]
    found, begin = [], 0
    for end in [*starts[batch::batch], starts[-1]]:
        if end - begin >= buffer or end == starts[-1]:
            found.append(slice(begin, end))
            begin = end
    return [window for window in found if window.start < window.stop]


def test_a_window_is_mixed_and_nothing_leaves_it(shards):
    rows = torch.cat([batch.activations[RESID] for batch in made()])
    assert len(windows(shards, BUFFER)) > 4
    for window in windows(shards, BUFFER):
        cached_rows, streamed_rows = shards[RESID][window], rows[window]
        nearest = torch.cdist(streamed_rows, cached_rows, compute_mode="donot_use_mm_for_euclid_dist")
        assert nearest.amin(1).max() < 1e-6 and nearest.amin(0).max() < 1e-6
        moved = (nearest.argmin(1) - torch.arange(len(nearest))).abs().double().mean() / len(nearest)
        assert 0.2 < moved < 0.5  # a third, in a random order


def test_the_seed_is_the_order():
    one, again, other = (torch.cat([b.tokens for b in made(seed=seed)]) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_training_knows_positions_and_the_model(shards):
    dictionary = run(made())
    assert dictionary.keep_rule.drop_positions == 1
    assert dictionary.metadata["model"]["fingerprint"] == shards.manifest["model"]["fingerprint"]
    assert dictionary.metadata["stream"] == {"batch": 4, "buffer": BUFFER, "seed": 0}
    assert evaluate(dictionary, shards).fvu < 1


def test_which_thread_is_faster_changes_nothing(monkeypatch):
    usual = run(made())
    with monkeypatch.context() as patch:
        slow_capture(patch, 0.02)
        assert same(run(made()), usual)
    real = made().since

    def slowly(self, blocks):
        for piece in real.__func__(self, blocks):
            time.sleep(0.03)
            yield piece

    monkeypatch.setattr(streamed_module.Stream, "since", slowly)
    assert same(run(made()), usual)


def test_no_more_than_a_window_is_made_ahead(monkeypatch):
    ends = [begun // 4 for begun in sorted({piece.blocks for piece in made().since(0)})][1:]  # in passes of four blocks
    passes = []
    slow_capture(monkeypatch, 0, passes)
    pieces = made().since(0)
    assert next(pieces).blocks == 0
    for _ in range(100):  # until the thread has made what it may
        before = len(passes)
        time.sleep(0.02)
        if before == len(passes):
            break
    assert len(passes) == ends[1]
    assert next(pieces).blocks == 4 * ends[0]
    time.sleep(0.2)
    assert ends[1] < len(passes) <= ends[2]
    pieces.close()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "stream"]


def test_the_thread_ends_with_the_iterator_with_training_and_with_an_error(monkeypatch):
    pieces = made().since(0)
    next(pieces)
    assert len(threads()) == 1
    del pieces
    assert not threads()
    run(made(), TrainConfig(site=RESID, latents=48, k=4, batch=64, tokens=64))
    assert not threads()

    def broken(*given):
        raise UserError("expected a model that works")

    monkeypatch.setattr(streamed_module, "capture", broken)
    with pytest.raises(UserError, match="that works"):
        run(made())
    assert not threads()


def interrupted(data, out, monkeypatch, step, config=BASE):
    """A run, or a sweep of several configs, that ends within a step."""
    with ends_within(step, monkeypatch):
        if isinstance(config, list):
            train_many(config, data, out, device="cpu", progress=False)
        else:
            run(data, config, out)
    assert not threads()


@pytest.mark.parametrize("buffer", [1, BUFFER, 10**6])
@pytest.mark.parametrize("step", [2, 5, 8])
def test_a_run_goes_on_from_a_callable_in_every_window(tmp_path, monkeypatch, buffer, step):
    straight = run(made(buffer=buffer))
    interrupted(made(lambda: iter(texts(30)), buffer=buffer), tmp_path / "out", monkeypatch, step)
    passes = []
    slow_capture(monkeypatch, 0, passes)
    resumed = run(made(buffer=buffer), BASE, tmp_path / "out", resume=True)
    assert same(resumed, straight) and resumed.metadata == straight.metadata
    resumed_passes = len(passes)
    passes.clear()
    list(made(buffer=buffer))
    # What lies before the window is not computed again.
    assert resumed_passes < len(passes) or buffer > BUFFER or step == 2


def test_nothing_is_fitted_again(tmp_path, monkeypatch):
    interrupted(made(), tmp_path / "out", monkeypatch, 5)
    monkeypatch.setattr("unweave.saes.stream_rows.fit_scaling", None)
    monkeypatch.setattr("unweave.saes.stream_rows.fit_keep_rule", None)
    run(made(), BASE, tmp_path / "out", resume=True)


@pytest.mark.parametrize("changes", [dict(buffer=256), dict(seed=1), dict(batch=5), dict(context=15)])
def test_another_stream_is_refused(tmp_path, monkeypatch, changes):
    interrupted(made(), tmp_path / "out", monkeypatch, 5)
    with pytest.raises(UserError, match=r"stream that .* was begun on"):
        run(made(**changes), BASE, tmp_path / "out", resume=True)


@pytest.mark.parametrize("step", [2, 7])
@pytest.mark.parametrize("change", ["first", "in the window", "short"])
def test_another_text_is_refused(tmp_path, monkeypatch, step, change):
    interrupted(made(), tmp_path / "out", monkeypatch, step)
    # The checkpoint of step 2 lies in the first window, that of step 6 in a later one.
    other = texts(30)
    if change == "short":
        other = other[:2]
    else:
        place = 0 if change == "first" else (4 if step == 2 else 18)
        other[place] = "w5 " + other[place]
    with pytest.raises(UserError, match="text that the run was begun with"):
        run(made(other), BASE, tmp_path / "out", resume=True)


def test_text_that_can_be_gone_through_once_cannot_be_resumed(tmp_path, monkeypatch):
    interrupted(made(iter(texts(30))), tmp_path / "out", monkeypatch, 5)
    assert not list((tmp_path / "out").glob("checkpoint*"))
    with pytest.raises(UserError, match="callable that gives a fresh iterator"):
        run(made(iter(texts(30))), BASE, tmp_path / "out", resume=True)


CONFIGS = [
    *grid(BASE, k=[2, 4]),
    *grid(BASE, site=[(MLP_IN,)], site_out=[(MLP_OUT,)], activation=["topk", "relu"]),
    *grid(BASE, batch=[32]),
]


def test_one_forward_pass_feeds_a_sweep(monkeypatch):
    passes = []
    slow_capture(monkeypatch, 0, passes)
    many = train_many(CONFIGS, made(), device="cpu", progress=False)
    fed = len(passes)
    passes.clear()
    list(made())
    assert fed <= len(passes)
    for config, found in zip(CONFIGS, many, strict=True):
        alone = run(made(), config)
        assert same(alone, found)
        assert found.metadata == alone.metadata and "model" in found.metadata


def test_a_sweep_goes_on_and_its_passes_are_made_once(tmp_path, monkeypatch):
    straight = train_many(CONFIGS, made(), device="cpu", progress=False)
    interrupted(made(), tmp_path / "out", monkeypatch, 7, CONFIGS)
    passes = []
    slow_capture(monkeypatch, 0, passes)
    resumed = train_many(CONFIGS, made(), tmp_path / "out", resume=True, device="cpu", progress=False)
    assert all(map(same, straight, resumed))
    fed = len(passes)
    passes.clear()
    list(made())
    assert fed < len(passes)
