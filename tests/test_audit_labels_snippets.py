"""What a label is made from and judged on: whole documents apart, every strength, and negatives in which the latent is silent."""

import audit_labels_toys as toy
import pytest
import torch
from unweave.audit.labels.negatives import material, neighbours
from unweave.audit.labels.snippets import Draws, StoreRows, one_per_block, positives, split
from unweave.saes import UserError

LATENTS = (toy.CAT, toy.NUMBER, toy.OF_THE, toy.NOISE, toy.DOG)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return StoreRows(toy.store(tmp_path_factory.mktemp("store")))


def test_no_document_both_explains_and_scores(rows):
    """Over all latents at once, so that the label of one can be scored on the snippets of another."""
    explain, score = set(), set()
    for latent in LATENTS:
        found = material(rows, latent, Draws())
        explain |= {each.document for each in (*found.explain, *found.contrast)}
        score |= {each.document for each in (*found.positive, *found.random, *found.hard)}
    assert len(explain) > 10 and len(score) > 10
    assert not explain & score


def test_split_is_by_whole_documents_and_in_halves():
    documents = torch.arange(21).repeat_interleave(3)
    halves = split(documents, 5).view(21, 3)
    assert (halves == halves[:, :1]).all()
    assert int(halves[:, 0].sum()) == 10
    assert not torch.equal(halves, split(documents, 6).view(21, 3))


def test_positives_fire_and_are_marked_where_they_do(rows):
    for latent in (toy.CAT, toy.NUMBER):
        firing = set(rows.book.firings(latent).rows.tolist())
        for each in material(rows, latent, Draws()).positive:
            start = int(rows.windows(torch.tensor([each.row]))[0])
            assert {start + place for place in each.marks} == firing & set(range(start, start + len(each.tokens)))
            assert each.value > 0


def test_scored_positives_come_from_every_bin(rows):
    found = positives(rows, toy.NUMBER, True, 12, torch.Generator().manual_seed(0))
    values = torch.tensor([each.value for each in found])
    bins = torch.floor(values.log2() * 2)
    assert len(bins.unique()) >= 8  # of 12 places; the strongest 12 lie in 3
    strongest = positives(rows, toy.NUMBER, True, 12, torch.Generator().manual_seed(0), strongest=12)
    assert len(torch.floor(torch.tensor([each.value for each in strongest]).log2() * 2).unique()) <= 4


def test_a_block_gives_one_positive(rows):
    found = positives(rows, toy.NUMBER, False, 60, torch.Generator().manual_seed(0), strongest=30)
    blocks = [each.row // toy.BLOCK for each in found]
    assert len(found) == 60 and len(set(blocks)) == 60
    assert one_per_block(torch.tensor([5, 40, 7, 33]), rows.block).tolist() == [0, 1]


def test_negatives_are_silent_throughout(rows):
    for latent in LATENTS:
        firing = set(rows.book.firings(latent).rows.tolist())
        found = material(rows, latent, Draws())
        negatives = [*found.contrast, *found.random, *found.hard]
        assert len(negatives) >= 40 or latent in (toy.NUMBER, toy.NOISE)
        for each in negatives:
            start, stop = (int(edge) for edge in rows.windows(torch.tensor([each.row])))
            assert not firing & set(range(start, stop))


def test_hard_negatives_look_right(rows):
    """A neighbour fires there, or it is the latent's own token in another context."""
    found = material(rows, toy.OF_THE, Draws())
    same = [each for each in found.hard if each.kind == "same_token"]
    assert same and all(each.tokens[each.marks[0]] == " the" for each in same)
    hard = material(rows, toy.CAT, Draws()).hard
    near = [each for each in hard if each.kind == "neighbour"]
    fires = {row for other in neighbours(rows, toy.CAT) for row in rows.book.firings(other).rows.tolist()}
    assert near and {each.row for each in near} <= fires


def test_a_latent_with_few_places_is_told_so(rows):
    for latent in (toy.DEAD, toy.RARE):
        assert "places" in str(material(rows, latent, Draws()).lacking)
    assert "silent windows" in str(material(rows, toy.DENSE, Draws()).lacking)
    assert material(rows, toy.CAT, Draws()).lacking is None


def test_draws_depend_on_seed_and_latent_alone(rows):
    assert material(rows, toy.CAT, Draws()) == material(rows, toy.CAT, Draws())
    assert material(rows, toy.CAT, Draws(seed=1)).positive != material(rows, toy.CAT, Draws()).positive


def test_what_cannot_be_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="two documents or more"):
        StoreRows(toy.store(tmp_path, documents=1))
    with pytest.raises(UserError, match="expected at least"):
        Draws(explain=3, least=8)
