import math

import pytest
import torch
from torch.testing import assert_close
from unweave.saes import Codes, FeatureStats
from unweave.saes.latents.gather import counters, places
from unweave.saes.latents.gather.collect import block_spans
from unweave.saes.latents.gather.counters import PairCounts, example_entropies
from unweave.saes.latents.gather.stats import BINS, LOWEST, histogram_edges
from unweave.saes.latents.gather.windows import windows_of

LATENTS, EXAMPLES, SAMPLES, PER_BIN, VOCAB, SEED = 13, 4, 12, 3, 7, 5
TOKENS = torch.randint(0, VOCAB, (300,), generator=torch.Generator().manual_seed(9))


def codes_of(rows=300, k=3, seed=0, whole=False):
    """Codes with ties (whole values) and empty slots, positions of blocks of 1 to 9 rows, and a rule that drops some."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(rows, k, generator=generator).abs() * 3).clamp_min(0.0)
    values = torch.where(torch.rand(rows, k, generator=generator) < 0.3, 0.0, values.ceil() if whole else values)
    indices = torch.rand(rows, LATENTS, generator=generator).argsort(1)[:, :k]
    indices[indices == 5] = 5 if whole else 6  # latent 5 is dead in one of the two
    lengths = torch.randint(1, 10, (rows,), generator=generator).tolist()
    positions = torch.cat([torch.arange(n) for n in lengths])[:rows]
    kept = (positions > 0) & (torch.rand(rows, generator=generator) < 0.9)
    return Codes(values.sort(1, descending=True).values, indices), positions, kept


def unique_indices(codes):
    """Latent 6 may now stand twice in a row; make the second slot empty."""
    seen = (codes.indices[:, :, None] == codes.indices[:, None, :]).tril(-1).any(2)
    return Codes(torch.where(seen, 0.0, codes.values), codes.indices)


def collector():
    return FeatureStats(
        LATENTS, EXAMPLES, before=3, after=2, samples=SAMPLES, per_bin=PER_BIN, context=6, vocab=VOCAB, seed=SEED
    )


def gathered(codes, positions, kept, spans, first=0):
    stats = collector()
    for start, stop in spans:
        part = Codes(codes.values[start:stop], codes.indices[start:stop])
        stats.update(part, positions[start:stop], first + start, kept[start:stop], TOKENS[start:stop])
    return stats


def same(one: FeatureStats, other: FeatureStats):
    a, b = one.freeze(), other.freeze()
    for name in a:
        exact = dict(rtol=1e-6, atol=1e-6) if name in ("mean_value", "std_value") else dict(rtol=0, atol=0)
        assert_close(a[name], b[name], **exact, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")
    assert (one.rows, one.kept) == (other.rows, other.kept)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("batch", [1, 20, 77])
def test_pieces_of_the_text_do_not_matter(whole, batch):
    codes, positions, kept = codes_of(whole=whole)
    codes = unique_indices(codes)
    same(gathered(codes, positions, kept, block_spans(positions, batch)), gathered(codes, positions, kept, [(0, 300)]))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_merging_in_any_order_and_tree_is_one_pass(whole, seed):
    codes, positions, kept = codes_of(whole=whole)
    codes = unique_indices(codes)
    parts = [gathered(codes, positions, kept, [span]) for span in block_spans(positions, 30)]
    assert len(parts) > 6
    generator = torch.Generator().manual_seed(seed)
    while len(parts) > 1:
        i, j = torch.randperm(len(parts), generator=generator)[:2].tolist()
        parts[i].merge(parts[j])
        parts.pop(j)
    same(parts[0], gathered(codes, positions, kept, [(0, 300)]))


@pytest.mark.parametrize("whole", [False, True])
def test_statistics_are_those_of_the_dense_codes(whole):
    codes, positions, kept = codes_of(whole=whole)
    codes = unique_indices(codes)
    frozen = gathered(codes, positions, kept, block_spans(positions, 40), first=1000).freeze()
    dense = torch.where(kept[:, None], codes.dense(LATENTS), 0.0)
    blocks = (positions == 0).cumsum(0)
    for latent in range(LATENTS):
        column = dense[:, latent]
        fires = column[column > 0]
        assert frozen["count"][latent] == len(fires)
        assert frozen["density"][latent] == pytest.approx(len(fires) / int(kept.sum()))
        assert int(frozen["histogram"][latent].sum()) == len(fires)
        if len(fires):
            assert frozen["mean_value"][latent] == pytest.approx(float(fires.mean()), rel=1e-5)
            assert frozen["std_value"][latent] == pytest.approx(float(fires.std(correction=0)), rel=1e-4, abs=1e-4)
            assert frozen["max_value"][latent] == fires.max()
        best = {}
        for row in column.nonzero().squeeze(1).tolist():  # the lower row of a block stays where two are equal
            block = int(blocks[row])
            if block not in best or column[row] > column[best[block]]:
                best[block] = row
        ranked = sorted(best.values(), key=lambda row: (-float(column[row]), row))[:EXAMPLES]
        padded = [row + 1000 for row in ranked] + [-1] * (EXAMPLES - len(ranked))
        assert frozen["example_rows"][latent].tolist() == padded
        windows = windows_of(frozen, latent, 6)
        sampled = [row - 1000 for row in frozen["sample_rows"][latent].tolist() if row >= 0]
        for slot, row in [*enumerate(ranked), *enumerate(sampled, EXAMPLES)]:
            window = [
                float(column[row + by]) if by and 0 <= row + by < 300 and blocks[row + by] == blocks[row] else 0.0
                for by in range(-3, 3)
            ]
            assert windows[slot] == pytest.approx(window, rel=1e-3)
        assert frozen["example_values"][latent].tolist()[: len(ranked)] == [float(column[row]) for row in ranked]
        assert frozen["sample_values"][latent].tolist()[: len(sampled)] == [float(column[row]) for row in sampled]


def mixed(row, latent, seed):
    """The hash of places.py in Python's own integers."""
    x = (row * 0x9E3779B97F4A7C15 + latent * 0xD1342543DE82EF95 + seed * 0xDA942042E4DD58B5) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ x >> shift) * factor % 2**64
    return (x ^ x >> 31) % 2**31


