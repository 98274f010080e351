"""In what order rows of Shards come, and that reading ahead changes nothing but the waiting."""

import gc
import itertools
import subprocess
import sys
import threading
import time

import pytest
import torch
from saes_toys import RESID, cached, shards_of
from torch.testing import assert_close
from unweave.saes import Shards, UserError, join_shards
from unweave.saes.shards.order import RowOrder
from unweave.saes.shards.places import RowPlaces
from unweave.saes.shards.prefetch import prefetched

ROWS = 203


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Shards:
    """Rows that are their own numbers, 8 a shard."""
    x = torch.arange(float(ROWS))[:, None].expand(-1, 3)
    made = shards_of(tmp_path_factory.mktemp("reading") / "a", {"a": x}, shard_mib=0)
    assert len(made.manifest["shards"]) == 26
    return made


def rows_of(batches) -> list[list[int]]:
    return [batch.activations["a"][:, 0].long().tolist() for batch in batches]


def flat_of(batches, site: str) -> list[int]:
    return [int(row) for batch in batches for row in batch.activations[site][:, 0]]


def flat(batches) -> list[int]:
    return list(itertools.chain.from_iterable(rows_of(batches)))


@pytest.mark.parametrize("window", [0, 1, 3, 26, 100])
@pytest.mark.parametrize("batch", [1, 16, 1000])
def test_every_row_comes_once_an_epoch(shards, window, batch):
    chosen = torch.arange(ROWS) % 3 > 0
    assert sorted(flat(shards.batches(batch, 1, window=window))) == list(range(ROWS))
    assert sorted(flat(shards.batches(batch, 1, rows=chosen, window=window))) == chosen.nonzero().squeeze(1).tolist()


def test_without_a_window_the_order_is_one_permutation_of_all_rows_as_it_always_was(shards):
    for epoch in range(2):
        generator = torch.Generator().manual_seed(5 * 1_000_003 + epoch)
        expected = torch.randperm(ROWS, generator=generator).tolist()
        assert flat(shards.batches(16, 5, epochs=2))[epoch * ROWS :][:ROWS] == expected


