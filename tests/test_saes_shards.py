import json
from itertools import chain

import pytest
import torch
from saes_damage import copied, edit, touch
from saes_toys import MLP_OUT, RESID, cached, shards_of
from torch.testing import assert_close
from unweave.saes import Shards, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Several shards of two sites; read only."""
    return cached(tmp_path_factory.mktemp("shards") / "a", (RESID, MLP_OUT), shard_mib=0).folder


@pytest.fixture
def copy(folder, tmp_path):
    return copied(folder, tmp_path)


def test_chosen_rows_are_those_of_the_whole(folder):
    shards = Shards.open(folder)
    assert len(shards.manifest["shards"]) > 2
    whole = shards[RESID][:]
    assert shards[RESID].shape == tuple(whole.shape) == (len(shards), 64)
    index = torch.randint(0, len(shards), (50,), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(len(shards), dtype=torch.bool)
    mask[index] = True
    for rows in (index, slice(3, 90, 7), mask, slice(5, 5)):
        assert_close(shards[RESID][rows], whole[rows], rtol=0, atol=0)
    assert_close(shards[RESID][4], whole[4:5], rtol=0, atol=0)
    both = shards.read([MLP_OUT, RESID], index)
    assert_close(both[RESID], whole[index], rtol=0, atol=0)


@pytest.mark.parametrize("rows", [-1, 10**6, torch.tensor([0, -2])])
def test_rows_outside_the_folder_are_a_user_error(folder, rows):
    with pytest.raises(UserError, match="expected rows in"):
        Shards.open(folder)[RESID][rows]


def test_writing_to_what_was_read_never_reaches_the_file(folder):
    shards = Shards.open(folder)
    before = shards.tokens.clone()
    shards[RESID][:].zero_()
    shards.tokens.zero_()
    again = Shards.open(folder)
    assert again[RESID][:].any()
    assert_close(again.tokens, before)


@pytest.mark.parametrize("batch", [1, 7, 64, 10_000])
@pytest.mark.parametrize("seed", [0, 5, -3, 2**40])
def test_batches_are_a_permutation_of_the_rows(tmp_path, batch, seed):
    shards = shards_of(tmp_path / "a", {"a": torch.arange(123.0)[:, None].expand(-1, 3)}, shard_mib=0)
    assert len(shards.manifest["shards"]) > 2
    batches = list(shards.batches(batch, seed))
    assert {len(b.tokens) for b in batches[:-1]} <= {batch}
    rows = torch.cat([b.activations["a"] for b in batches])[:, 0].long()
    assert sorted(rows.tolist()) == list(range(123))
    for name in ("tokens", "positions", "documents"):
        assert_close(torch.cat([getattr(b, name) for b in batches]), getattr(shards, name)[rows])


def flat(batches):
    return [(b.documents * 1000 + b.positions).tolist() for b in batches]


def test_seeds_and_epochs_have_orders_of_their_own_and_none_is_text_order(folder):
    shards = Shards.open(folder)
    two = flat(shards.batches(10_000, 0, epochs=2))
    assert two[0] != two[1] != flat(shards.batches(10_000, 1))[0] != two[0]
    assert sorted(two[0]) == sorted(two[1])
    assert flat(shards.batches(10_000, 0))[0] == two[0]
    assert flat(shards.batches(10_000, None))[0] == (shards.documents * 1000 + shards.positions).tolist()


@pytest.mark.parametrize("only_whole", [False, True])
@pytest.mark.parametrize("batch", [7, 50, 10_000])
def test_start_continues_the_order_across_epochs(folder, batch, only_whole):
    shards = Shards.open(folder)
    rows = torch.arange(3, len(shards), 2)
    options = dict(seed=3, rows=rows, epochs=3, only_whole=only_whole)
    whole = flat(shards.batches(batch, **options))
    for start in range(len(whole) + 2):
        assert flat(shards.batches(batch, start=start, **options)) == whole[start:]


def test_only_whole_batches_leave_the_rest_of_an_epoch_out(folder):
    shards = Shards.open(folder)
    rows = torch.arange(23)
    assert [len(b) for b in flat(shards.batches(10, rows=rows, only_whole=True, epochs=2))] == [10, 10, 10, 10]
    assert [len(b) for b in flat(shards.batches(30, rows=rows, only_whole=True, epochs=2))] == [23, 23]


def test_rows_may_be_a_mask_and_bound_what_is_drawn(folder):
    shards = Shards.open(folder)
    mask = shards.positions > 3
    chosen = sorted(chain.from_iterable(flat(shards.batches(9, rows=mask))))
    assert chosen == sorted((shards.documents * 1000 + shards.positions)[mask].tolist())
    assert flat(shards.batches(9, rows=mask)) == flat(shards.batches(9, rows=mask.nonzero().squeeze(1)))
    with pytest.raises(UserError, match="at least one row"):
        next(shards.batches(0))


def test_bfloat16_rows_come_back_as_they_were_stored(tmp_path):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    shards = shards_of(tmp_path / "a", {"a": x})
    assert shards["a"][:].dtype == torch.bfloat16
    assert_close(shards["a"][:], x, rtol=0, atol=0)


def test_one_row_is_a_folder_too(tmp_path):
    shards = shards_of(tmp_path / "a", {"a": torch.ones(1, 3)})
    assert len(shards) == 1
    assert [b.activations["a"].tolist() for b in shards.batches(8)] == [[[1.0, 1.0, 1.0]]]


def test_an_unknown_site_names_those_there_are(folder):
    with pytest.raises(UserError, match=r"blocks\.1\.hook_resid_post.*got 'x'"):
        Shards.open(folder)["x"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "longer"])
def test_a_shard_of_another_size_is_noticed_when_the_folder_is_opened(copy, damage):
    path = copy / "shard-00001.safetensors"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"truncated": data[:-1], "empty": b"", "longer": data + b"\0"}[damage])
    with pytest.raises(UserError, match=r"shard-00001\.safetensors of [0-9,]+ bytes"):
        Shards.open(copy)


def places(size: int) -> list[int]:
    """The length of the header, the header, the data: ends and some between."""
    inside = torch.randint(0, size, (12,), generator=torch.Generator().manual_seed(0)).tolist()
    return [0, 3, 7, 8, 60, *inside, size - 1]


@pytest.mark.parametrize("version", [1, 2])
def test_one_flipped_bit_is_noticed_when_the_shard_is_read(copy, version):
    path = copy / "shard-00001.safetensors"
    whole = path.read_bytes()
    if version == 1:
        edit(copy, version=lambda _: 1, shards=lambda s: [{k: v for k, v in one.items() if k != "xxh3"} for one in s])
    for at in places(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << (at % 8)
        path.write_bytes(bytes(data))
        with pytest.raises(UserError, match=r"shard-00001.*checksum differs"):
            touch(copy)
    path.write_bytes(whole)
    touch(copy)


def test_a_shard_that_goes_after_the_folder_was_opened_is_a_user_error(copy):
    shards = Shards.open(copy)
    (copy / "shard-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"expected the shard .*shard-00001"):
        shards[RESID][:]
    shards = Shards.open(copy) if (copy / "shard-00001.safetensors").exists() else shards
    (copy / "shard-00001.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"expected the shard .*shard-00001.*empty"):
        shards[RESID][:]


def test_what_was_read_before_a_damaged_shard_stays_right(copy):
    """A reader that meets damage can go on with other rows; a damaged shard is refused every time."""
    path = copy / "shard-00002.safetensors"
    whole = Shards.open(copy)[RESID][:]
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    shards = Shards.open(copy)
    start = sum(entry["rows"] for entry in shards.manifest["shards"][:2])
    stop = start + shards.manifest["shards"][2]["rows"]
    for _ in range(2):
        for rows in (slice(start, stop), torch.tensor([0, start])):
            with pytest.raises(UserError, match="checksum differs"):
                shards[RESID][rows]
        others = torch.cat([torch.arange(start), torch.arange(stop, len(shards))])
        assert_close(shards[RESID][others], whole[others], rtol=0, atol=0)


def test_an_unfinished_folder_is_refused_unless_asked_for(copy):
    edit(copy, finished=lambda _: False)
    with pytest.raises(UserError, match="--resume"):
        Shards.open(copy)
    assert len(Shards.open(copy, unfinished=True)) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"format": lambda _: "other"}, {"version": lambda _: 99}, {"dtype": lambda _: "load"}, {"dtype": lambda _: "int99"},
        {"dtype": lambda _: 3}, {"sites": lambda _: None}, {"sites": lambda s: [{"name": s[0]["name"]}]}, {"shards": lambda _: {}},
        {"shards": lambda s: s[:1]}, {"shards": lambda s: [{**s[0], "rows": "many"}, *s[1:]]},
        {"shards": lambda s: [{**s[0], "file": "../a/shard-00000.safetensors"}, *s[1:]]},
        {"shards": lambda s: [{**s[0], "file": "/etc/hostname"}, *s[1:]]},
        {"fingerprint": lambda f: "0" + f[1:] if f[0] != "0" else "1" + f[1:]}, {"version": lambda _: None}, {"dtype": lambda _: "int32"},
        {"shards": lambda s: [{**s[0], "rows": -1}, *s[1:]]}, {"shards": lambda s: [{**s[0], "sha256": 5}, *s[1:]]},
        {"shards": lambda s: [{**s[0], "file": "a\\b"}, *s[1:]]}, {"shards": lambda s: [*s, s[0]]}, {"shards": lambda s: s[::-1]},
        {"shards": lambda _: [], "rows": lambda _: 0}, {"model": lambda _: None}, {"model": lambda m: {"name": m["name"]}},
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_a_user_error(copy, changes):
    edit(copy, **changes)
    with pytest.raises(UserError, match="expected"):
        Shards.open(copy)


@pytest.mark.parametrize("key", ["finished", "rows", "shards", "sites", "dtype", "model", "fingerprint", "target_rows"])
def test_a_manifest_without_an_entry_is_a_user_error(copy, key):
    path = copy / "manifest.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(UserError, match="whole manifest"):
        Shards.open(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": lambda _: "float32"},
        {"sites": lambda s: [{**s[0], "width": 32}, s[1]]},
        {"sites": lambda s: s[:1]},
        {"shards": lambda s: [{**s[0], "rows": s[0]["rows"] - 1}, {**s[1], "rows": s[1]["rows"] + 1}, *s[2:]]},
    ],
)
def test_a_manifest_that_belies_its_shards_is_a_user_error(copy, changes):
    edit(copy, **changes)
    with pytest.raises(UserError, match="as its manifest says"):
        touch(copy)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\x00"])
def test_a_broken_manifest_is_a_user_error(copy, text):
    (copy / "manifest.json").unlink() if text is None else (copy / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        Shards.open(copy)