@pytest.mark.parametrize("whole", [False, True])
def test_samples_are_those_of_lowest_hash_in_each_bin(whole):
    codes, positions, kept = codes_of(whole=whole)
    codes = unique_indices(codes)
    frozen = gathered(codes, positions, kept, block_spans(positions, 40), first=1000).freeze()
    dense = torch.where(kept[:, None], codes.dense(LATENTS), 0.0)
    edges = histogram_edges().tolist()
    for latent in range(LATENTS):
        by_bin = {}
        for row in dense[:, latent].nonzero().squeeze(1).tolist():
            bin = next(b for b in range(BINS) if dense[row, latent] < edges[b + 1] or b == BINS - 1)
            by_bin.setdefault(bin, []).append((mixed(row + 1000, latent, SEED), row + 1000))
        order = [
            (rank, -bin, row) for bin, rows in by_bin.items() for rank, (_, row) in enumerate(sorted(rows)[:PER_BIN])
        ]
        wanted = sorted((-bin, rank, row) for rank, bin, row in sorted(order)[:SAMPLES])
        rows, bins = frozen["sample_rows"][latent].tolist(), frozen["sample_bins"][latent].tolist()
        found = [(bin, row) for bin, row in zip(bins, rows, strict=True) if row >= 0]
        assert sorted(found) == sorted((bin, row) for bin, _, row in wanted)
        assert rows[len(found) :] == [-1] * (SAMPLES - len(found))
        assert bins[len(found) :] == [255] * (SAMPLES - len(found))
    assert (frozen["sample_rows"] >= 0).all(1).any(), "some latent has more than fit"