@pytest.mark.parametrize("window", [1, 3])
def test_a_window_is_that_many_shards_and_no_others(shards, window):
    order = flat(shards.batches(16, 2, window=window))
    owners = [row // 8 for row in order]
    while owners:
        here = list(dict.fromkeys(owners))[:window]
        count = sum(len(range(8 * shard, min(8 * shard + 8, ROWS))) for shard in here)
        assert set(owners[:count]) == set(here)
        owners = owners[count:]


def test_a_window_takes_the_shards_of_chosen_rows_only(shards):
    rows = torch.tensor([3, 90, 91, 100, 200])
    order = RowOrder(shards._places.starts, rows, 0, 2)
    pieces = order.piece(0, 0, 5).tolist()
    assert sorted(pieces) == rows.tolist()
    spans = order.after(0, 0)
    assert {start // 8 for start, _ in spans} == {row // 8 for row in pieces} - {row // 8 for row in pieces[:3]}


def excess(orders: list[list[int]]) -> float:
    """How much more often than by chance rows of one window are neighbours: the mean z^2 over all pairs, 1 for chance.

    24 rows in 6 shards, windows of 3: two rows of one window of 12 are neighbours in 11 of its 66 pairs.
    """
    together, beside = torch.zeros(24, 24), torch.zeros(24, 24)
    for order in orders:
        for half in (order[:12], order[12:]):
            index = torch.tensor(half)
            together[index[:, None], index] += 1
            beside[index[1:], index[:-1]] += 1
    together, beside = together.triu(1), (beside + beside.T).triu(1)
    seen = together > 0
    share = 11 / 66
    return float(((beside - together * share)[seen] ** 2 / (together * share * (1 - share))[seen]).mean())


def buffered(order: list[int], size: int, generator: torch.Generator) -> list[int]:
    """What a shuffle buffer of `size` rows makes of text order: what a window is not."""
    waiting, out = [], []
    for row in [*order, *[None] * size]:
        if row is not None and len(waiting) < size:
            waiting.append(row)
        elif waiting:
            at = int(torch.randint(len(waiting), (1,), generator=generator))
            out.append(waiting[at])
            waiting[at : at + 1] = [] if row is None else [row]
    return out


def test_in_a_window_all_pairs_of_rows_are_as_often_neighbours():
    """The statistic is 1 +- 0.09 for permutations, and 4 or more for a shuffle buffer of half a window over the same windows."""
    starts = torch.arange(0, 28, 4)
    order = RowOrder(starts, None, 0, 3)
    orders = [order.piece(epoch, 0, 24).tolist() for epoch in range(1500)]
    assert excess(orders) < 1.4
    generator = torch.Generator().manual_seed(0)
    poor = []
    for one in orders:
        text = [row for half in (one[:12], one[12:]) for row in buffered(sorted(half), 6, generator)]
        poor.append(text)
    assert excess(poor) > 3


def test_every_place_is_as_likely_for_every_row():
    order = RowOrder(torch.arange(0, 28, 4), None, 3, 2)
    counts = torch.zeros(24, 24)
    for epoch in range(1500):
        counts[order.piece(epoch, 0, 24), torch.arange(24)] += 1
    share = 1 / 24
    assert float(((counts - 1500 * share) ** 2 / (1500 * share * (1 - share))).mean()) < 1.4


def test_the_order_does_not_depend_on_the_batch_or_on_reading_ahead(shards):
    for window in (0, 3):
        whole = flat(shards.batches(ROWS, 4, window=window, ahead=0))
        for batch, ahead in ((1, 0), (7, 1), (16, 5), (50, 2)):
            assert flat(shards.batches(batch, 4, window=window, ahead=ahead)) == whole


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("only_whole", [False, True])
def test_starting_in_the_middle_is_continuing(shards, window, only_whole):
    options = dict(seed=6, epochs=2, only_whole=only_whole, window=window, rows=torch.arange(0, ROWS, 2))
    whole = rows_of(shards.batches(9, **options))
    for start in range(len(whole) + 1):
        assert rows_of(shards.batches(9, start=start, **options)) == whole[start:]


@pytest.mark.parametrize("ranks", [1, 2, 3, 20])
@pytest.mark.parametrize("seed", [None, 7])
def test_parts_of_a_batch_joined_are_the_batch(shards, ranks, seed):
    whole = rows_of(shards.batches(10, seed, window=3))
    parts = [rows_of(shards.batches(10, seed, window=3, part=(rank, ranks))) for rank in range(ranks)]
    assert [list(itertools.chain(*pieces)) for pieces in zip(*parts, strict=True)] == whole
    sizes = {len(piece) for part in parts for piece in part[:-1]}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "options",
    [{"batch": 0}, {"part": (2, 2)}, {"part": (-1, 2)}, {"part": (0, 0)}, {"ahead": -1}, {"window": -1}],
)
def test_senseless_batches_are_refused_before_the_first(shards, options):
    with pytest.raises(UserError, match="expected a"):
        shards.batches(**{"batch": 4, **options})


def test_an_epoch_of_few_rows_in_wide_shards_is_read_by_its_windows(shards):
    """A window may hold fewer rows than a batch."""
    rows = torch.arange(0, ROWS, 40)
    assert sorted(flat(shards.batches(4, rows=rows, window=1))) == rows.tolist()


def test_what_start_skips_is_not_read_and_damage_shows_at_its_own_batch(tmp_path):
    x = torch.arange(64.0)[:, None].expand(-1, 3)
    made = shards_of(tmp_path / "a", {"a": x}, shard_mib=0)
    shards_in_order = list(dict.fromkeys(row // 8 for row in flat(made.batches(8, 0, window=1))))
    path = tmp_path / "a" / made.manifest["shards"][shards_in_order[3]]["file"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    for ahead in (0, 1, 6):
        batches = Shards.open(tmp_path / "a").batches(8, 0, window=1, ahead=ahead)
        for _ in range(3):
            next(batches)
        with pytest.raises(UserError, match="checksum differs"):
            next(batches)
        assert len(list(Shards.open(tmp_path / "a").batches(8, 0, window=1, ahead=ahead, start=4))) == 4


def test_joined_shards_are_read_by_windows_of_the_first(tmp_path):
    """The others' shards may be cut elsewhere."""
    x = torch.arange(100.0)[:, None].expand(-1, 3)
    parts = {
        "one": shards_of(tmp_path / "one", {"a": x}, shard_mib=0),
        "other": shards_of(tmp_path / "other", {"b": x * 2}),
    }
    joined = join_shards(parts)
    for window in (0, 2):
        batches = list(joined.batches(7, 1, window=window))
        assert flat_of(batches, "one:a") == flat(parts["one"].batches(7, 1, window=window))
        for batch in batches:
            assert_close(batch.activations["other:b"], batch.activations["one:a"] * 2)
            assert_close(batch.tokens, joined.tokens[batch.activations["one:a"][:, 0].long()])
    assert_close(joined.norms("other:b"), x.norm(dim=1) * 2)


def test_the_owner_of_a_row_is_that_of_a_search():
    generator = torch.Generator().manual_seed(0)
    for counts in ([1], [5, 1], [3, 3, 3, 2], [8, 9, 8, 100, 1], [1, 1000, 1], [64, 65, 66, 1],
                   torch.randint(900, 1100, (50,), generator=generator).tolist()):  # fmt: skip
        places = RowPlaces(counts)
        rows = torch.arange(sum(counts))
        assert_close(places.owners(rows), torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)))


def test_the_table_of_owners_stays_small():
    assert RowPlaces([1, 10**9, 10**9, 5])._table is None
    assert len(RowPlaces([1000] * 50 + [1])._table) < 64 * 51


# --- reading ahead ---


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("unweave")]


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_items_come_in_order_and_at_most_ahead_of_them_wait(ahead):
    made = []

    def source():
        for number in range(12):
            made.append(number)
            yield number

    items = prefetched(source(), ahead)
    for number in range(12):
        assert next(items) == number
        deadline = time.monotonic() + 1
        while len(made) < min(12, number + 1 + ahead) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(made) == min(12, number + 1 + ahead)
    assert next(items, None) is None
    assert not threads()


@pytest.mark.parametrize("ahead", [0, 3])
def test_an_error_comes_at_its_own_item(ahead):
    def source():
        yield 1
        yield 2
        raise ZeroDivisionError("third")

    items = prefetched(source(), ahead)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ZeroDivisionError, match="third"):
        next(items)
    assert next(items, None) is None
    assert not threads()


