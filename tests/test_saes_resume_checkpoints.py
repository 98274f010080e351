"""Checkpoints are written while training goes on, the newest few stay, a damaged one is passed over, and one process has the folder."""

import threading

import pytest
import torch
from saes_toys import ends_within, shards_of
from safetensors.torch import save_file
from unweave.saes import TrainConfig, UserError, train
from unweave.saes.runs import checkpoints as module
from unweave.saes.runs.checkpoints import Checkpoints
from unweave.saes.runs.lock import FolderLock
from unweave.saes.runs.run import Run

NAME = "checkpoint-{:08d}.safetensors"
TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "none": torch.zeros(0, 3),
    "one": torch.tensor(7),
    "b": torch.ones(5).bfloat16(),
}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def saved(folder, *steps, keep=1):
    own = Checkpoints(folder, keep)
    for step in steps:
        own.save(step, {"said": f"of {step}"}, TENSORS)
    own.wait()
    return own


def test_what_is_saved_comes_back(tmp_path):
    saved(tmp_path, 400)
    about, tensors = Checkpoints(tmp_path).latest()
    assert about == {"step": 400, "said": "of 400"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert Checkpoints(tmp_path / "none").latest() is None


@pytest.mark.parametrize("keep", [1, 3, 9])
def test_the_newest_few_stay(tmp_path, keep):
    saved(tmp_path, *range(100, 600, 100), keep=keep)
    assert names(tmp_path) == [NAME.format(step) for step in range(100, 600, 100)][-keep:]


@pytest.mark.parametrize("keep", [0, -1])
def test_none_to_keep_is_a_user_error(tmp_path, keep):
    with pytest.raises(UserError, match="at least one"):
        Checkpoints(tmp_path, keep)


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing waits until the event is set; the files that have been begun."""
    begun, go, real = [], threading.Event(), module.write_tensors

    def slow(path, *rest):
        begun.append(path.name)
        assert go.wait(10)
        real(path, *rest)

    monkeypatch.setattr(module, "write_tensors", slow)
    yield begun, go
    go.set()


def test_saving_waits_for_no_disk_and_what_is_changed_later_is_not_in_it(tmp_path, slow_disk):
    own, changing = Checkpoints(tmp_path), {"a": torch.zeros(3)}
    own.save(1, {}, changing)
    changing["a"].fill_(5)
    assert own.latest() is None
    slow_disk[1].set()
    own.wait()
    assert own.latest()[1]["a"].tolist() == [0, 0, 0]


def test_a_second_save_waits_for_the_first(tmp_path, slow_disk):
    begun, go = slow_disk
    own = Checkpoints(tmp_path, keep=2)
    own.save(1, {}, TENSORS)
    threading.Timer(0.2, go.set).start()
    own.save(2, {}, TENSORS)
    assert (tmp_path / NAME.format(1)).exists() and go.is_set()
    own.wait()
    assert begun == [NAME.format(1), NAME.format(2)]


def flipped(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"text"),
    "a number": lambda path: flipped(path, -3),
    "about": lambda path: flipped(path, path.read_bytes().index(b"said")),
    "checksum": lambda path: flipped(path, path.read_bytes().index(b"xxh3") + 8),
    "a name": lambda path: flipped(path, path.read_bytes().index(b'"one"') + 1),
    "no checksum": lambda path: save_file(TENSORS, path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path, damage, capsys):
    saved(tmp_path, 100, 200, 300, keep=3)
    DAMAGE[damage](tmp_path / NAME.format(300))
    own = Checkpoints(tmp_path, keep=2)
    assert own.latest()[0]["step"] == 200
    said = capsys.readouterr().err
    assert said.startswith("note: ") and NAME.format(300) in said and f"going on from {NAME.format(200)}" in said
    own.save(250, {}, TENSORS, wait=True)
    assert names(tmp_path) == [NAME.format(200), NAME.format(250)]  # the damaged one counts for nothing, and goes


def test_every_flipped_bit_is_seen(tmp_path):
    saved(tmp_path, 1)
    path = tmp_path / NAME.format(1)
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped(path, place)
        try:
            about, tensors = module.read_checkpoint(path)
        except UserError:
            pass
        else:  # of the header's spaces, which mean nothing
            assert about == {"step": 1, "said": "of 1"} and tensors.keys() == TENSORS.keys()
            assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
        path.write_bytes(whole)


def test_none_that_is_whole_is_a_user_error(tmp_path):
    saved(tmp_path, 100, 200, keep=2)
    for path in tmp_path.iterdir():
        DAMAGE["short"](path)
    with pytest.raises(UserError, match=f"{NAME.format(200)}"):
        Checkpoints(tmp_path).latest()


def test_an_error_in_the_thread_comes_out_once_and_the_one_before_is_whole(tmp_path, monkeypatch):
    own = saved(tmp_path, 100)

    def full(*given):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_tensors", full)
        own.save(200, {}, TENSORS)
        with pytest.raises(UserError, match=r"No space left on device; the one before is whole: make room"):
            own.save(300, {}, TENSORS)
    own.wait()
    assert own.latest()[0]["step"] == 100
    own.save(400, {}, TENSORS, wait=True)
    assert names(tmp_path) == [NAME.format(400)]


def test_removing_leaves_nothing_and_touches_nothing_else(tmp_path):
    own = saved(tmp_path, 100, 200, keep=2)
    halves = (".tmp-77-checkpoint-00000300.safetensors", ".tmpWwXUyD")
    for name in (*halves, "checkpoint.safetensors", "metrics.jsonl", "mine.safetensors"):
        (tmp_path / name).write_text("")
    own.remove_all()
    assert names(tmp_path) == ["metrics.jsonl", "mine.safetensors"]


# Runs.


def config(**changes):
    return TrainConfig(
        **{**dict(site="a", latents=32, k=4, tokens=2000, batch=64, checkpoint_every=5, log_every=3), **changes}
    )


@pytest.fixture
def shards(tmp_path):
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) + 5
    return shards_of(tmp_path / "shards", {"a": x})


def run(shards, out, **options):
    return train(config(), shards, out, device="cpu", progress=False, **options)


def stopped(shards, out, step, monkeypatch, **options):
    with ends_within(step, monkeypatch):
        run(shards, out, **options)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_keeps_what_is_asked_for_and_nothing_when_it_is_done(shards, tmp_path, monkeypatch):
    stopped(shards, tmp_path / "out", 23, monkeypatch, keep=3)
    assert [path.name for path in sorted((tmp_path / "out").glob("checkpoint*"))] == [NAME.format(n) for n in (10, 15, 20)]  # fmt: skip
    run(shards, tmp_path / "out", resume=True)
    assert names(tmp_path / "out") == ["cfg.json", "config.json", "metrics.jsonl", "sae_weights.safetensors"]


def test_a_run_goes_on_from_the_last_whole_checkpoint(shards, tmp_path, monkeypatch, capsys):
    straight = run(shards, tmp_path / "straight")
    stopped(shards, tmp_path / "out", 23, monkeypatch, keep=2)
    flipped(tmp_path / "out" / NAME.format(20), -3)
    assert same(run(shards, tmp_path / "out", resume=True), straight)
    assert "going on from checkpoint-00000015" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(shards, tmp_path, monkeypatch):
    straight = run(shards, tmp_path / "straight")
    stopped(shards, tmp_path / "out", 12, monkeypatch)
    (path,) = (tmp_path / "out").glob("checkpoint-*")
    about, tensors = module.read_checkpoint(path)
    path.unlink()
    text = torch.tensor(list(b'{"step": 10, "shards": "%s"}' % about["shards"].encode()), dtype=torch.uint8)
    tensors.pop("unwritten")  # the numbers of step 10, which its version lost
    save_file({"about": text, **tensors}, tmp_path / "out" / "checkpoint.safetensors")
    assert same(run(shards, tmp_path / "out", resume=True), straight)
    assert not list((tmp_path / "out").glob("checkpoint*"))


def test_what_may_change_the_last_bits_is_said(shards, tmp_path, monkeypatch, capsys):
    stopped(shards, tmp_path / "out", 12, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9.9")
        patch.setattr(torch, "get_num_threads", lambda: 77)
        run(shards, tmp_path / "out", resume=True)
    said = capsys.readouterr().err
    assert f"77 threads instead of {torch.get_num_threads()} threads" in said
    assert f"torch 9.9.9 instead of torch {torch.__version__}" in said and "device" not in said


def test_training_does_not_wait_for_the_disk(shards, tmp_path, slow_disk):
    seen = []

    class Hears:
        def log(self, line):
            seen.append(line["step"])
            if line["step"] == 9:
                assert slow_disk[0] == [NAME.format(5)] and not list((tmp_path / "out").glob("checkpoint*"))
                slow_disk[1].set()

        def close(self):
            pass

    run(shards, tmp_path / "out", loggers=[Hears()])
    assert seen[2] == 9 and slow_disk[0] == [NAME.format(step) for step in range(5, 33, 5)]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_which_can_go_on(shards, tmp_path, monkeypatch):
    straight = run(shards, tmp_path / "straight")
    real = module.write_tensors

    def full(path, *rest):
        if "00000015" in path.name:
            raise OSError(28, "No space left on device")
        real(path, *rest)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr(module, "write_tensors", full)
        run(shards, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("checkpoint*")] == [NAME.format(10)]
    assert same(run(shards, tmp_path / "out", resume=True), straight)


def test_one_at_a_time_has_the_folder(shards, tmp_path, monkeypatch):
    stopped(shards, tmp_path / "out", 12, monkeypatch)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    lock = FolderLock(tmp_path / "out")
    for resume in (True, False):
        with pytest.raises(UserError, match="another process is writing there"):
            run(shards, tmp_path / "out", resume=resume)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    lock.release()
    run(shards, tmp_path / "out", resume=True)


def test_a_folder_that_appears_meanwhile_is_looked_at_again(shards, tmp_path):
    """Two runs that find no folder: the second to make it must not write over the first."""
    late = Run(config(), tmp_path / "out", False, False)
    run(shards, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="has files"):
        late.restore(*state_and_rows(shards))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def state_and_rows(shards):
    from unweave.saes.rows import open_rows
    from unweave.saes.state import TrainState
    from unweave.saes.train import initial_weights

    rows = open_rows(config(), shards)
    return TrainState(config(), initial_weights(config(), rows.layout, torch.device("cpu")), rows.layout), rows


def test_a_lock_that_is_forgotten_is_lifted(tmp_path):
    lock = FolderLock(tmp_path)
    del lock
    FolderLock(tmp_path).release()


def test_what_a_killed_run_left_half_written_is_nothing(shards, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".tmp-77-config.json").write_text("{")
    (tmp_path / "out" / ".tmpWwXUyD").write_text("")  # of safetensors, which writes beside the name that it is given
    run(shards, tmp_path / "out")
    assert names(tmp_path / "out") == ["cfg.json", "config.json", "metrics.jsonl", "sae_weights.safetensors"]


def test_a_run_killed_before_it_removed_its_checkpoints_is_finished(shards, tmp_path):
    first = run(shards, tmp_path / "out")
    saved(tmp_path / "out", 30)
    assert same(run(shards, tmp_path / "out", resume=True), first)
    assert not list((tmp_path / "out").glob("checkpoint*"))


def test_time_left_is_told_from_the_steps_since_the_resume(shards, tmp_path, monkeypatch):
    stopped(shards, tmp_path / "out", 22, monkeypatch)
    bars, close = [], Run.close

    def keep_bar(self):
        if self._bar is not None:
            bars.append((dict(self._bar.format_dict), self._bar.format_meter))
        close(self)

    monkeypatch.setattr(Run, "close", keep_bar)
    monkeypatch.setattr("unweave.saes.runs.run.tqdm.write", lambda *given, **more: None)
    train(config(), shards, tmp_path / "out", device="cpu", resume=True)
    told, meter = bars[0]
    assert (told["initial"], told["n"], told["total"]) == (20, 32, 32)
    # Half of the twelve steps took 6 s: 6 s are left, however many steps were done before.
    line = meter(**{**told, "n": 26, "elapsed": 6.0, "rate": None, "ncols": 200})
    assert "00:06<00:06" in line
