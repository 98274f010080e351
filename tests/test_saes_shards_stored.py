"""What shards store and how it comes back: int8, norms, folders of version 1, files of other writers."""

import os
import resource

import pytest
import torch
from saes_damage import copied, edit, rewritten, touch
from saes_toys import INFO, MLP_OUT, RESID, cached, shards_of
from safetensors.torch import load_file
from torch.testing import assert_close
from unweave.saes import Shards, UserError
from unweave.saes.shards.quantise import quantised, restored
from unweave.saes.shards.writer import ShardWriter
from unweave.saes.text import Block, pad_blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Several shards of two sites; read only."""
    return cached(tmp_path_factory.mktemp("shards") / "a", (RESID, MLP_OUT), shard_mib=0).folder


@pytest.fixture
def copy(folder, tmp_path):
    return copied(folder, tmp_path)


def test_folders_of_version_1_are_read_and_their_norms_computed(copy):
    whole = Shards.open(copy)
    assert all(f"{site}.norm" in whole._files.tensors(0) for site in whole.sites)
    rows = {site: whole[site][:] for site in whole.sites}
    norms = {site: whole.norms(site) for site in whole.sites}
    for number in range(len(whole.manifest["shards"])):
        rewritten(copy, number, lambda old: {name: x for name, x in old.items() if not name.endswith(".norm")})
    edit(copy, version=lambda _: 1, shards=lambda s: [{k: v for k, v in one.items() if k != "xxh3"} for one in s])
    old = Shards.open(copy)
    for site in whole.sites:
        assert_close(old[site][:], rows[site], rtol=0, atol=0)
        assert_close(old.norms(site), norms[site])
        assert_close(old.norms(site), rows[site].norm(dim=1).float())


def test_norms_are_of_what_was_captured_not_of_what_is_stored(tmp_path):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    writer = ShardWriter(tmp_path / "a", INFO, ["a"], torch.bfloat16, 40, 8, 1, False)
    writer.add({"a": x}, pad_blocks([Block(torch.arange(40), 0)]))
    writer.finish()
    shards = Shards.open(tmp_path / "a")
    assert_close(shards.norms("a"), x.norm(dim=1))
    assert not torch.equal(shards.norms("a"), shards["a"][:].float().norm(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_rows_lie_on_lines_of_the_cache_in_a_file_that_safetensors_reads(tmp_path, dtype):
    """The sites' names stand before, between and after those of the columns."""
    x = torch.randn(37, 64, generator=torch.Generator().manual_seed(0))
    sites = {name: x + number for number, name in enumerate(("a", "m", "z"))}
    writer = ShardWriter(tmp_path / "a", INFO, list(sites), dtype, 37, 8, 1, False)
    writer.add(sites, pad_blocks([Block(torch.arange(37), 0)]))
    writer.finish()
    shards = Shards.open(tmp_path / "a")
    mapped = shards._files.tensors(0)
    assert all(mapped[site].data_ptr() % 64 == 0 for site in sites)
    read = load_file(tmp_path / "a" / "shard-00000.safetensors")
    assert read.keys() == mapped.keys()
    assert all(torch.equal(read[name], mapped[name]) for name in read)
    assert torch.equal(read["tokens"], torch.arange(37, dtype=torch.int32))


def test_a_site_that_is_named_like_a_column_of_another_keeps_its_own_rows(tmp_path):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    shards = shards_of(tmp_path / "a", {"a": x, "a.norm": x + 1})
    assert_close(shards["a.norm"][:], x + 1, rtol=0, atol=0)
    assert_close(shards.norms("a"), x.norm(dim=1))
    assert_close(shards.norms("a.norm"), (x + 1).norm(dim=1))


def test_int8_rows_come_back_within_half_a_step(tmp_path):
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 300)[:, None]
    x[7] = 0
    writer = ShardWriter(tmp_path / "a", INFO, ["a"], torch.int8, 300, 8, 0, False)
    for start in range(0, 300, 50):
        writer.add({"a": x[start : start + 50]}, pad_blocks([Block(torch.arange(50), 0)]))
    writer.finish()
    shards = Shards.open(tmp_path / "a")
    assert shards.dtype == torch.float32 and len(shards.manifest["shards"]) > 2
    index = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    for rows in (slice(None), index, slice(3, 270), slice(5, 5)):
        got = shards["a"][rows]
        assert got.dtype == torch.float32
        assert bool(((got - x[rows]).abs() <= x[rows].abs().amax(1, keepdim=True) / 127 * 0.5001).all())
    assert not shards["a"][7].any()
    assert_close(shards.norms("a"), x.norm(dim=1))
    batches = list(shards.batches(64, 0, ahead=0))
    assert {batch.activations["a"].dtype for batch in batches} == {torch.float32}


