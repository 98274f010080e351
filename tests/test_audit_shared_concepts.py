"""Overlap of latents between ways of saying the same: found where it was planted, and nowhere else."""

import json
import re

import pytest
import saes_toys
import torch
from audit_monitor_toys import words
from unweave.audit.shared_concepts import (
    Coded,
    agreement,
    code,
    code_of,
    compared,
    found_share,
    overlaps,
    parallel_texts,
    read_all,
    shared_concepts,
)
from unweave.saes import UserError, features

LATENTS = 60


def planted(n, shared, seed):
    """`n` texts of 8 tokens in two ways: each text has `shared` latents of its own in both ways, the rest by chance."""
    generator = torch.Generator().manual_seed(seed)
    ways = []
    for way in range(2):
        texts = []
        for number in range(n):
            active = torch.rand(8, LATENTS, generator=generator) < 0.02
            for latent in range(shared):
                active[latent % 8, (number * shared + latent) % LATENTS] = True
            tokens = 100 * (way + 1) + torch.arange(8)
            texts.append(Coded(tokens, active, active.any(0).double()))
        ways.append(texts)
    return ways


def every(latents=LATENTS):
    return torch.ones(latents, dtype=torch.bool)


def test_planted_overlap_is_found_and_chance_is_not():
    found = compared(overlaps(*planted(12, 4, 0), every(), False), 0)
    assert found["matched"] > found["mismatched"] + 0.1 and found["low"] > 0.05
    assert found["p"] < 0.001 and found["found"] > 0.4 and found["chance"] == 1 / 12
    nothing = compared(overlaps(*planted(12, 0, 0), every(), False), 0)
    assert nothing["low"] < 0 < nothing["high"] and nothing["p"] > 0.05


def test_p_values_without_overlap_are_uniform():
    ps = [compared(overlaps(*planted(8, 0, seed), every(), False), seed)["p"] for seed in range(40)]
    assert 0.35 < sum(ps) / 40 < 0.65 and sum(p <= 0.1 for p in ps) <= 10


def test_numbers_by_hand():
    overlap = torch.tensor([[0.6, 0.2, 0.0], [0.1, 0.4, 0.4], [0.0, 0.2, 0.8]], dtype=torch.float64)
    found = compared(overlap, 0)
    assert found["matched"] == pytest.approx(0.6)
    assert found["mismatched"] == pytest.approx(0.15)
    assert found["gain"] == pytest.approx(0.45)
    assert found_share(overlap) == pytest.approx((2.5 / 3 + 1) / 2)  # row 1 has a tie; by columns all are found


def test_a_latent_of_a_shared_token_is_no_shared_concept():
    """Token 5, the same in both ways, is on text i alone; the only latent that agrees fires on it."""
    texts = []
    for way in range(2):
        active = torch.zeros(2, 10, dtype=torch.bool)
        active[0, 3], active[1, 6 + way] = True, True
        texts.append([Coded(torch.tensor([5, 50 + way]), active, active.any(0).double())])
    assert float(overlaps(*texts, every(10), True)) == pytest.approx(1 / 3)
    assert float(overlaps(*texts, every(10), False)) == 0.0


def test_agreement_is_the_mean_correlation_over_pairs():
    x = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = x - x.mean(1, keepdim=True)
    z = z / z.norm(dim=1, keepdim=True)
    pairs = [torch.corrcoef(torch.stack([x[a, :, 2], x[b, :, 2]]))[0, 1] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert float(agreement(z)[2]) == pytest.approx(float(sum(pairs)) / 3)


def test_active_latents_are_those_of_the_feature_table():
    model, sae = saes_toys.model(), saes_toys.dictionary(keep={"drop_positions": 1})
    table = features(model, sae, "w5 w6 w7", top=4)
    found = code(model, sae, "w5 w6 w7")
    assert found.tokens.tolist() == [5, 6, 7]
    for place in range(3):
        assert {row.latent for row in table if row.position == place + 1} == set(
            found.active[place].nonzero().squeeze(1).tolist()
        )
    for row in table.latents():
        assert float(found.most[row[0]]) == pytest.approx(row[1], rel=1e-5)


def test_texts_read_together_are_coded_as_each_alone():
    """Of any length; and the model runs on several at a time, once for all dictionaries."""
    model = saes_toys.model()
    saes = [saes_toys.dictionary(seed=seed) for seed in (1, 2)]
    texts = [*words(3, 99, 9, 0, length=5), *words(3, 99, 2, 1, length=40), "w5", "w6 w7"]
    passes = []
    with model.hooks([(saes[0].sites[0], lambda value, hook: passes.append(len(value)))]):
        known = read_all(model, [site for sae in saes for site in sae.sites], texts)
    assert passes == [8, len(texts) - 8]
    for sae in saes:
        for text, read in zip(texts, known, strict=True):
            together, alone = code_of(model, sae, read), code(model, sae, text)
            assert together.tokens.tolist() == alone.tokens.tolist()
            assert torch.equal(together.active, alone.active)
            torch.testing.assert_close(together.most, alone.most, rtol=1e-4, atol=1e-5)


def test_the_same_texts_twice_share_everything_and_the_rest_by_chance():
    """With shared tokens kept, a way compared with itself; two dictionaries, three ways, JSON without NaN."""
    model = saes_toys.model()
    saes = {"one": saes_toys.dictionary(latents=200, seed=1), "two": saes_toys.dictionary(latents=200, seed=2)}
    own, other = words(3, 99, 8, 0, length=12), words(3, 99, 8, 1, length=12)
    found = shared_concepts(model, saes, {"a": own, "again": own, "b": other}, keep_shared_tokens=True)
    assert len(found.rows) == 6
    first = found.rows[0]
    assert (first["a"], first["b"], first["matched"], first["found"]) == ("a", "again", 1.0, 1.0)
    assert first["tokens_matched"] == 1.0 and first["q"] < 0.01
    assert all(row["q"] >= row["p"] for row in found.rows)
    assert found.rows[1]["q"] > 0.05
    assert {len(rows) for rows in found.latents.values()} == {12}
    told = found.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert len(str(found).splitlines()) == 7


def test_texts_that_come_along_are_parallel_and_without_digits_or_repeats():
    texts = parallel_texts()
    assert {len(each) for each in texts.values()} == {24} and len(texts) == 5
    for each in texts.values():
        assert len(set(each)) == 24 and not re.search(r"\d", "".join(each))
    assert {len(each) for each in parallel_texts("code").values()} == {12}
    with pytest.raises(UserError, match="languages or code"):
        parallel_texts("music")


@pytest.mark.parametrize(
    "texts", [{"a": ["w5"] * 8}, {"a": ["w5"] * 8, "b": ["w5"] * 7}, {"a": ["w5"] * 3, "b": ["w5"] * 3}, {}]
)
def test_what_cannot_be_compared_is_refused(texts):
    with pytest.raises(UserError, match="two or more ways"):
        shared_concepts(saes_toys.model(), {"one": saes_toys.dictionary()}, texts)


def test_a_dictionary_of_another_model_is_refused():
    sae = saes_toys.dictionary()
    sae.metadata["model"] = {"name": "another", "fingerprint": "0" * 32}
    with pytest.raises(UserError, match="expected a dictionary of"):
        shared_concepts(saes_toys.model(), {"one": sae}, {"a": ["w5"] * 8, "b": ["w6"] * 8})
