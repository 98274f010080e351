"""The codes on disk: what is written is what is read, after kills, cuts and damage too."""

import json
import shutil

import pytest
import torch
from torch.testing import assert_close
from unweave.saes import Codes, UserError
from unweave.saes.io import map_tensors, read_tensors
from unweave.saes.latents.codes import codes_file, codes_sort
from unweave.saes.latents.codes.codebook import Codebook
from unweave.saes.latents.codes.codes_file import BY_LATENT, BY_ROW, PARTS, RECORD, CodesWriter
from unweave.saes.latents.codes.tensor_file import tensor_file

ROWS, LATENTS, WIDTH = 200, 23, 5


def codes_of(rows=ROWS, seed=0):
    """Codes with empty slots in any place, silent rows, latent 3 silent and latent 7 on every other row."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(rows, LATENTS - 2, generator=generator).argsort(1)[:, :WIDTH]
    indices += (indices >= 3).long()
    indices += (indices >= 7).long()
    indices[::2, 0] = 7
    values = torch.randn(rows, WIDTH, generator=generator).abs() + 0.01
    values[torch.rand(rows, WIDTH, generator=generator) < 0.3] = 0.0
    values[::2, 0] = 1.5
    values[50:60] = 0.0
    return Codes(values, indices)


def piece(codes, start, stop):
    return Codes(codes.values[start:stop], codes.indices[start:stop])


def written(folder, codes, batch=17, flush=3, limit: float = 10):
    writer = CodesWriter(folder, LATENTS, limit)
    for number, start in enumerate(range(0, len(codes.values), batch)):
        writer.append(start, piece(codes, start, start + batch))
        if number % flush == 0:
            writer.flush()
    return writer


def opened(folder) -> Codebook:
    book = Codebook.open(folder)
    assert book is not None
    return book


def assert_holds(book, codes):
    dense = codes.dense(LATENTS)
    assert (book.rows, book.latents, book.slots) == (*dense.shape, int((dense > 0).sum()))
    for latent in range(LATENTS):
        rows, values = book.firings(latent)
        expected = dense[:, latent].nonzero().squeeze(1)
        assert rows.tolist() == expected.tolist()
        assert_close(values, dense[expected, latent], rtol=0, atol=0)
    assert book.count.tolist() == (dense > 0).sum(0).tolist()
    assert_close(book.sum, dense.double().sum(0))
    assert_close(book.sum_squares, dense.double().square().sum(0))
    rows = torch.randperm(len(dense), generator=torch.Generator().manual_seed(1))
    assert_close(book.at(rows).dense(LATENTS), dense[rows], rtol=0, atol=0)


def bytes_of(folder):
    return [(folder / name).read_bytes() for name in (BY_ROW, BY_LATENT)]


@pytest.mark.parametrize(("batch", "flush"), [(1, 7), (17, 1), (64, 100), (ROWS, 1)])
def test_codes_come_back_by_row_and_by_latent(tmp_path, batch, flush):
    writer = written(tmp_path, codes_of(), batch, flush)
    told = writer.finish()
    assert_holds(opened(tmp_path), codes_of())
    assert told == {"kept": True, "slots": writer.slots, "bytes": sum(map(len, bytes_of(tmp_path)))}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([BY_ROW, BY_LATENT, RECORD])


def test_the_files_are_safetensors(tmp_path):
    written(tmp_path, codes_of()).finish()
    for name in (BY_ROW, BY_LATENT):
        mapped = map_tensors(tmp_path / name)
        assert all(torch.equal(part, mapped[key]) for key, part in read_tensors(tmp_path / name, "codes").items())


@pytest.mark.parametrize(("slots", "chunk"), [(1, 1), (7, 3), (40, 1000), (10**6, 5)])
def test_the_sort_does_not_depend_on_what_memory_holds(tmp_path, monkeypatch, slots, chunk):
    written(tmp_path / "a", codes_of()).finish()
    monkeypatch.setattr(codes_sort, "RANGE", slots)
    monkeypatch.setattr(codes_sort.row_chunks, "__defaults__", (chunk,))
    monkeypatch.setattr(codes_sort, "CHUNK", chunk)
    monkeypatch.setattr(codes_file, "PART_SLOTS", chunk)
    written(tmp_path / "b", codes_of(), flush=100).finish()
    assert_holds(opened(tmp_path / "b"), codes_of())
    for name in (BY_ROW, BY_LATENT):
        one, other = (read_tensors(tmp_path / folder / name, "codes") for folder in "ab")
        for key in one.keys() - {"sum", "sum_squares"}:
            assert torch.equal(one[key], other[key])


@pytest.mark.parametrize("rows", [0, 1, 33, 51, 100, 187])
def test_a_resumed_writer_writes_the_same_bytes(tmp_path, rows):
    codes = codes_of()
    written(tmp_path / "whole", codes).finish()
    written(tmp_path / "cut", piece(codes, 0, 187), flush=1)  # and killed
    writer = CodesWriter(tmp_path / "cut", LATENTS, 10.0)
    writer.resume(rows)
    assert writer.rows == rows
    assert len(list((tmp_path / "cut" / PARTS).iterdir())) == -(-rows // 17)
    writer.append(rows, piece(codes, rows, ROWS))
    writer.finish()
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("rows", [0, 50, ROWS])
def test_a_finished_writer_can_be_resumed(tmp_path, monkeypatch, rows):
    codes = codes_of()
    told = written(tmp_path, codes).finish()
    before = bytes_of(tmp_path)
    monkeypatch.setattr(codes_file, "PART_SLOTS", 30)
    writer = CodesWriter(tmp_path, LATENTS, 10.0)
    writer.resume(rows)
    if rows < ROWS:
        writer.append(rows, piece(codes, rows, ROWS))
    assert writer.finish() == told
    assert bytes_of(tmp_path) == before
    assert CodesWriter(tmp_path, LATENTS, 10.0).finish() == told


@pytest.mark.parametrize("step", ["write_by_row", "write_by_latent", "rmtree"])
def test_a_killed_finish_is_done_again(tmp_path, monkeypatch, step):
    codes = codes_of()
    written(tmp_path / "whole", codes).finish()
    writer = written(tmp_path / "cut", codes)
    owner = shutil if step == "rmtree" else codes_file
    real = getattr(owner, step)

    def killed(*arguments):
        if step != "rmtree":
            (tmp_path / "cut" / f".tmp-1-{BY_ROW}").write_bytes(b"what a killed process leaves")
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, step, killed)
    with pytest.raises(KeyboardInterrupt):
        writer.finish()
    monkeypatch.setattr(owner, step, real)
    again = CodesWriter(tmp_path / "cut", LATENTS, 10.0)
    again.resume(ROWS)
    again.finish()
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == sorted([BY_ROW, BY_LATENT, RECORD])


def test_what_was_not_flushed_is_lost_and_nothing_else(tmp_path):
    codes = codes_of()
    writer = CodesWriter(tmp_path, LATENTS, 10.0)
    writer.append(0, piece(codes, 0, 40))
    writer.flush()
    writer.append(40, piece(codes, 40, 90))
    again = CodesWriter(tmp_path, LATENTS, 10.0)
    assert again.rows == 40
    with pytest.raises(UserError, match="row 40 next"):
        again.append(90, piece(codes, 90, 100))
    with pytest.raises(UserError, match=r"codes of 90 rows .* got 40"):
        again.resume(90)


@pytest.mark.parametrize("limit", [0, 0.006])
def test_over_the_limit_nothing_is_kept_and_it_says_so(tmp_path, limit):
    codes = codes_of()
    slots = int((codes.values > 0).sum())
    assert codes_file.codes_bytes(ROWS, slots, LATENTS) > 0.006 * 2**20
    writer = written(tmp_path, codes, limit=limit)
    assert not (tmp_path / PARTS).exists()
    again = CodesWriter(tmp_path, LATENTS, limit)
    again.resume(17)
    again.append(17, piece(codes, 17, ROWS))
    for one in (writer, again):
        assert one.finish() == {"kept": False, "slots": slots, "bytes": 0}
    assert Codebook.open(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]


def test_the_limit_is_on_the_bytes_of_the_finished_files(tmp_path):
    codes = codes_of()
    size = codes_file.codes_bytes(ROWS, int((codes.values > 0).sum()), LATENTS)
    assert written(tmp_path / "a", codes, limit=(size - 1) / 2**20).finish()["kept"] is False
    told = written(tmp_path / "b", codes, limit=size / 2**20).finish()
    assert told["kept"] and size < told["bytes"] < size + 1000  # the rest is the two headers


def test_a_store_without_codes_has_no_codebook(tmp_path):
    assert Codebook.open(tmp_path) is None
    written(tmp_path, codes_of())  # never finished
    assert Codebook.open(tmp_path) is None
    written_again = CodesWriter(tmp_path, LATENTS, 10.0)
    written_again.finish()
    for name in (BY_ROW, BY_LATENT):  # removed to save the space
        (tmp_path / name).unlink()
    assert Codebook.open(tmp_path) is None


def test_codes_of_another_width_are_refused(tmp_path):
    written(tmp_path, codes_of())
    with pytest.raises(UserError, match=f"expected codes of 9 latents .* got {LATENTS}"):
        CodesWriter(tmp_path, 9, 10.0)


def test_a_latent_out_of_range_or_twice_on_a_row_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"latents in \[0, 2\); got 0..7"):
        CodesWriter(tmp_path / "a", 2, 10.0).append(0, Codes(torch.ones(1, 2), torch.tensor([[0, 7]])))
    writer = CodesWriter(tmp_path / "b", 9, 10.0)
    writer.append(0, Codes(torch.ones(2, 2), torch.tensor([[0, 7], [7, 7]])))
    with pytest.raises(ValueError, match="twice on row 1"):
        writer.finish()


def test_an_empty_slot_may_name_any_latent(tmp_path):
    writer = CodesWriter(tmp_path, 2, 10.0)
    writer.append(0, Codes(torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[99, 1, 1]])))
    writer.finish()
    assert opened(tmp_path).at(torch.tensor([0])).indices.tolist() == [[1]]
    assert opened(tmp_path).firings(0).rows.tolist() == []


def test_values_on_a_stretch_of_rows(tmp_path):
    written(tmp_path, codes_of()).finish()
    dense = codes_of().dense(LATENTS)
    for first, last in [(0, 1), (30, 75), (ROWS - 3, ROWS), (5, 5)]:
        assert_close(opened(tmp_path).values(7, first, last), dense[first:last, 7], rtol=0, atol=0)


def test_rows_and_latents_that_are_not_there(tmp_path):
    written(tmp_path, codes_of()).finish()
    book = opened(tmp_path)
    for latent in (-1, LATENTS):
        with pytest.raises(IndexError, match="latent"):
            book.firings(latent)
    for row in (-1, ROWS):
        with pytest.raises(IndexError, match="rows"):
            book.at(torch.tensor([0, row]))


def damage(path, name, place, value):
    """Overwrite one number of a tensor in a safetensors file; None: with the number before it."""
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + size])[name]
    dtype = {"I64": torch.int64, "I32": torch.int32, "F32": torch.float32}[entry["dtype"]]
    part = torch.frombuffer(data, dtype=dtype, count=entry["shape"][0], offset=8 + size + entry["data_offsets"][0])
    part[place] = part[place - 1] if value is None else value
    del part
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "name", "place", "value"),
    [
        (BY_LATENT, "starts", 0, 1), (BY_LATENT, "starts", -1, 1), (BY_LATENT, "starts", 5, -1),
        (BY_LATENT, "starts", 8, 10**9), (BY_LATENT, "rows", 0, -1), (BY_LATENT, "rows", -1, ROWS),
        (BY_LATENT, "rows", 3, 0), (BY_LATENT, "rows", 3, None), (BY_LATENT, "values", 3, 0.0), (BY_LATENT, "values", 3, float("nan")),
        (BY_ROW, "starts", 4, -1), (BY_ROW, "starts", -1, 10**9), (BY_ROW, "starts", 100, 0),
        (BY_ROW, "latents", 0, LATENTS), (BY_ROW, "latents", 0, -1), (BY_ROW, "values", 7, -1.0),
    ],
)  # fmt: skip
def test_damage_is_told_when_it_is_read(tmp_path, file, name, place, value):
    written(tmp_path, codes_of()).finish()
    damage(tmp_path / file, name, place, value)

    def read():
        book = opened(tmp_path)
        book.at(torch.arange(ROWS))
        for latent in range(LATENTS):
            book.firings(latent)

    with pytest.raises(UserError, match=f"{file}.*collect them anew"):
        read()


@pytest.mark.parametrize("file", [BY_ROW, BY_LATENT])
@pytest.mark.parametrize("size", [0, 5, 100, -4])
def test_a_truncated_file_is_told(tmp_path, file, size):
    written(tmp_path, codes_of()).finish()
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(data[:size])
    with pytest.raises(UserError, match="collect them anew"):
        Codebook.open(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match="collect them anew"):
        Codebook.open(tmp_path)


def test_files_of_two_texts_are_told_apart(tmp_path):
    written(tmp_path / "a", codes_of()).finish()
    written(tmp_path / "b", codes_of(ROWS - 1)).finish()
    (tmp_path / "b" / BY_ROW).replace(tmp_path / "a" / BY_ROW)
    with pytest.raises(UserError, match="do not fit together"):
        Codebook.open(tmp_path / "a")


@pytest.mark.parametrize("change", [{"counts": 0}, {"latents": LATENTS}])
def test_a_damaged_part_stops_the_finish(tmp_path, change):
    writer = written(tmp_path, codes_of())
    path = sorted((tmp_path / PARTS).iterdir())[0]
    ((name, value),) = change.items()
    damage(path, name, 0, value if name == "latents" else 99)
    with pytest.raises(UserError, match="collect it anew"):
        writer.finish()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "unweave.codes", "version": 99}'])
def test_a_damaged_record_is_told(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=r"(collect|make) it anew"):
        Codebook.open(tmp_path)


@pytest.mark.parametrize(
    "change", [{"rows": -1}, {"slots": "many"}, {"kept": 1}, {"parts": [3]}, {"parts": [{"rows": 1, "slots": 1}]},
               {"parts": [{"rows": 1, "slots": 1, "file": "../../secret"}]}],
)  # fmt: skip
def test_a_record_with_wrong_entries_is_told(tmp_path, change):
    written(tmp_path, codes_of()).finish()
    record = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(record | change))
    with pytest.raises(UserError, match="wrong entries"):
        Codebook.open(tmp_path)


def test_a_tensor_file_must_be_filled_exactly(tmp_path):
    sizes = {"a": (torch.int32, 3), "b": (torch.float64, 1)}
    for count in (2, 4):
        with pytest.raises(ValueError, match="more or fewer"), tensor_file(tmp_path / "x", sizes) as write:
            write("b", torch.ones(1, dtype=torch.float64))
            write("a", torch.ones(count, dtype=torch.int32))
    with pytest.raises(ValueError, match="float64 for b"), tensor_file(tmp_path / "x", sizes) as write:
        write("b", torch.ones(1))
    assert not list(tmp_path.iterdir())