def test_int8_without_its_scale_is_a_user_error(tmp_path):
    writer = ShardWriter(tmp_path / "a", INFO, ["a"], torch.int8, 8, 8, 1, False)
    writer.add({"a": torch.ones(8, 4)}, pad_blocks([Block(torch.arange(8), 0)]))
    writer.finish()
    rewritten(tmp_path / "a", 0, lambda old: {name: x for name, x in old.items() if name != "a.scale"})
    with pytest.raises(UserError, match="as its manifest says"):
        touch(tmp_path / "a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("d", [1, 7, 64])
def test_quantising_errs_by_half_a_step_at_most_exactly(dtype, d):
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(5000, d, generator=generator, dtype=torch.float64) * torch.logspace(-4, 4, 5000)[:, None]
    x = x.to(dtype)
    x[:9] = torch.tensor([0, 1, -1, 127, 63.5, 1e-4, -1e-4, 60000, 0.5]).to(dtype)[:, None]
    integers, scale = quantised(x)
    assert integers.dtype == torch.int8 and int(integers.min()) >= -127
    back = restored(integers, scale)
    # Exact in float64: a product of 7 and 17 bits, and a difference of two float32s.
    assert torch.equal(back.double(), integers.double() * scale.double()[:, None])
    assert bool(((back.double() - x.double()).abs() <= scale.double()[:, None] / 2).all())
    least = x.double().abs().amax(1) / 127
    assert bool(((scale.double() - least).abs() <= least * 2**-15 + torch.finfo(torch.float32).tiny).all())
    assert not back[0].any() and scale[0] == 0


def test_quantising_decides_right_beside_the_middle_of_two_steps():
    """Where a quotient in float32 would be rounded to the very middle, from either side of it."""
    generator = torch.Generator().manual_seed(0)
    step = torch.randint(2**16, 2**17, (300, 1), generator=generator).float()
    middle = (torch.arange(126) + 0.5) * step
    for beside in (middle, middle.nextafter(torch.tensor(0.0)), middle.nextafter(torch.tensor(torch.inf))):
        x = torch.cat([127 * step, beside], 1)
        integers, scale = quantised(x)
        assert torch.equal(scale, step[:, 0])
        assert bool(((restored(integers, scale).double() - x.double()).abs() <= scale.double()[:, None] / 2).all())


def test_quantising_holds_at_the_ends_of_float32():
    tiny = torch.tensor([[1e-45, 0.0], [1e-38, -3e-39], [3.4e38, -1.0], [2**-126, 2**-140]])
    integers, scale = quantised(tiny)
    assert bool(((restored(integers, scale).double() - tiny.double()).abs() <= scale.double()[:, None] / 2).all())


def test_columns_at_odd_addresses_are_read_right(copy):
    """Other writers need not align what they write."""
    whole = Shards.open(copy)
    before = {site: whole[site][:] for site in whole.sites}, whole.tokens, whole.norms(RESID)

    def longer(header):
        return (len(header) + 3).to_bytes(8, "little") + header + b"   "

    for number in range(len(whole.manifest["shards"])):
        rewritten(copy, number, None, longer)
    shards = Shards.open(copy)
    index = torch.randperm(len(shards), generator=torch.Generator().manual_seed(0))
    batch = next(shards.batches(len(shards), 0, ahead=0))
    for site in shards.sites:
        assert_close(shards[site][index], before[0][site][index], rtol=0, atol=0)
    order = torch.randperm(len(shards), generator=torch.Generator().manual_seed(0))
    assert_close(batch.tokens, before[1][order])
    assert_close(shards.norms(RESID), before[2], rtol=0, atol=0)


def test_a_folder_may_have_more_shards_than_a_process_may_open_files(tmp_path):
    shards = shards_of(tmp_path / "a", {"a": torch.arange(800.0)[:, None]}, shard_mib=0)
    assert len(shards.manifest["shards"]) == 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, hard))
    try:
        assert_close(shards["a"][:], torch.arange(800.0)[:, None])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