def test_every_firing_is_as_likely_to_be_sampled():
    rows, latents, each = 40, 600, 4
    stats = FeatureStats(latents, 1, samples=each, per_bin=each)
    codes = Codes(torch.full((rows, latents), 1.5), torch.arange(latents).repeat(rows, 1))
    stats.update(codes, torch.arange(rows), 0, torch.ones(rows, dtype=torch.bool))
    sampled = stats.freeze()["sample_rows"]
    seen = torch.bincount(sampled.flatten(), minlength=rows)
    # Each count is binomial of mean 60 and standard deviation 7.35; the sum of squares is chi-square of about 39 degrees.
    assert float(((seen - 60) / 7.35).square().sum()) < 80
    pairs = torch.bincount((sampled[:-1] == sampled[1:]).sum(1), minlength=5) / (latents - 1)
    assert pairs[0] > 0.5, "neighbouring latents are sampled on rows of their own"


@pytest.mark.parametrize("whole", [False, True])
def test_tokens_and_positions_are_counted_exactly(whole):
    codes, positions, kept = codes_of(whole=whole)
    codes = unique_indices(codes)
    stats = gathered(codes, positions, kept, block_spans(positions, 40))
    frozen = stats.freeze()
    dense = torch.where(kept[:, None], codes.dense(LATENTS), 0.0)
    assert stats.token_rows.tolist() == torch.bincount(TOKENS[kept], minlength=VOCAB).tolist()
    for latent in range(LATENTS):
        rows = dense[:, latent].nonzero().squeeze(1)
        counts = torch.bincount(TOKENS[rows], minlength=VOCAB).tolist()
        ranked = sorted((token for token in range(VOCAB) if counts[token]), key=lambda token: (-counts[token], token))
        assert frozen["token_ids"][latent].tolist() == ranked + [-1] * (8 - len(ranked))
        assert frozen["token_counts"][latent].tolist() == [counts[token] for token in ranked] + [0] * (8 - len(ranked))
        assert frozen["distinct_tokens"][latent] == len(ranked)
        shares = [counts[token] / len(rows) for token in ranked]
        assert frozen["firing_entropy"][latent] == pytest.approx(-sum(p * math.log2(p) for p in shares), abs=1e-5)
        lifts = [p / (int((TOKENS[kept] == t).sum()) / int(kept.sum())) for p, t in zip(shares, ranked, strict=True)]
        assert frozen["token_lift"][latent, : len(ranked)].tolist() == pytest.approx(lifts, rel=1e-5)
        at = torch.bincount(positions[rows].clamp_max(5), minlength=6).tolist()
        assert frozen["position_top"][latent] == (at.index(max(at)) if len(rows) else -1)
        assert frozen["position_share"][latent] == pytest.approx(max(at) / max(len(rows), 1))
        if len(rows):
            assert frozen["mean_position"][latent] == pytest.approx(float(positions[rows].double().mean()))


@pytest.mark.parametrize("whole", [False, True])
def test_sorting_in_at_once_or_at_the_end_is_the_same(whole, monkeypatch):
    codes, positions, kept = codes_of(whole=whole)
    codes = unique_indices(codes)
    late = gathered(codes, positions, kept, block_spans(positions, 20)).freeze()
    monkeypatch.setattr(places, "PENDING", 0)
    monkeypatch.setattr(counters, "PENDING", 0)
    monkeypatch.setattr(places.Places, "add", lambda self, part, add=places.Places.add: (add(self, part), self.held()))
    stats = gathered(codes, positions, kept, block_spans(positions, 20))
    assert (stats._top.limit < places.WORST).any() and (stats._samples.limit < places.WORST).any()
    for name, array in stats.freeze().items():
        assert_close(array, late[name], rtol=0, atol=0, equal_nan=True, msg=name)


def test_state_and_load_go_on_where_it_stopped():
    codes, positions, kept = codes_of()
    codes = unique_indices(codes)
    spans = list(block_spans(positions, 30))
    half = {name: tensor.clone() for name, tensor in gathered(codes, positions, kept, spans[:4]).state().items()}
    stats = collector()
    stats.load(half)
    for start, stop in spans[4:]:
        part = Codes(codes.values[start:stop], codes.indices[start:stop])
        stats.update(part, positions[start:stop], start, kept[start:stop], TOKENS[start:stop])
    whole = gathered(codes, positions, kept, spans)
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, stats.state()[name]), name


