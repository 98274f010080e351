"""Every number of a FeatureStore against its definition, written out in loops over a dense matrix in float64.

Nothing of the package is used to compute what is expected: the text is a list of rows, the codes are a matrix, and each
statistic is what docs/methods.md and the module heads say. Small texts are made so that ties, bin edges, constant and extreme values occur.
"""

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from saes_toys import MLP_IN, MLP_OUT, RESID, cached, dictionary, model
from unweave.circuits.prompts.surprise import surprise
from unweave.saes import Codes, FeatureStats, FeatureStore, collect
from unweave.saes.io import write_json, write_tensors
from unweave.saes.latents.across.matches import pair_activity
from unweave.saes.latents.codes.codes_file import CodesWriter
from unweave.saes.latents.codes.company import companies, company
from unweave.saes.latents.codes.intervals import intervals
from unweave.saes.latents.codes.occurrences import occurrences
from unweave.saes.latents.effect.effects import effects
from unweave.saes.latents.gather.counters import example_entropies
from unweave.saes.latents.shelf.store import FORMAT, VERSION

BEFORE, AFTER = 20, 11
VOCAB = 23


class Text:
    """A text of blocks of random lengths, with codes `[row latent]` whose values are those of a float32."""

    def __init__(self, dense, *, seed: int = 0, keep: float = 0.9, longest: int = 40):
        rng = np.random.default_rng(seed)
        self.dense = np.asarray(dense, np.float32).astype(np.float64)
        rows = len(self.dense)
        self.positions, self.documents = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self.blocks, at, document = [], 0, 0
        while at < rows:
            length = min(int(rng.integers(1, longest)), rows - at)
            self.blocks.append((at, at + length))
            self.positions[at : at + length] = range(length)
            self.documents[at : at + length] = document
            document += int(rng.integers(0, 2))
            at += length
        self.tokens = rng.integers(0, VOCAB, rows) ** 2 % VOCAB
        self.kept = rng.random(rows) < keep
        self.dense[~self.kept] = 0

    def block(self, row: int) -> tuple[int, int]:
        """The rows of the block of a row."""
        return next(span for span in self.blocks if span[0] <= row < span[1])

    def codes(self, start: int, stop: int) -> Codes:
        """Padded codes of some rows, the slots in random order."""
        dense = torch.tensor(self.dense[start:stop], dtype=torch.float32)
        order = torch.rand(dense.shape, generator=torch.Generator().manual_seed(start)) - (dense > 0).float()
        indices = order.argsort(1)[:, : max(int((dense > 0).sum(1).max()), 1) + 1]
        return Codes(dense.gather(1, indices), indices)

    def stats(self, spans, **options) -> FeatureStats:
        """What the collector gathers of these spans of rows."""
        stats = FeatureStats(self.dense.shape[1], context=64, vocab=VOCAB, **options)
        for start, stop in spans:
            piece = slice(start, stop)
            given = (torch.tensor(self.positions[piece]), start, torch.tensor(self.kept[piece]))
            stats.update(self.codes(start, stop), *given, torch.tensor(self.tokens[piece]))
        return stats

    def store(self, folder: Path, *, with_codes: bool = True, seed: int = 0) -> FeatureStore:
        """A FeatureStore of this text."""
        rows, latents = self.dense.shape
        arrays = self.stats(self.blocks, seed=seed).freeze()
        tokens, positions = torch.tensor(self.tokens), torch.tensor(self.positions)
        names = "token_entropy", "context_entropy"
        arrays |= zip(names, example_entropies(arrays["example_rows"].long(), tokens, positions), strict=True)
        arrays |= {"neighbours": torch.zeros(latents, 0).int(), "neighbour_cosines": torch.zeros(latents, 0)}
        vocab = [f" t{token}".encode() for token in range(VOCAB)]
        text = {"tokens": tokens.int(), "positions": positions.int(), "documents": torch.tensor(self.documents).int()}
        text |= {"vocab_bytes": torch.frombuffer(bytearray(b"".join(vocab)), dtype=torch.uint8)}
        text |= {"vocab_ends": torch.tensor([len(word) for word in vocab]).cumsum(0)}
        if with_codes:
            writer = CodesWriter(folder, latents, 64)
            for start, stop in self.blocks:
                writer.append(start, self.codes(start, stop))
            writer.finish()
        write_tensors(folder / "features.safetensors", arrays)
        write_tensors(folder / "tokens.safetensors", text)
        about = {
            "format": FORMAT,
            "version": VERSION,
            "before": BEFORE,
            "after": AFTER,
            "kept_rows": int(self.kept.sum()),
        }
        write_json(folder / "manifest.json", {**about, "rows": rows, "model": {}, "dictionary": {"fingerprint": "f"}})
        return FeatureStore.open(folder)


