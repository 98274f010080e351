"""The effect of one latent on predictions, against plain hooks on one block at a time, and on the bundled model."""

import math

import pytest
import torch
from saes_toys import MLP_IN, MLP_OUT, RESID, cached, dictionary, model
from torch.testing import assert_close
from unweave.saes import UserError, collect
from unweave.saes.latents.effect.effect_runs import Run, Window, batches, shown_places
from unweave.saes.latents.effect.effects import effects, read

MIDDLE = "blocks.1.hook_resid_mid"
SITES = {
    "stream": (RESID, ""),
    "transcoder": (MLP_IN, MLP_OUT),
    "middle": (MIDDLE, ""),
    "across": (RESID, "blocks.2.mlp.hook_out"),
}


def made(folder, name, way, *, skip=False, **metadata):
    """Model, dictionary and store of a toy; position 0 is left out unless told otherwise."""
    read, write = SITES[way]
    own = dictionary(
        latents=24, k=4, site=read, site_out=write, skip=skip, **{"keep": {"drop_positions": 1}, **metadata}
    )
    shards = cached(folder / "shards", [site for site in (read, write) if site], count=30, longest=30, name=name)
    return model(name), own, collect(own, shards, folder / "store", model(name), progress=False)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return made(tmp_path_factory.mktemp("stream"), "gpt2", "stream")


def plain(net, own, store, latent, example):
    """The definition: one block, two forward passes, a hook that subtracts, losses by hand."""
    start = example.row - example.focus
    stop = start + len(example.tokens)
    block = example.row - int(store.positions[example.row])
    ids = store.tokens[block:stop].long()
    read, write = own.read, own.write
    _, cache = net.run_with_cache(ids[None])
    x, y = cache[read][0], cache[write][0]
    a = own.encode(x).dense(24)[:, latent] * own.kept(torch.arange(len(ids)), {read: x, write: y})
    taken = a[:, None] * own.W_dec[latent]
    hooks = [(write, lambda value, hook: value - taken)]
    if write == MIDDLE:  # the attention's output is where the stream between attention and MLP comes from
        hooks = [("blocks.1.hook_attn_out", lambda value, hook: value - taken)]
    clean = net(ids[None])[0].log_softmax(-1)
    gone = net.run_with_hooks(ids[None], fwd_hooks=hooks)[0].log_softmax(-1)
    return ids, start - block, a, clean, gone


@pytest.mark.parametrize(
    "name, way", [*(("gpt2", way) for way in SITES), ("llama", "stream"), ("llama", "transcoder"), ("gemma2", "middle")]
)
def test_effects_are_those_of_two_plain_runs(tmp_path, name, way):
    net, own, store = made(tmp_path, name, way, skip=way == "transcoder")
    latent = int(store.count.argmax())
    examples = store[latent].examples[:6]
    found = effects(store, latent, net, own, examples, memory_mib=1)
    assert len(found) == len(examples) > 3
    tolerance = (
        dict(rtol=1e-9, atol=1e-9) if name == "gpt2" else dict(rtol=1e-4, atol=1e-5)
    )  # RMSNorm computes in float32
    largest = 0.0
    for example, effect in zip(examples, found, strict=True):
        ids, first, a, clean, gone = plain(net, own, store, latent, example)
        assert (effect.row, effect.focus, effect.tokens) == (example.row, example.focus, example.tokens)
        assert_close(effect.values, a[first:], **tolerance)
        assert effect.values.tolist() == pytest.approx(example.values, rel=2e-3, abs=1e-3)
        for t, place in enumerate(range(first, len(ids))):
            if place == 0:
                assert all(
                    math.isnan(part[t]) for part in (effect.loss_change, effect.probability, effect.probability_without)
                )
                continue
            losses = [-float(run[place - 1, ids[place]]) for run in (clean, gone)]
            assert float(effect.loss_change[t]) == pytest.approx(losses[1] - losses[0], rel=1e-4, abs=tolerance["atol"])
            assert float(effect.probability[t]) == pytest.approx(math.exp(-losses[0]), rel=1e-4)
            assert float(effect.probability_without[t]) == pytest.approx(math.exp(-losses[1]), rel=1e-4)
            largest = max(largest, abs(losses[1] - losses[0]))
        for t, place in enumerate(range(first, len(ids))):
            likely = torch.maximum(clean[place], gone[place]) >= math.log(1e-3)
            change = torch.where(likely, clean[place] - gone[place], 0.0)
            for sign, pairs in ((1, effect.logit_up[t]), (-1, effect.logit_down[t])):
                if not bool((a[: place + 1] > 0).any()):
                    assert pairs == []
                    continue
                best = (sign * change).topk(5)
                assert len(pairs) == int((best.values > 0).sum())
                assert [value for _, value in pairs] == pytest.approx((sign * best.values).tolist()[: len(pairs)], **{
                    "rel": 1e-3, "abs": tolerance["atol"]})  # fmt: skip
                for token, value in pairs:
                    assert float(change[store.vocabulary.index(token)]) == pytest.approx(
                        value, rel=1e-3, abs=tolerance["atol"]
                    )
    assert largest > 1e-3, "something must change for this to be a test"


