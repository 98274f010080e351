"""Maps of decoder directions and matchings of latents, against their definitions."""

import itertools

import fakes
import pytest
import saes_toys
import torch
from unweave.saes import Codes
from unweave.saes.errors import UserError
from unweave.saes.latents.across import maps, matching
from unweave.saes.latents.across.maps import map_columns, map_layout, nearest, read_map, unit_rows, write_map
from unweave.saes.latents.across.matching import Side, correlations, match_activations, match_decoders, one_to_one
from unweave.saes.latents.codes.codebook import Codebook
from unweave.saes.latents.codes.codes_file import CodesWriter


def clustered(latents: int = 120, d: int = 16, groups: int = 6, seed: int = 0):
    """A dictionary whose decoder rows stand close around a few centres; row i belongs to centre i mod groups."""
    generator = torch.Generator().manual_seed(seed)
    own = saes_toys.dictionary(d, latents, dtype=torch.float32)
    centres = torch.nn.functional.normalize(torch.randn(groups, d, generator=generator), dim=1)
    noise = torch.randn(latents, d, generator=generator)
    size = torch.rand(latents, 1, generator=generator) + 0.5
    own.W_dec.data = (centres[torch.arange(latents) % groups] + 0.05 * noise) * size
    return own


def test_nearest_are_the_largest_cosines_with_the_row_itself_first(monkeypatch):
    unit = unit_rows(torch.randn(57, 5, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(maps, "BLOCK", 57 * 10)
    near, distance = nearest(unit, 8)
    cosine = unit.double() @ unit.double().T
    cosine.fill_diagonal_(3.0)
    wanted = cosine.topk(8, dim=1)
    assert torch.equal(near, wanted.indices)
    torch.testing.assert_close(distance[:, 1:], 1 - wanted.values[:, 1:].float(), atol=2e-6, rtol=0)
    assert not distance[:, 0].any()


def test_a_row_comes_first_among_its_equals():
    unit = unit_rows(torch.ones(9, 4))
    near, distance = nearest(unit, 3)
    assert torch.equal(near[:, 0], torch.arange(9))
    assert all(len(set(row)) == 3 for row in near.tolist())
    torch.testing.assert_close(distance, torch.zeros(9, 3), atol=1e-6, rtol=0)


@pytest.mark.skipif(not maps.has_umap(), reason="umap-learn is missing: pip install umap-learn")
def test_umap_keeps_groups_together_and_repeats_itself():
    heard = []
    own = clustered()
    layout = map_layout(own, tell=lambda stage, share: heard.append((stage, share)))
    assert layout.method == "umap" and layout.settings["neighbours"] == 15
    groups = torch.arange(120) % 6
    distance = torch.cdist(layout.xy, layout.xy).fill_diagonal_(torch.inf)
    assert bool((groups[distance.argmin(1)] == groups).all())
    assert torch.equal(map_layout(own).xy, layout.xy)
    assert not torch.equal(map_layout(own, seed=1).xy, layout.xy)
    assert {stage for stage, _ in heard} == {"neighbours", "layout"} and all(0 <= share <= 1 for _, share in heard)


def test_pca_is_the_plane_of_largest_variance():
    own = clustered()
    layout = map_layout(own, "pca")
    unit = unit_rows(own.W_dec)
    _, size, axes = torch.linalg.svd((unit - unit.mean(0)).double())
    wanted = ((unit - unit.mean(0)).double() @ axes[:2].T).float()
    torch.testing.assert_close(layout.xy.abs(), wanted.abs(), atol=1e-5, rtol=0)
    assert layout.settings["variance"] == pytest.approx(float((size[:2] ** 2).sum() / (size**2).sum()), abs=1e-5)


def test_without_umap_the_layout_is_pca_and_says_so(monkeypatch):
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    layout = map_layout(clustered())
    assert layout.method == "pca" and layout.settings["because"] == "umap-learn is not installed"
    assert torch.equal(layout.xy, map_layout(clustered(), "pca").xy)


@pytest.mark.parametrize("latents, d", [(1, 3), (2, 2), (3, 1)])
def test_the_smallest_dictionaries_have_a_map(latents, d):
    layout = map_layout(saes_toys.dictionary(d, latents, k=1))
    assert layout.xy.shape == (latents, 2) and bool(layout.xy.isfinite().all())


def test_bad_settings_and_bad_weights_are_told(monkeypatch):
    own = clustered()
    for wrong in ({"method": "tsne"}, {"neighbours": 1}, {"min_dist": 2.0}):
        with pytest.raises(UserError, match="expected"):
            map_layout(own, **wrong)
    own.W_dec.data[3, 2] = torch.nan
    with pytest.raises(UserError, match="finite"):
        map_layout(own, "pca")


def test_a_map_is_kept_with_its_store_and_with_no_other(tmp_path):
    store = fakes.store(tmp_path / "one", 120, fingerprint="a" * 16)
    assert read_map(store) is None and map_columns(store) == {}
    layout = map_layout(clustered(), "pca")
    write_map(store, layout, "a" * 16)
    kept = read_map(store)
    assert kept is not None and torch.equal(kept.xy, layout.xy) and kept[1:] == layout[1:]
    assert torch.equal(map_columns(store)["map_y"], layout.xy[:, 1])
    with pytest.raises(UserError, match="of another"):
        write_map(store, layout, "b" * 16)
    other = fakes.store(tmp_path / "other", 120, fingerprint="b" * 16)
    (other.folder / "map.safetensors").write_bytes((store.folder / "map.safetensors").read_bytes())
    with pytest.raises(UserError, match="something else"):
        read_map(other)
    (store.folder / "map.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="could not read"):
        read_map(store)


def test_decoders_are_matched_by_their_largest_cosine(monkeypatch):
    monkeypatch.setattr(matching, "PRODUCTS", 200)
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(23, 6, generator=generator), torch.randn(31, 6, generator=generator)
    a[4] = 0
    found = match_decoders(a, b)
    cosine = torch.nn.functional.normalize(a.double(), dim=1) @ torch.nn.functional.normalize(b.double(), dim=1).T
    for side, table in ((found.a, cosine), (found.b, cosine.T)):
        alive = side.best[:, 0] >= 0
        torch.testing.assert_close(side.score[alive].double(), table[alive].topk(5, dim=1).values, atol=1e-6, rtol=0)
        assert torch.equal(side.best[alive], table[alive].topk(5, dim=1).indices)
    assert (
        found.a.best[4].tolist() == [-1] * 5 and found.pair_a[4] == -1 and found.b.best[found.b.best == 4].numel() == 0
    )


def test_a_shuffled_dictionary_is_found_again_and_chance_is_far_below():
    generator = torch.Generator().manual_seed(0)
    a, order = torch.randn(200, 64, generator=generator), torch.randperm(200, generator=generator)
    found = match_decoders(a, a[order] * 3)
    assert torch.equal(order[found.pair_a], torch.arange(200)) and torch.equal(
        found.pair_a[found.pair_b], torch.arange(200)
    )
    torch.testing.assert_close(found.a.score[:, 0], torch.ones(200))
    assert len(found.floor) == 200 and float(found.floor.max()) < 0.7
    flipped = match_decoders(a, -a)
    assert float(flipped.a.score.max()) < 0.7  # the opposite direction is no match


def test_widths_that_differ_cannot_be_matched_by_direction():
    with pytest.raises(ValueError, match="one width"):
        match_decoders(torch.ones(2, 3), torch.ones(2, 4))


def book(folder, dense: torch.Tensor) -> Codebook:
    """A Codebook of dense values `[row latent]`."""
    folder.mkdir()
    writer = CodesWriter(folder, dense.shape[1], 64)
    indices = torch.arange(dense.shape[1]).expand(len(dense), -1)
    writer.append(0, Codes(dense, indices))
    writer.finish()
    opened = Codebook.open(folder)
    assert opened is not None
    return opened


def sparse(rows: int, latents: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, latents, generator=generator) * (torch.rand(rows, latents, generator=generator) < 0.2)


def test_activations_are_matched_by_their_exact_correlation(tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "SUMS", 40)
    monkeypatch.setattr(matching, "SLOTS", 50)
    a, b = sparse(301, 13, 0), sparse(301, 17, 1)
    b[:, 3] = a[:, 7] * 2
    a[:, 5], b[:, 8] = 0, 1.0  # silent; always on
    one, other = book(tmp_path / "a", a), book(tmp_path / "b", b)
    with torch.no_grad():
        table = torch.corrcoef(torch.cat([a, b], 1).double().T)[:13, 13:].nan_to_num(0)
    torch.testing.assert_close(correlations(one, other, torch.arange(13)), table, atol=1e-9, rtol=0)
    shifted = torch.corrcoef(torch.cat([a, b.roll(-100, 0)], 1).double().T)[:13, 13:].nan_to_num(0)
    torch.testing.assert_close(correlations(one, other, torch.arange(13), 100), shifted, atol=1e-9, rtol=0)
    found = match_activations(one, other)
    for side, wanted in ((found.a, table), (found.b, table.T)):
        best = wanted.topk(5, dim=1)
        known = best.values > 0
        torch.testing.assert_close(side.score[known].double(), best.values[known], atol=1e-6, rtol=0)
        assert torch.equal(side.best[known], best.indices[known])
        assert bool((side.best[~known] == -1).all())
    assert found.pair_a[7] == 3 and found.pair_b[3] == 7 and found.pair_a[5] == -1 and found.pair_b[8] == -1


def test_texts_of_other_lengths_cannot_be_matched(tmp_path):
    with pytest.raises(ValueError, match="one text"):
        match_activations(book(tmp_path / "a", sparse(10, 3, 0)), book(tmp_path / "b", sparse(11, 3, 0)))


@pytest.mark.parametrize("seed", range(8))
def test_one_to_one_takes_the_strongest_pair_first(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 12, (9, 11), generator=generator) / 10  # with ties
    sides = []
    for table in (scores, scores.T):
        best = table.topk(4, dim=1)
        sides.append(
            Side(
                best.indices.masked_fill(best.values < 0.3, -1), best.values.masked_fill(best.values < 0.3, -torch.inf)
            )
        )
    pair_a, pair_b = one_to_one(*sides)
    allowed = {(i, int(j)) for i, row in enumerate(sides[0].best) for j in row if j >= 0}
    allowed |= {(int(i), j) for j, row in enumerate(sides[1].best) for i in row if i >= 0}
    wanted: dict[int, int] = {}
    for i, j in sorted(itertools.product(range(9), range(11)), key=lambda ends: (-float(scores[ends]), ends)):
        if (i, j) in allowed and i not in wanted and j not in wanted.values():
            wanted[i] = j
    assert {i: int(j) for i, j in enumerate(pair_a) if j >= 0} == wanted
    assert {int(i): j for j, i in enumerate(pair_b) if i >= 0} == wanted


def test_no_candidates_no_pairs():
    nothing = Side(torch.full((3, 2), -1), torch.full((3, 2), -torch.inf))
    assert one_to_one(nothing, nothing)[0].tolist() == [-1, -1, -1]