def test_too_many_pairs_are_counted_within_the_stated_error():
    generator = torch.Generator().manual_seed(0)
    token = (torch.rand(20_000, generator=generator) ** 4 * 1000).long()
    latent = token % 3
    table = PairCounts(limit=50)
    for piece in torch.arange(20_000).split(500):
        table.add(latent[piece], token[piece])
        table.settle()
    assert len(table.keys) <= 50
    assert 0 < table.error < 2000
    true = torch.bincount(token, minlength=1000)
    for key, count in zip(table.keys.tolist(), table.counts.tolist(), strict=True):
        assert true[key & 0xFFFF] - table.error <= count <= true[key & 0xFFFF]
    missing = set(range(1000)) - {key & 0xFFFF for key in table.keys.tolist()}
    assert all(true[token] <= table.error for token in missing)


def test_histogram_bins_hold_what_lies_between_their_edges():
    edges = histogram_edges()
    assert len(edges) == BINS + 1
    assert edges[0] == 2.0**LOWEST
    middles = (edges[:-1] * edges[1:]).sqrt()
    values = torch.cat([middles, torch.tensor([edges[0] / 100, edges[-1] * 100])])
    stats = FeatureStats(1)
    codes = Codes(values[:, None], torch.zeros(len(values), 1, dtype=torch.int64))
    stats.update(codes, torch.zeros(len(values), dtype=torch.int64), 0, torch.ones(len(values), dtype=torch.bool))
    assert stats.histogram[0].tolist() == [2, *[1] * (BINS - 2), 2]


def test_a_worked_example():
    """Two blocks of three rows; latent 1 fires 2, 5 in the first and 5 in the second block, the first row is dropped."""
    values, indices = torch.tensor([[9.0], [2], [5], [0], [5], [1]]), torch.tensor([[1], [1], [1], [0], [1], [0]])
    stats = FeatureStats(2, examples=2, before=1, after=1)
    stats.update(Codes(values, indices), torch.tensor([0, 1, 2] * 2), 0, torch.tensor([False, *[True] * 5]))
    assert stats.count.tolist() == [1, 3]
    assert stats.sum.tolist() == [1, 12]
    assert stats.freeze()["example_rows"].tolist() == [[5, -1], [2, 4]]
    assert windows_of(stats.freeze(), 1, 3)[:2] == [[2, 0, 0], [0, 0, 0]]
    assert stats.freeze()["density"].tolist() == pytest.approx([0.2, 0.6])


def test_nothing_that_fires_is_a_collection_too():
    codes, positions, kept = codes_of()
    frozen = gathered(codes, positions, kept & False, [(0, 300)]).freeze()
    assert not frozen["count"].any()
    assert (frozen["example_rows"] == -1).all()
    assert torch.cat([frozen[name] for name in ("density", "mean_value", "std_value")]).isfinite().all()


def test_spans_cover_every_row_and_split_no_block():
    _, positions, _ = codes_of()
    for batch in (1, 5, 50, 1000):
        spans = list(block_spans(positions, batch))
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
        assert spans[-1][1] == 300
        assert all(positions[start] == 0 for start, _ in spans)
        assert all(stop - start <= max(batch, 9) for start, stop in spans)


def test_entropies_by_hand():
    tokens, positions = torch.tensor([7, 1, 2, 7, 1, 3, 2, 4]), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    rows = torch.tensor([[1, 4, 2, 6], [3, 7, -1, -1], [-1, -1, -1, -1]])
    token, context = example_entropies(rows, tokens, positions)
    # Tokens 1 1 2 2 and 7 4; contexts (none 7) (none none) (7 1) (1 3), all different, and (1 2) (3 2), different too.
    assert token.tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert context.tolist() == pytest.approx([2.0, 1.0, 0.0])