def test_nothing_changes_before_the_latent_fires(stream):
    net, own, store = stream
    quiet = 0
    for latent in store.count.argsort(descending=True)[:8].tolist():
        for effect in effects(store, latent, net, own):
            fires = (effect.values > 0).nonzero()
            if effect.tokens[0] != "<s>":
                continue
            first = int(fires[0])
            quiet += first > 1
            assert effect.loss_change[1 : first + 1].abs().sum() == 0, "the token it fires on was predicted before"
            assert torch.equal(effect.probability[1 : first + 1], effect.probability_without[1 : first + 1])
            assert effect.logit_up[:first] == [[]] * first
            assert effect.logit_up[first], "from then on it raises something"
            assert effect.logit_down[first]
    assert quiet > 5


def test_noise_of_the_two_runs_is_no_effect(stream):
    """Two runs may differ in their last bits before the latent fires (on other devices they do)."""
    store = stream[2]
    generator = torch.Generator().manual_seed(0)
    clean, gone = (torch.randn(1, 6, 100, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    values = torch.tensor([[0.0, 0.0, 0.0, 2.0, 0.0]], dtype=torch.float64)
    has_fired = torch.tensor([[False, False, False, False, True, True]])
    block = int((store.positions == 0).nonzero()[1])
    effect = next(
        read(store, [Window(block, block, block + 5, block + 3)], Run(clean, gone, values, has_fired), 5, 1e-3)
    )
    assert effect.loss_change[1:4].tolist() == [0.0] * 3
    assert effect.loss_change[4] != 0
    assert torch.equal(effect.probability[1:4], effect.probability_without[1:4])
    assert [bool(pairs) for pairs in effect.logit_up] == [False, False, False, True, True]


def test_any_rows_may_be_asked_and_come_in_their_order(stream):
    net, own, store = stream
    latent = int(store.count.argmax())
    examples = store[latent].examples[:3]
    mixed = [examples[2], examples[0].row, examples[1], 0, len(store.tokens) - 1]
    found = effects(store, latent, net, own, mixed, memory_mib=1, top=2)
    assert [effect.row for effect in found] == [
        examples[2].row,
        examples[0].row,
        examples[1].row,
        0,
        len(store.tokens) - 1,
    ]
    usual = effects(store, latent, net, own, examples)
    assert_close(found[1].loss_change, usual[0].loss_change, equal_nan=True, rtol=1e-9, atol=1e-9)
    assert found[1].tokens == usual[0].tokens
    assert max(len(pairs) for effect in found for pairs in effect.logit_up) == 2
    assert effects(store, latent, net, own, []) == []
    every = effects(store, latent, net, own, examples[:1], top=100, least_probability=1e-300)[0]
    likely = effects(store, latent, net, own, examples[:1], top=100, least_probability=0.05)[0]
    assert len(every.logit_up[every.focus]) + len(every.logit_down[every.focus]) == 100
    assert 0 < len(likely.logit_up[every.focus]) + len(likely.logit_down[every.focus]) <= 40
    assert [effect.row for effect in effects(store, latent, net, own)] == [e.row for e in store[latent].examples]


def test_tokens_that_the_dictionary_does_not_answer_for_stay(tmp_path):
    net, own, store = made(tmp_path, "gpt2", "stream", keep={"drop_positions": 12})
    latent = int(store.count.argmax())
    example = store[latent].examples[0]
    effect = effects(store, latent, net, own, [example])[0]
    dropped = 12 - (example.position - example.focus)
    block = store.tokens[example.row - example.position : example.row + 1].long()
    dense = own.encode(net.run_with_cache(block[None])[1][RESID][0]).dense(24)[:, latent]
    assert (dense[:12] > 0).any(), "it would fire on tokens that are left out"
    assert effect.values[:dropped].abs().sum() == 0
    assert effect.loss_change[1 : dropped + 1].abs().sum() == 0
    assert effect.values[example.focus] == pytest.approx(float(dense[-1]))


def test_what_does_not_belong_together_is_a_user_error(stream):
    net, own, store = stream
    with pytest.raises(UserError, match="dictionary that"):
        effects(store, 0, net, dictionary(latents=24, k=4, seed=1))
    with pytest.raises(UserError, match="expected the model"):
        effects(store, 0, model("llama"), own)
    for latent in (-1, 24):
        with pytest.raises(UserError, match="latent in"):
            effects(store, latent, net, own)
    for row in (-1, len(store.tokens)):
        with pytest.raises(UserError, match="row in"):
            effects(store, 0, net, own, [row])
    example = store[int(store.count.argmax())].examples[0]
    for wrong in (example._replace(focus=example.focus + 500), example._replace(tokens=example.tokens * 50)):
        with pytest.raises(UserError, match="text does not have"):
            effects(store, 0, net, own, [wrong])


def test_batches_hold_like_lengths_within_the_memory():
    windows = [Window(0, max(0, n - 9), n, n - 1) for n in (40, 12, 90, 11, 41, 3)]
    assert batches(windows, 1000, 256) == [[5, 3, 1, 0, 4, 2]]
    assert [len(batch) for batch in batches(windows, 20_000, 12)] == [2, 2, 2]
    assert batches(windows, 10**9, 1) == [[5], [3], [1], [0], [4], [2]]
    assert batches([], 1000, 1) == []
    assert shown_places([Window(10, 10, 12, 11), Window(20, 23, 27, 24)]).tolist() == [
        [-1, 0, 1, -1, -1],
        [2, 3, 4, 5, 6],
    ]


def test_a_latent_that_promotes_a_token_helps_to_predict_it(smollm2, tmp_path):
    """On the bundled model: an "SAE" with one latent that writes the direction of " Paris" where the text names France."""
    from unweave.saes import Dictionary, DictionaryConfig, cache

    site = "blocks.29.hook_resid_post"
    texts = ["The capital of France is Paris. The capital of France is Paris."] * 2
    shards = cache(smollm2, texts, [site], tmp_path / "shards", dtype=torch.float32, progress=False)
    paris = smollm2.tokenizer(" Paris")["input_ids"][0]
    W_U = smollm2.unembed.W_U.float()
    W_dec = (W_U[:, paris] - W_U.mean(1))[None].clone()
    x = shards[site][:]
    W_enc = torch.nn.functional.normalize(x[5:6] - x[1:].mean(0), dim=1)
    tensors = {"W_enc": W_enc, "b_enc": torch.zeros(1), "W_dec": W_dec, "b_dec": torch.zeros(576)}
    own = Dictionary(DictionaryConfig(site=(site,), latents=1, k=1), tensors)
    store = collect(own, shards, tmp_path / "store", smollm2, progress=False)
    effect = effects(store, 0, smollm2, own, [6])[0]
    assert effect.tokens[effect.focus] == " Paris"
    assert float(effect.loss_change[effect.focus]) > 0
    assert effect.probability[effect.focus] > effect.probability_without[effect.focus]