EDGES = [float(np.float32(2.0 ** (-12 + place / 2))) for place in range(57)]


def bin_of(value: float) -> int:
    """Half-octave bins [edge, next edge); what lies beyond the outer ones is in them."""
    return max(0, min(55, sum(edge <= value for edge in EDGES) - 1))


def shapes(rows: int, seed: int = 0) -> np.ndarray:
    """Latents of many kinds, each a column: see the names beside."""
    rng = np.random.default_rng(seed)
    fires = rng.random((rows, 12)) < [0.3, 0.02, 0.9, 0.25, 0.2, 0.15, 0.3, 0.3, 0.4, 0.5, 0.3, 0.002]
    values = rng.lognormal(0, 1, (rows, 12))
    values[:, 2] = rng.choice([0.5, 1.0, 2.0], rows)  # ties, all of them on bin edges
    values[:, 3] = 0.1  # constant where it fires
    values[:, 4] = rng.choice(EDGES[8:40], rows)  # bin edges
    values[:, 5] = np.exp(rng.normal(0, 8, rows))  # from below the first bin to above the last
    values[:, 6] = rng.choice([1e-30, 1e-20, 2.0**-12], rows)  # below the first bin, and on its edge
    values[:, 7] = rng.choice([1.0, np.nextafter(np.float32(1), np.float32(2)), 65504.0, 1e9], rows)
    fires[:, 8] = np.arange(rows) % 2 == 0
    values[:, 8] = 1 + (np.arange(rows) > rows // 2)
    values[:, 10] = rng.beta(0.05, 0.05, rows) * 3.9 + 0.05  # two heaps
    dense = np.where(fires, values, 0.0)
    return np.concatenate([dense, np.zeros((rows, 1)), np.full((rows, 1), 0.3)], 1)  # dead; constant everywhere


@pytest.fixture(scope="module")
def text():
    return Text(shapes(1500))


@pytest.fixture(scope="module")
def store(text, tmp_path_factory):
    return text.store(tmp_path_factory.mktemp("numbers") / "store")


@pytest.fixture(scope="module")
def bare(text, tmp_path_factory):
    return text.store(tmp_path_factory.mktemp("numbers") / "bare", with_codes=False)


def firings(text: Text, latent: int) -> list[tuple[int, float]]:
    return [(row, value) for row, value in enumerate(text.dense[:, latent].tolist()) if value > 0]


def entropy(keys: list) -> float:
    counts = Counter(keys).values()
    return sum(-count / len(keys) * math.log2(count / len(keys)) for count in counts)


def near(value: float, rel: float = 1e-6):
    return pytest.approx(value, rel=rel, abs=1e-9)


def test_counts_moments_and_histogram(text, store):
    kept = int(text.kept.sum())
    for latent in range(len(store)):
        values, feature = [value for _, value in firings(text, latent)], store[latent]
        assert feature.count == len(values)
        assert feature.density == near(len(values) / kept)
        counts = [0] * 56
        for value in values:
            counts[bin_of(value)] += 1
        assert feature.histogram.counts.tolist() == counts
        if not values:
            assert (feature.max_value, feature.mean_value, feature.std_value) == (0, 0, 0)
            continue
        mean = math.fsum(values) / len(values)
        assert feature.max_value == max(values)
        assert feature.mean_value == near(mean)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        assert feature.std_value == pytest.approx(deviation, rel=1e-5, abs=1e-6 * mean), latent


def test_top_examples_are_the_largest_of_their_blocks(text, store):
    for latent in range(len(store)):
        best: dict[int, tuple[float, int]] = {}
        for row, value in firings(text, latent):
            start = text.block(row)[0]
            best[start] = min(best.get(start, (0.0, -1)), (-value, row))
        expected = sorted(best.values())[:16]
        found = store[latent].examples
        assert [(-example.value, example.row) for example in found] == expected, latent
        assert [example.bin for example in found] == [-1] * len(found)
        focus = [int(text.tokens[row]) for _, row in expected]
        outside = -1
        pairs = [
            tuple(int(text.tokens[row - by]) if text.positions[row] >= by else outside for by in (2, 1))
            for _, row in expected
        ]
        if expected:
            assert store[latent].token_entropy == pytest.approx(entropy(focus), abs=1e-5)
            assert store[latent].context_entropy == pytest.approx(entropy(pairs), abs=1e-5)


def test_windows_show_the_block_around_and_the_values_there(text, store, bare):
    for opened in (store, bare):
        for latent in range(len(store)):
            feature = opened[latent]
            for example in feature.examples + feature.samples:
                start, stop = text.block(example.row)
                first, last = max(start, example.row - BEFORE), min(stop, example.row + AFTER + 1)
                assert example.focus == example.row - first
                assert (example.position, example.document) == (
                    text.positions[example.row],
                    text.documents[example.row],
                )
                assert example.tokens == [f" t{token}" for token in text.tokens[first:last]]
                expected = text.dense[first:last, latent].tolist()
                assert example.values[example.focus] == expected[example.focus] == example.value
                halves = np.clip(expected, None, 65504).astype(
                    np.float16
                )  # around the token values are kept in float16
                halves[example.focus] = 0
                shown = np.array(example.values)
                shown[example.focus] = 0
                assert shown == pytest.approx(halves.astype(float), rel=1e-6)


def test_samples_are_of_their_bins_and_as_many_as_fit(text, store):
    for latent in range(len(store)):
        samples, values = store[latent].samples, dict(firings(text, latent))
        assert len({sample.row for sample in samples}) == len(samples)
        held = Counter(sample.bin for sample in samples)
        counts = Counter(bin_of(value) for value in values.values())
        for sample in samples:
            assert sample.value == values[sample.row]
            assert sample.bin == bin_of(sample.value)
        assert len(samples) == min(40, sum(min(count, 6) for count in counts.values()))
        assert all(held[place] == min(count, 6) for place, count in counts.items()) or len(samples) == 40
        if counts:  # as even as can be: none has two more than one that could have had more
            least = (
                min(held[place] for place, count in counts.items() if held[place] < min(count, 6))
                if len(samples) == 40
                else 6
            )
            assert max(held.values()) <= least + 1


def test_samples_of_a_bin_are_uniform_and_independent():
    """Latents that fire on the same rows with the same value draw as independent urns do, over latents and seeds."""
    rows, latents, seeds = 24, 150, 4
    text, chosen = Text(np.full((rows, latents), 1.2), keep=1.1), []
    for seed in range(seeds):
        found = text.stats(text.blocks, seed=seed).freeze()["sample_rows"]
        chosen += [set(some) - {-1} for some in found.tolist()]
    assert {len(some) for some in chosen} == {6}
    drawn = np.array([[row in some for row in range(rows)] for some in chosen])
    expected = len(drawn) * 6 / rows
    chi = ((drawn.sum(0) - expected) ** 2 / (expected * (1 - 6 / rows))).sum() * (rows - 1) / rows
    assert chi < 52, "23 degrees of freedom: above that 1 in 2,000"
    pairs = (drawn.T.astype(int) @ drawn)[np.triu_indices(rows, 1)]
    wanted = len(drawn) * 6 * 5 / (rows * (rows - 1))
    assert ((pairs - wanted) ** 2 / wanted).mean() == pytest.approx(1, abs=0.4), (
        "rows are drawn together as if at random"
    )
    shared = (drawn[:-1] & drawn[1:]).sum(
        1
    )  # of two latents, or of one latent under two seeds: mean 36 / 24, hypergeometric
    deviation = math.sqrt(6 * (6 / rows) * (1 - 6 / rows) * (rows - 6) / (rows - 1) / len(shared))
    assert shared.mean() == pytest.approx(36 / rows, abs=4 * deviation)


def test_tokens_and_positions(text, store):
    kept = int(text.kept.sum())
    seen = Counter(text.tokens[text.kept].tolist())
    for latent in range(len(store)):
        rows = [row for row, _ in firings(text, latent)]
        counts = Counter(int(text.tokens[row]) for row in rows)
        feature = store[latent]
        expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:8]
        assert [(share.token, share.count) for share in feature.tokens] == [(f" t{t}", n) for t, n in expected]
        for share, (token, count) in zip(feature.tokens, expected, strict=True):
            assert share.share == near(count / len(rows))
            assert share.lift == near((count / len(rows)) / (seen[token] / kept))
        columns = {name: float(column[latent]) for name, column in store.columns.items()}
        if not rows:
            assert (columns["distinct_tokens"], columns["firing_entropy"], columns["position_top"]) == (0, 0, -1)
            assert math.isnan(columns["mean_position"])
            continue
        assert columns["distinct_tokens"] == len(counts)
        assert columns["firing_entropy"] == pytest.approx(entropy([int(text.tokens[row]) for row in rows]), abs=1e-5)
        assert columns["token_share"] == near(expected[0][1] / len(rows))
        places = Counter(int(text.positions[row]) for row in rows)
        top = min(places.items(), key=lambda item: (-item[1], item[0]))
        assert (feature.position_top, feature.position_share) == (top[0], near(top[1] / len(rows)))
        assert feature.mean_position == near(sum(int(text.positions[row]) for row in rows) / len(rows))


