"""Parts: activation rules, codes, cross-layer transcoders, and dictionaries turned into parts say the same as themselves."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from toys import clt, part, transcoder
from unweave.circuits.parts import BLOCK, Part, Rule, parts
from unweave.saes.dictionary import Dictionary
from unweave.saes.dictionary_config import DictionaryConfig
from unweave.saes.errors import UserError

IN, OUT = "blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out"


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(codes, latents):
    return torch.zeros(len(codes.values), latents, dtype=codes.values.dtype).scatter_add_(
        1, codes.indices, codes.values
    )


def by_definition(rule, row):
    """One token, latent by latent."""
    order = sorted(range(len(row)), key=lambda j: -row[j])
    active = {
        "topk": lambda j: j in order[: rule.k] and row[j] > 0,
        "relu": lambda j: row[j] > 0,
        "jumprelu": lambda j: row[j] > rule.threshold[j],
    }[rule.kind]
    return [row[j] if active(j) else 0.0 for j in range(len(row))]


RULES = {
    "topk": Rule("topk", k=4),
    "topk of all": Rule("topk", k=99),
    "relu": Rule("relu"),
    "jumprelu": Rule("jumprelu", threshold=randn(30, seed=1).abs()),
    "jumprelu below zero": Rule("jumprelu", threshold=randn(30, seed=2)),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_are_their_definitions(name):
    pre = randn(9, 30)
    pre[0] = -pre[0].abs() - 10  # nothing is active
    expected = torch.tensor([by_definition(RULES[name], row) for row in pre.tolist()], dtype=torch.float64)
    assert torch.equal(RULES[name](pre), expected)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("tokens", [1, 7, BLOCK + 3])
def test_codes_are_the_dense_activations(name, tokens):
    """As wide as the fullest token needs, empty slots 0, across blocks of tokens with different widths."""
    mine, x = part(IN, OUT, latents=30, rule=RULES[name]), randn(tokens, 64, seed=3)
    x[0] = 0
    codes, expected = mine.encode(x), RULES[name](x @ mine.W_enc.T + mine.b_enc)
    torch.testing.assert_close(dense(codes, 30), expected, rtol=0, atol=1e-12)
    assert codes.values.shape == codes.indices.shape == (tokens, max(1, int((expected != 0).sum(1).max())))
    assert int(codes.indices.min()) >= 0 and int(codes.indices.max()) < 30


def test_a_token_without_active_latents_has_one_empty_slot():
    mine = replace(part(IN, OUT, rule=Rule("relu")), b_enc=torch.full((60,), -1e3, dtype=torch.float64))
    assert mine.encode(randn(3, 64)).values.tolist() == [[0.0]] * 3


@pytest.mark.parametrize("arguments", [("topk",), ("topk", -1), ("jumprelu",)])
def test_incomplete_rules_are_refused(arguments):
    with pytest.raises(UserError, match="complete it"):
        Rule(*arguments)


def test_what_a_part_is():
    sae, other = part("blocks.2.hook_resid_post"), part(IN, OUT)
    assert (sae.is_sae, sae.layer, sae.latents) == (True, 2, 60)
    assert (other.is_sae, other.layer, other.latents) == (False, 1, 60)


def test_a_cross_layer_transcoder_is_a_part_per_layer():
    given = clt()
    assert [each.layer for each in given] == [0, 1, 2]
    assert [list(each.W_dec) for each in given] == [[f"blocks.{j}.mlp.hook_out" for j in range(i, 3)] for i in range(3)]
    assert parts(given) == given and parts([given, [given[0]]]) == [*given, given[0]]
    assert parts(each for each in given) == given and parts([]) == []


def test_fingerprints_name_the_weights():
    mine = part(IN, OUT, skip=True)
    changed = [
        replace(mine, **{name: getattr(mine, name) + 1.0}) for name in ("W_enc", "b_enc", "W_skip")
    ] + [
        replace(mine, W_dec={OUT: mine.W_dec[OUT] * 2}),
        replace(mine, b_dec={OUT: mine.b_dec[OUT] * 2}),
        replace(mine, rule=Rule("topk", k=6)),
        replace(mine, rule=Rule("relu")),
        replace(mine, rule=Rule("jumprelu", threshold=torch.ones(60))),
        replace(mine, rule=Rule("jumprelu", threshold=torch.zeros(60))),
        replace(mine, read="blocks.0.mlp.hook_in"),
    ]  # fmt: skip
    found = [each.fingerprint for each in (mine, *changed)]
    assert len(set(found)) == len(found)
    assert part(IN, OUT, skip=True).fingerprint == mine.fingerprint
    assert replace(mine, known_fingerprint="abc").fingerprint == "abc"


def sae_dictionary():
    tensors = {
        "W_enc": randn(80, 64),
        "b_enc": randn(80, seed=1),
        "W_dec": randn(80, 64, seed=2),
        "b_dec": randn(64, seed=3),
    }
    site = "blocks.1.hook_resid_post"
    return Dictionary(DictionaryConfig(site=(site,), latents=80, k=6), tensors, {"keep": {"drop_positions": 2}})


@pytest.mark.parametrize(
    "make", [sae_dictionary, transcoder, lambda: transcoder(skip=True, keep={"drop_positions": 3})]
)
def test_a_dictionary_and_its_part_say_the_same(make):
    dictionary, x = make(), randn(11, 64, seed=5)
    (mine,) = parts(dictionary)
    ours, theirs = mine.encode(x), dictionary.encode(x)
    latents = len(dictionary.W_enc)
    torch.testing.assert_close(dense(ours, latents), dense(theirs, latents), rtol=1e-12, atol=1e-12)
    output = dense(ours, latents) @ mine.W_dec[dictionary.write] + mine.b_dec[dictionary.write]
    output = output if mine.W_skip is None else output + x @ mine.W_skip.T
    torch.testing.assert_close(output, dictionary(x), rtol=1e-12, atol=1e-11)
    assert (mine.read, list(mine.W_dec), mine.is_sae) == (dictionary.read, [dictionary.write], dictionary.is_sae)
    assert mine.fingerprint == dictionary.fingerprint and mine.keep == dictionary.keep_rule
    where = (torch.arange(11), {mine.read: x})
    assert torch.equal(mine.kept(*where), dictionary.kept(*where))


def test_conversion_keeps_what_the_dictionary_says_of_itself():
    dictionary = transcoder(metadata={"model": {"name": "toy", "fingerprint": "ab" * 8}})
    (mine,) = parts([dictionary])
    assert mine.model == {"name": "toy", "fingerprint": "ab" * 8} and mine.folder == dictionary.folder
    assert not mine.W_enc.requires_grad


@pytest.mark.parametrize("given", [5, "blocks.1", torch.zeros(3), [5], {"a": 1}])
def test_what_is_no_dictionary_is_refused(given):
    with pytest.raises(UserError, match="expected a Dictionary, a Part or a list of them"):
        parts(given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"read": "hook_embed"}, "sites inside blocks"),
        ({"W_dec": {}, "b_dec": {}}, "sites inside blocks.*nothing"),
        ({"W_dec": {OUT: randn(59, 64)}}, "of 60 latents"),
        ({"b_enc": randn(61)}, "of 60 latents"),
        ({"b_dec": {IN: randn(64)}}, "of 60 latents"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(change, message):
    mine = part(IN, OUT)
    fields = {name: getattr(mine, name) for name in ("read", "W_enc", "b_enc", "W_dec", "b_dec", "rule")}
    with pytest.raises(UserError, match=message):
        Part.__post_init__(
            SimpleNamespace(**(fields | change))
        )  # in tests the types of Part() catch some of them first