@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_the_thread_ends_with_its_iterator_and_closes_the_source(end):
    closed = []

    def source():
        try:
            yield from itertools.count()
        finally:
            closed.append(threading.current_thread().name)

    items = prefetched(source(), 2)
    assert next(items) == 0
    assert threads() == ["unweave-prefetch"]
    if end == "closed":
        items.close()
    del items
    gc.collect()
    assert not threads() and closed == ["unweave-prefetch"]


def test_batches_leave_no_thread_behind(shards):
    batches = shards.batches(4, window=2)
    next(batches)
    assert threads()
    del batches
    gc.collect()
    assert not threads()


ENDING = """
import itertools, sys
from unweave.saes.shards.prefetch import prefetched
items = prefetched(itertools.count(), 2)
next(items)
sys.exit(3)
"""


def test_a_process_ends_while_something_is_read_ahead():
    ended = subprocess.run([sys.executable, "-P", "-c", ENDING], timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (3, "")


def test_a_slow_consumer_does_not_wait_for_what_was_read_ahead():
    def source():
        for number in range(6):
            time.sleep(0.05)
            yield number

    waited = {}
    for ahead in (0, 2):
        items, waited[ahead] = prefetched(source(), ahead), 0.0
        for _ in range(6):
            start = time.perf_counter()
            next(items)
            waited[ahead] += time.perf_counter() - start
            time.sleep(0.06)
    assert waited[2] < 0.6 * waited[0]


def test_columns_can_be_left_unread(tmp_path):
    shards = cached(tmp_path / "shards")
    for with_columns, without in zip(shards.batches(8), shards.batches(8, columns=False), strict=True):
        assert torch.equal(with_columns.activations[RESID], without.activations[RESID])
        assert len(with_columns.tokens) == 8 or len(with_columns.tokens) == len(shards) % 8
        assert all(not len(column) for column in without[1:])