@pytest.mark.parametrize("seed", range(4))
def test_any_tree_of_merges_is_one_pass(text, seed):
    rng = random.Random(seed)
    whole = text.stats([(0, len(text.dense))]).freeze()
    spans, at = [], 0
    while at < len(text.blocks):
        some = rng.randint(1, 9)
        spans.append((text.blocks[at][0], text.blocks[min(at + some, len(text.blocks)) - 1][1]))
        at += some
    rng.shuffle(spans)
    parts = []
    while spans:
        some = rng.randint(1, 4)
        own = sorted(spans[:some])
        parts.append(text.stats(own))
        del spans[:some]
        if rng.random() < 0.5:  # on its way through a file
            again = text.stats([])
            again.load({name: tensor.clone() for name, tensor in parts[-1].state().items()})
            parts[-1] = again
    while len(parts) > 1:
        one, other = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        parts.append(one.merge(other))
    for name, array in parts[0].freeze().items():
        if name in ("mean_value", "std_value"):
            assert torch.allclose(array, whole[name], rtol=1e-6, atol=1e-6 * float(whole["mean_value"].max())), name
        else:
            assert torch.equal(array.nan_to_num(-9), whole[name].nan_to_num(-9)), name


def test_codes_by_row_and_by_latent(text, store):
    for latent in range(len(store)):
        rows, values = store.codebook.firings(latent)
        assert list(zip(rows.tolist(), values.tolist(), strict=True)) == firings(text, latent)
    some = torch.tensor([0, 7, 7, len(text.dense) - 1, 100])
    assert np.array_equal(store.codebook.at(some).dense(len(store)).double().numpy(), text.dense[some.numpy()])


