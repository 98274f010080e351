"""On repeated random tokens the split over heads names the heads that probing attention patterns finds in the bundled model.

Probing (attention from each repeated token to the one after its first occurrence; to the token before): induction heads L18H6
.93, L17H4 .79, L17H3 .77; previous-token heads L16H0 .92, L11H1 .82. Nothing here looks at patterns alone: a head counts by
what it carries to the answer.
"""

import pytest
import torch
from unweave.circuits import trace
from unweave.circuits.attention.heads import split_heads
from unweave.circuits.attention.qk import qk_table, split_score
from unweave.circuits.attention.reads import head_reads, induction_pairs, previous_pairs

WORDS, BOS = 40, 0
INDUCTION, PREVIOUS = {(18, 6), (17, 4), (17, 3)}, {(16, 0), (11, 1)}


def repeated(seed, again):
    """BOS, 40 different random tokens, and the first `again` of them once more; the answer; its position in the first pass."""
    words = 1000 + torch.randperm(40_000, generator=torch.Generator().manual_seed(seed))[:WORDS]
    return torch.cat([torch.tensor([BOS]), words, words[:again]]), int(words[again]), 1 + again


def mean_shares(reads, pairs):
    """Each head's own share at the pairs, over all prompts, largest first."""
    every = [{(layer, head): share for layer, head, share in each.heads(pairs(each.tokens), "own")} for each in reads]
    mean = {head: sum(shares[head] for shares in every) / len(every) for head in every[0]}
    return dict(sorted(mean.items(), key=lambda pair: -pair[1]))


@pytest.fixture(scope="module")
def reads(smollm2):
    prompts = [repeated(seed, WORDS - 1) for seed in range(4)]
    return [head_reads(smollm2, tokens, targets=[answer]) for tokens, answer, _ in prompts]


def test_the_heads_that_bring_the_answer_from_after_its_first_occurrence_are_the_induction_heads(reads):
    ranked = mean_shares(reads, induction_pairs)
    assert set(list(ranked)[:3]) == INDUCTION
    assert next(iter(ranked)) == (18, 6)
    assert min(ranked[head] for head in INDUCTION) > 0.75
    assert sorted(ranked.values())[len(ranked) // 2] < 0.05


def test_the_heads_that_bring_it_from_the_token_before_are_the_previous_token_heads(reads):
    ranked = mean_shares(reads, previous_pairs)
    assert set(list(ranked)[:2]) == PREVIOUS
    assert ranked[16, 0] > 0.85 and ranked[11, 1] > 0.7


@pytest.mark.parametrize("layer, head", sorted(INDUCTION))
def test_an_induction_head_finds_its_key_by_what_a_previous_token_head_wrote_there(smollm2, layer, head):
    tokens, _, place = repeated(0, WORDS // 2)
    split = split_score(smollm2, tokens, layer, head, -1, place, max_features=1, layers=range(8, layer))
    best = split.heads(positions=[place - 1])[0]
    assert (best.layer, best.head) == (16, 0)
    assert best.share > 0.5


def test_parts_and_pairs_sum_in_float32(smollm2):
    tokens, answer, place = repeated(0, WORDS // 2)
    graph = trace(smollm2, tokens, targets=[answer], max_features=8)
    split = split_heads(graph, smollm2, layers=[11, 17, 23])
    mine = graph.edges.target == split.target[0]
    edges = graph.edges.weight[mine].double()
    whole = (split.weights.sum(2) + split.bypass)[0]
    assert float((whole - edges).abs().max()) <= 1e-5 * float(edges.abs().sum())
    table = qk_table(smollm2, None, 18, 6, -1, place, graph=graph)
    assert abs(table.sum() - table.score) <= 1e-3 * abs(table.score)
    assert table.score > 4
