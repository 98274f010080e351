"""Intervals and company of latents: exact against dense float64 matrices, estimates within their stated bounds."""

import math

import pytest
import torch
from saes_toys import cached, dictionary, model
from torch.testing import assert_close
from unweave.saes import FeatureStore, UserError, collect
from unweave.saes.latents.codes import company as company_module
from unweave.saes.latents.codes import intervals as intervals_module
from unweave.saes.latents.codes.company import companies, company
from unweave.saes.latents.codes.intervals import all_intervals, intervals
from unweave.saes.latents.codes.occurrences import occurrences

LATENTS, K = 24, 4
KINDS = ("width", "count", "log")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with codes, one without, and the dense activations `[row latent]`, 0 on rows that are not kept."""
    folder = tmp_path_factory.mktemp("intervals")
    shards = cached(folder / "shards", count=60, longest=60)
    own = dictionary(latents=LATENTS, k=K)
    stores = [
        collect(own, shards, folder / name, model(), progress=False, codes_mib=mib)
        for name, mib in (("a", 9), ("b", 0))
    ]
    part = {site: shards[site][:].float() for site in shards.sites}
    dense = own.encode(part).dense(LATENTS).float()
    dense[~own.kept(shards.positions, part)] = 0
    return *stores, dense


@pytest.fixture(scope="module")
def store(made) -> FeatureStore:
    return made[0]


@pytest.fixture(scope="module")
def bare(made) -> FeatureStore:
    return made[1]


@pytest.fixture(scope="module")
def dense(made):
    return made[2]


def inside(values, one, is_last):
    return (values >= one.low) & ((values < one.high) | (is_last & (values == one.high)))


def edges_by_definition(kind, values, number):
    top = float(values.max())
    if kind == "width":
        return [top * place / number for place in range(number)] + [top]
    if kind == "log":
        return [0.0] + [top / 2 ** (number - place) for place in range(1, number)] + [top]
    ordered = sorted(values.tolist())
    return sorted({ordered[place * len(ordered) // number] for place in range(number)}) + [top]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 3, 10])
def test_intervals_are_those_of_the_definition(store, dense, kind, number):
    for latent in range(LATENTS):
        values = dense[:, latent][dense[:, latent] > 0]
        found = intervals(store, latent, kind, number, examples=2)
        if not len(values):
            assert found == []
            continue
        edges = edges_by_definition(kind, values.double(), number)
        assert [one.low for one in found] == pytest.approx(edges[:-1], rel=1e-15)
        assert [one.high for one in found] == pytest.approx(edges[1:], rel=1e-15)
        assert sum(one.count for one in found) == len(values)
        for place, one in enumerate(found):
            assert one.count == int(inside(values.double(), one, place == len(found) - 1).sum())
            assert one.share == one.count / len(values)
            assert (one.is_exact, one.error) == (True, 0)
        if kind == "count" and len(values.unique()) == len(values) >= number:
            assert max(one.count for one in found) - min(one.count for one in found) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_examples_lie_in_their_interval_and_show_its_latent(store, dense, kind):
    for latent in range(LATENTS):
        found = intervals(store, latent, kind, examples=4)
        for place, one in enumerate(found):
            assert len(one.examples) == min(4, one.count)
            assert len({example.row for example in one.examples}) == len(one.examples)
            assert [example.value for example in one.examples] == sorted(
                (example.value for example in one.examples), reverse=True
            )
            for example in one.examples:
                assert example.value == dense[example.row, latent]
                assert bool(inside(torch.tensor(example.value, dtype=torch.float64), one, place == len(found) - 1))
                first = example.row - example.focus
                assert_close(
                    torch.tensor(example.values), dense[first : first + len(example.values), latent], rtol=0, atol=0
                )


def test_blocks_are_shared_only_where_there_are_too_few(store, dense):
    shared = 0
    for latent in range(LATENTS):
        for one in intervals(store, latent, "width", 3, examples=6):
            rows = torch.arange(len(dense))[inside(dense[:, latent].double(), one, True) & (dense[:, latent] > 0)]
            blocks = set((rows - store.positions[rows]).tolist())
            chosen = {example.row - example.position for example in one.examples}
            assert len(chosen) == min(len(one.examples), len(blocks))
            shared += len(chosen) < len(one.examples)
    assert shared


def test_examples_are_a_uniform_sample(store, dense):
    """Over 300 seeds each of the blocks of an interval is drawn about equally often (chi-squared, 1 in 10,000)."""

    def singles(latent):
        rows = (dense[:, latent] > 0).nonzero().squeeze(1)
        blocks = (rows - store.positions[rows]).tolist()
        return [row for row, block in zip(rows.tolist(), blocks, strict=True) if blocks.count(block) == 1]

    latent = max(range(LATENTS), key=lambda latent: len(singles(latent)))
    alone = singles(latent)
    drawn = torch.zeros(len(dense))
    for seed in range(300):
        table = intervals_module._table(store, store.codebook, latent, latent + 1, "width", 1, 3, seed)
        drawn[table.rows.flatten()] += 1
    assert int(drawn.sum()) == 900
    counts = drawn[alone]
    expected = float(counts.mean())
    assert len(alone) > 10 and expected > 5
    statistic = float(((counts - expected) ** 2).sum()) / expected
    freedom = len(alone) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_another_seed_draws_others_and_the_same_the_same(store):
    latent = int(store.count.argmax())
    rows = [[e.row for one in intervals(store, latent, seed=seed) for e in one.examples] for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [1, 600, 2**20])
def test_all_latents_at_once_are_each_alone(store, monkeypatch, kind, piece):
    monkeypatch.setattr(intervals_module, "PIECE", piece)
    table = all_intervals(store, kind, 6, 3, seed=5)
    for latent in range(LATENTS):
        alone = intervals(store, latent, kind, 6, 3, seed=5)
        edges = [*table.low[latent].tolist(), float(table.high[latent])]
        real = [place for place in range(6) if edges[place] < edges[place + 1] or place == 5] if alone else []
        assert [edges[place] for place in real] == [one.low for one in alone]
        assert table.count[latent, real].tolist() == [one.count for one in alone]
        rows = [sorted(row for row in table.rows[latent, place].tolist() if row >= 0) for place in real]
        assert rows == [sorted(example.row for example in one.examples) for one in alone]


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_are_within_their_bound(store, bare, dense, kind):
    assert bare.codebook is None
    distance, bound, exact = 0, 0, 0
    for latent in range(LATENTS):
        values = dense[:, latent][dense[:, latent] > 0].double()
        found = intervals(bare, latent, kind, 5, examples=3)
        assert sum(one.count for one in found) == len(values)
        for place, one in enumerate(found):
            true = int(inside(values, one, place == len(found) - 1).sum())
            assert abs(true - one.count) <= one.error
            assert one.is_exact == (one.error == 0)
            assert one.share == one.count / len(values)
            distance, bound, exact = distance + abs(true - one.count), bound + one.error, exact + one.is_exact
            assert all(bool(inside(torch.tensor(e.value), one, place == len(found) - 1)) for e in one.examples)
            assert len(one.examples) <= 3
    assert exact
    assert 0 < distance < bound / 2  # the bound is strict, the estimate usually much nearer


def test_latents_whose_firings_are_all_known_have_exact_intervals(bare, dense):
    few = [
        j for j in range(LATENTS) if 0 < bare.count[j] == len({e.row for e in [*bare[j].samples, *bare[j].examples]})
    ]
    for latent in few:
        assert all(one.is_exact for one in intervals(bare, latent))
    assert few or int(bare.count[bare.count > 0].min()) > 16


def test_estimated_equal_counts_are_near_equal(bare):
    for latent in range(LATENTS):
        if bare.count[latent] > 100:
            counts = [one.count for one in intervals(bare, latent, "count", 4)]
            assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize("wrong", [{"kind": "octave"}, {"number": 0}, {"number": 101}, {"examples": -1}])
def test_what_cannot_be_asked_is_said(store, wrong):
    with pytest.raises(UserError, match="expected width, count or log"):
        intervals(store, 0, **wrong)


def test_a_latent_that_is_not_there(store, bare):
    for one in (store, bare):
        with pytest.raises(IndexError):
            intervals(one, LATENTS)
    with pytest.raises(IndexError):
        company(store, -1)


def brute_company(dense, kept, latent):
    x = dense.double()[kept]
    fires = x > 0
    out = {}
    for other in range(LATENTS):
        together = int((fires[:, latent] & fires[:, other]).sum())
        if other != latent and together:
            n = int(fires[:, latent].sum()), int(fires[:, other].sum())
            expected = n[0] * n[1] / len(x)
            correlation = float(torch.corrcoef(x[:, [latent, other]].T)[0, 1])
            out[other] = (together, expected, together / expected, correlation, together / (sum(n) - together))
    return out


@pytest.fixture(scope="module")
def kept(store, dense):
    """The kept rows: in these toys all but the first of each block."""
    mask = store.positions > 0
    if int(mask.sum()) != store.manifest["kept_rows"]:
        mask = torch.ones(len(dense), dtype=torch.bool)
    assert int(mask.sum()) == store.manifest["kept_rows"]
    return mask


@pytest.mark.parametrize("latent", range(LATENTS))
def test_company_is_that_of_the_dense_matrix(store, dense, kept, latent):
    expected = brute_company(dense, kept, latent)
    found = company(store, latent, LATENTS)
    assert {one.latent for one in found} == expected.keys()
    for one in found:
        together, chance, lift, correlation, jaccard = expected[one.latent]
        assert one.together == together
        assert (one.expected, one.lift, one.jaccard) == pytest.approx((chance, lift, jaccard), rel=1e-12)
        assert one.correlation == pytest.approx(correlation, abs=1e-12)
    assert [one.correlation for one in found] == sorted((one.correlation for one in found), reverse=True)
    assert company(store, latent, 3) == found[:3]
    by_lift = company(store, latent, 50, by="lift", least=4)
    assert {one.latent for one in by_lift} == {one.latent for one in found if one.together >= 4}
    assert [one.lift for one in by_lift] == sorted((one.lift for one in by_lift), reverse=True)


@pytest.mark.parametrize("pairs", [160, 2400, 2**23])
def test_company_of_all_is_that_of_each(store, monkeypatch, pairs):
    monkeypatch.setattr(company_module, "PAIRS", pairs)
    found = companies(store, 7)
    for latent in range(LATENTS):
        alone = company(store, latent, 7)
        count = len(alone)
        assert found.latents[latent, :count].tolist() == [one.latent for one in alone]
        assert found.together[latent, :count].tolist() == [one.together for one in alone]
        assert found.correlation[latent, :count].tolist() == pytest.approx([one.correlation for one in alone], abs=1e-6)
        assert (found.latents[latent, count:] == -1).all()
        assert found.correlation[latent, count:].isnan().all()


def test_occurrences_count_documents_and_positions(store, dense):
    for latent in range(LATENTS):
        fires = dense[:, latent] > 0
        found = occurrences(store, latent, 5)
        per_document = torch.bincount(store.documents[fires])
        assert found.documents_total == int((per_document > 0).sum())
        expected = sorted((-count, document) for document, count in enumerate(per_document.tolist()) if count)[:5]
        assert [(-one.count, one.document) for one in found.documents] == expected
        for one in found.documents:
            here = torch.where(store.documents == one.document, dense[:, latent], 0.0)
            assert one.value == float(here.max())
            assert one.row == int(here.argmax())
            assert one.share == one.count / int((store.documents == one.document).sum())
        assert found.positions.tolist() == torch.bincount(store.positions[fires], minlength=1).tolist()


def test_without_codes_company_says_why(bare):
    for ask in (
        lambda: company(bare, 0),
        lambda: companies(bare),
        lambda: all_intervals(bare),
        lambda: occurrences(bare, 0),
    ):
        with pytest.raises(UserError, match="none were kept; collect it with a larger limit"):
            ask()


def test_codes_of_another_store_are_told(store, monkeypatch):
    monkeypatch.setitem(store.columns, "count", store.count)
    wrong = store.codebook.count.clone()
    wrong[3] += 1
    monkeypatch.setattr(store.codebook, "count", wrong)
    with pytest.raises(UserError, match="those of another"):
        company(store, 3)
    with pytest.raises(UserError, match="those of another"):
        intervals(store, 3)


@pytest.mark.parametrize("rows", [0, -1, "many", None, 10**9])
def test_a_manifest_with_wrong_rows_is_told(store, monkeypatch, rows):
    monkeypatch.setitem(store.manifest, "kept_rows", rows)
    with pytest.raises(UserError, match="kept rows"):
        company(store, 0)


def test_measures_are_known():
    with pytest.raises(UserError, match="correlation, lift or jaccard"):
        company(None, 0, by="distance")  # type: ignore[arg-type]