def cut(values: list[float], kind: str, number: int) -> list[tuple[float, float]]:
    """Intervals by the definition in the head of intervals.py."""
    top = max(values)
    if kind == "width":
        low = [top * place / number for place in range(number)]
    elif kind == "log":
        low = [0.0] + [top * 2.0 ** (place - number) for place in range(1, number)]
    else:
        low = sorted({sorted(values)[place * len(values) // number] for place in range(number)})
    return list(zip(low, [*low[1:], top], strict=True))


@pytest.mark.parametrize("kind", ["width", "count", "log"])
def test_exact_intervals(text, store, kind):
    for latent in range(len(store)):
        values = dict(firings(text, latent))
        found = intervals(store, latent, kind, 7, 4)
        if not values:
            assert found == []
            continue
        spans = cut(list(values.values()), kind, 7)
        assert [(one.low, one.high) for one in found] == [near(span, 1e-12) for span in spans]
        for place, (one, (low, high)) in enumerate(zip(found, spans, strict=True)):
            is_last = place == len(spans) - 1
            inside = {row for row, value in values.items() if low <= value < high or (is_last and value >= low)}
            assert (one.count, one.is_exact, one.error) == (len(inside), True, 0)
            assert one.share == near(len(inside) / len(values))
            chosen = [example.row for example in one.examples]
            assert len(set(chosen)) == len(chosen) == min(4, len(inside))
            assert set(chosen) <= inside
            blocks = {text.block(row)[0] for row in inside}
            assert len({text.block(row)[0] for row in chosen}) == min(len(blocks), len(chosen))
            assert [example.value for example in one.examples] == sorted((values[row] for row in chosen), reverse=True)
            for example in one.examples:
                first = example.row - example.focus
                assert example.values == text.dense[first : first + len(example.values), latent].tolist()


@pytest.mark.parametrize("kind", ["width", "count", "log"])
@pytest.mark.parametrize("number", [1, 3, 10, 33])
def test_estimated_intervals_keep_their_bound(text, bare, kind, number):
    for latent in range(len(bare)):
        values = [value for _, value in firings(text, latent)]
        found = intervals(bare, latent, kind, number)
        if not values:
            assert found == []
            continue
        assert sum(one.count for one in found) == len(values)
        assert found[-1].high == max(values)
        if kind != "count":
            assert [(one.low, one.high) for one in found] == [near(span, 1e-12) for span in cut(values, kind, number)]
        for place, one in enumerate(found):
            is_last = place == len(found) - 1
            true = sum(one.low <= value < one.high or (is_last and value == one.high) for value in values)
            assert abs(true - one.count) <= one.error, (latent, one)
            assert one.is_exact == (one.error == 0)
            assert all(one.low <= each.value <= one.high for each in one.examples)
            assert 0 <= one.count <= len(values)
            assert one.share == near(one.count / len(values))


@pytest.mark.parametrize("by", ["correlation", "lift", "jaccard"])
def test_company(text, store, by):
    x, rows = text.dense[text.kept], int(text.kept.sum())
    for latent in range(len(store)):
        expected = []
        for other in range(len(store)):
            both = int(((x[:, latent] > 0) & (x[:, other] > 0)).sum())
            if other == latent or not both:
                continue
            one, two = (int((x[:, j] > 0).sum()) for j in (latent, other))
            constant = np.ptp(x[:, latent]) == 0 or np.ptp(x[:, other]) == 0
            r = math.nan if constant else float(np.corrcoef(x[:, latent], x[:, other])[0, 1])
            expected.append(dict(latent=other, together=both, expected=one * two / rows, lift=both * rows / one / two,
                                 correlation=r, jaccard=both / (one + two - both)))  # fmt: skip
        found = {one.latent: one for one in company(store, latent, 100, by=by)}
        assert found.keys() == {one["latent"] for one in expected}
        for one in expected:
            for name, value in one.items():
                wanted = pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True)
                assert getattr(found[one["latent"]], name) == wanted, (latent, one, name)
        measures = [getattr(one, by) for one in company(store, latent, 5, by=by)]
        wanted = sorted((one[by] for one in expected if one[by] == one[by]), reverse=True)[:5]
        assert [each for each in measures if each == each] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_company_of_all_is_company_of_each(text, store):
    table = companies(store, 4)
    for latent in range(len(store)):
        each = company(store, latent, 4)
        real = table.latents[latent] >= 0
        assert table.latents[latent][real].tolist() == [one.latent for one in each]
        assert table.together[latent][real].tolist() == [one.together for one in each]
        expected = [one.correlation for one in each]
        assert table.correlation[latent][real].tolist() == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_occurrences(text, store):
    for latent in range(len(store)):
        rows = [row for row, _ in firings(text, latent)]
        found = occurrences(store, latent, 5)
        counts = Counter(int(text.documents[row]) for row in rows)
        expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
        assert [(one.document, one.count) for one in found.documents] == expected
        assert found.documents_total == len(counts)
        for one in found.documents:
            assert one.share == near(one.count / int((text.documents == one.document).sum()))
            own = [(-value, row) for row, value in firings(text, latent) if text.documents[row] == one.document]
            assert (-one.value, one.row) == min(own)
        places = Counter(int(text.positions[row]) for row in rows)
        assert {place: n for place, n in enumerate(found.positions.tolist()) if n} == dict(places)


def test_pairs_of_two_stores(text, store, tmp_path):
    other = Text(shapes(1500)[:, ::-1])
    theirs = other.store(tmp_path / "other")
    for i in range(len(store)):
        for j in range(0, len(theirs), 3):
            x, y = text.dense[:, i], other.dense[:, j]
            pair = pair_activity(store, theirs, i, j)
            assert (pair.both, pair.only_a) == (((x > 0) & (y > 0)).sum(), ((x > 0) & (y == 0)).sum())
            expected = math.nan if np.ptp(x) == 0 or np.ptp(y) == 0 else np.corrcoef(x, y)[0, 1]
            assert pair.correlation == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("rows", [301, 777, 2500])
def test_what_never_changes_has_no_correlation(tmp_path, rows):
    """The spread of a constant is not left to rounding, which makes it 1e-17 as often as 0."""
    rng = np.random.default_rng(rows)
    dense = np.concatenate([np.tile(rng.random(6), (rows, 1)), rng.random((rows, 2))], 1)
    text = Text(dense, keep=1.1)
    store = text.store(tmp_path)
    for i in range(8):
        found = {one.latent: one.correlation for one in company(store, i)}
        for j in range(8):
            is_known = i > 5 and j > 5
            assert math.isnan(pair_activity(store, store, i, j).correlation) != is_known
            assert i == j or math.isnan(found[j]) != is_known


def test_surprise_is_within_its_bounds(text, store):
    kept = int(text.kept.sum())
    for latent in range(len(store)):
        values = np.sort(text.dense[:, latent][text.dense[:, latent] > 0])
        asked = [*values[:: max(len(values) // 40, 1)], *EDGES[::5], *values[-1:] * 1.5, *values[:1] / 3]
        asked = torch.tensor(sorted({float(np.float32(value)) for value in asked} - {0.0}))
        found = surprise(store, torch.full((len(asked),), latent), asked)
        for place, value in enumerate(asked.tolist()):
            number = int((values >= value).sum())
            true = -math.log2(number / kept) if number else math.inf
            assert found.low[place] <= found.bits[place] <= found.high[place]
            assert found.low[place] - 1e-9 <= true <= found.high[place] + 1e-9, (latent, value)


def kept_rows(own, shards) -> np.ndarray:
    """Which rows the rule keeps: late enough, and short enough at every site that is read or written."""
    rule = own.metadata["keep"]
    kept = shards.positions.numpy() >= rule["drop_positions"]
    for site, limit in rule["max_norm"].items():
        kept &= np.linalg.norm(shards[site][:].double().numpy(), axis=1) <= limit
    return kept


@pytest.mark.parametrize("is_transcoder", [False, True])
def test_collect_is_the_dictionary_on_the_rows_it_keeps(tmp_path, is_transcoder):
    sites = (MLP_IN, MLP_OUT) if is_transcoder else (RESID,)
    shards = cached(tmp_path / "shards", (RESID, MLP_IN, MLP_OUT), count=40, longest=40, name="llama")
    limit = {site: float(shards[site][:].double().norm(dim=1).quantile(0.9)) for site in sites}
    keep = {"drop_positions": 2, "max_norm": limit}
    own = dictionary(latents=24, k=3, site=sites[0], site_out=sites[-1] if is_transcoder else "", keep=keep)
    own.W_dec[5] = 0
    own.W_dec[7] = own.W_dec[6]
    store = collect(own, shards, tmp_path / "store", model("llama"), batch=50, progress=False)
    kept, x = kept_rows(own, shards), shards[sites[0]][:].double().numpy()
    W_enc, b_enc, W_dec, b_dec = (getattr(own, name).double().numpy() for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    pre = (x if is_transcoder else x - b_dec) @ W_enc.T + b_enc
    dense = np.zeros_like(pre)
    for row in np.flatnonzero(kept):
        best = np.argsort(-pre[row], kind="stable")[:3]
        dense[row, best] = np.maximum(pre[row, best], 0)
    assert 0 < store.manifest["kept_rows"] == kept.sum() < len(shards)
    assert store.count.tolist() == (dense > 0).sum(0).tolist()
    assert store.density.numpy() == pytest.approx((dense > 0).sum(0) / kept.sum(), rel=1e-6)
    assert store.max_value.numpy() == pytest.approx(dense.max(0), rel=1e-5)
    assert store.columns["mean_value"].numpy() == pytest.approx(dense.sum(0) / (dense > 0).sum(0).clip(1), rel=1e-5)
    assert store.codebook.at(torch.arange(len(x))).dense(24).numpy() == pytest.approx(dense, rel=1e-4, abs=1e-5)
    norm = np.linalg.norm(W_dec, axis=1)
    unit = W_dec / np.maximum(norm, 1e-30)[:, None]
    for latent in range(24):
        cosine = unit @ unit[latent]
        cosine[latent] = -9
        found = store.neighbours(latent)
        assert [score for _, score in found] == pytest.approx(sorted(cosine, reverse=True)[:8], abs=1e-5)
        assert [cosine[other] for other, _ in found] == pytest.approx([score for _, score in found], abs=1e-5)
        assert len({other for other, _ in found}) == 8
        aligned = W_enc[latent] @ unit[latent] / np.linalg.norm(W_enc[latent])
        assert store[latent].encoder_cosine == pytest.approx(aligned, abs=1e-6)
    assert store.columns["decoder_norm"].numpy() == pytest.approx(norm, rel=1e-6)
    check_logits(store, W_dec)


def check_logits(store: FeatureStore, W_dec: np.ndarray) -> None:
    """Direct effects: decoder row times gain times unembedding, centred over the vocabulary (RMSNorm centres nothing itself)."""
    net = model("llama")
    effects = (W_dec * net.ln_final.weight.double().numpy()) @ net.unembed.W_U.double().numpy()
    effects -= effects.mean(1, keepdims=True)
    vocab = store.vocabulary
    for latent, effect in enumerate(effects):
        feature, order = store[latent], np.argsort(-effect)
        for logits, chosen in ((feature.top_logits, order[:10]), (feature.bottom_logits, order[::-1][:10])):
            assert [value for _, value in logits] == pytest.approx(effect[chosen].tolist(), rel=1e-4, abs=1e-6)
            assert latent == 5 or [token for token, _ in logits] == [vocab[token] for token in chosen]
        edges, counts = feature.logit_histogram
        assert (float(edges[0]), float(edges[-1])) == pytest.approx((effect.min(), effect.max()), rel=1e-4, abs=1e-6)
        if latent != 5:
            expected = np.histogram(effect, 40, (effect.min(), effect.max()))[0]
            assert abs(counts.numpy() - expected).sum() <= 2, "but for rounding at an edge"
        assert int(counts.sum()) == len(vocab)
        columns = {name: float(column[latent]) for name, column in store.columns.items()}
        assert columns["logit_std"] == pytest.approx(effect.std(), rel=1e-4, abs=1e-6)
        assert (columns["logit_min"], columns["logit_max"]) == pytest.approx(
            (effect.min(), effect.max()), rel=1e-4, abs=1e-6
        )
        assert latent == 5 or columns["logit_kurtosis"] == pytest.approx(
            (effect**4).mean() / effect.var() ** 2, rel=1e-3
        )


def test_rows_of_any_kind_of_number_have_effects(tmp_path):
    shards, own = cached(tmp_path / "shards", count=10), dictionary(keep={"drop_positions": 1, "max_norm": {}})
    store = collect(own, shards, tmp_path / "store", model(), progress=False)
    latent = int(store.count.argmax())
    rows = store.codebook.firings(latent).rows[:2]
    plain, given = (effects(store, latent, model(), own, some) for some in (rows.tolist(), rows.numpy()))
    for one, other in zip(plain, given, strict=True):
        assert (one.row, one.tokens) == (other.row, other.tokens)
        assert torch.equal(one.loss_change.nan_to_num(), other.loss_change.nan_to_num())
