"""Prompts: attribution against finite differences, surprise against counting, controls against the edit, streams against generate."""

import math

import fakes
import pytest
import torch
from saes_toys import RESID, cached, dictionary
from saes_toys import model as toy
from toys import LAYERS, WIDTH, boot, clt, part, prompt, transcoder
from unweave.circuits import Edit, Node, WhyNot, generate, intervene
from unweave.circuits.experiment.constrained import freezing, hold
from unweave.circuits.experiment.edits import Catalogue
from unweave.circuits.prompts.rank import rank_features
from unweave.circuits.prompts.steering import divergence, steer_prompt
from unweave.circuits.prompts.stream import stream
from unweave.circuits.prompts.surprise import surprise
from unweave.circuits.prompts.targets import target_value
from unweave.circuits.prompts.text import chat_text, prompt_ids
from unweave.circuits.prompts.wishes import Wish, latent_edits
from unweave.circuits.prompts.written import directions, other_rows, push, record
from unweave.saes.errors import UserError
from unweave.saes.latents.gather.collect import collect

MLP = "blocks.1.mlp"
SITES = {
    "the stream": lambda: part("blocks.1.hook_resid_post"),
    "the middle of a block": lambda: part("blocks.1.hook_resid_mid"),
    "an attention's output": lambda: part("blocks.1.hook_attn_out"),
    "the heads' outputs": lambda: part("blocks.1.attn.hook_z"),
    "an MLP's input": lambda: part(f"{MLP}.hook_in"),
    "an MLP's output": lambda: part(f"{MLP}.hook_out"),
    "a transcoder": lambda: part(f"{MLP}.hook_in", f"{MLP}.hook_out"),
    "a skip transcoder": lambda: transcoder(1, skip=True),
    "a cross-layer transcoder": lambda: clt()[0],
}
CHAT = "{% for m in messages %}w3 {{ m['content'] }} w4 {% endfor %}{% if add_generation_prompt %}w5{% endif %}"


def latent(dictionary, index, position=3):
    return Node("latent", 1, position, index, 0.0, f"latent {index}", site=dictionary.read)._replace(
        layer=int(dictionary.read.split(".")[1])
    )


def raw_final(model, tokens, position, edits, dictionaries):
    """Logits before any soft-cap at a position of an edited run."""
    seen = intervene(model, tokens, edits, dictionaries, read=["hook_unembed"]).activations
    return seen["hook_unembed"][position]


# Features of a prompt


PLACES = [("gpt2", place) for place in SITES] + [("neox", "a cross-layer transcoder")]


@pytest.mark.parametrize(("name", "place"), PLACES)  # these models compute in float64 throughout
def test_attribution_is_the_slope_of_the_real_model(name, place):
    """Push every active latent of a token up and down in the live model: attribution = value x slope."""
    model, tokens, own = boot(name), prompt(7), SITES[place]()
    found = rank_features(model, own, tokens, target=(5, 9), position=5, rank="attribution", top=99)
    checked, step = 0, 1e-4
    for position in (1, 4, 6):
        for row in found.features[position][:2]:
            ends = [
                float(target_value((5, 9), raw_final(model, tokens, 5, Edit(latent(own, row.latent, position), "steer", d), own)))
                for d in (step, -step)
            ]  # fmt: skip
            slope = (ends[0] - ends[1]) / (2 * step)
            assert row.attribution == pytest.approx(row.value * slope, rel=1e-5, abs=1e-9)
            checked += abs(row.attribution) > 1e-4
        assert position < 6 or all(row.attribution == 0 for row in found.features[position])  # later than the target
    assert checked >= 3


OTHERS = [(name, "the stream") for name in ("llama", "gemma2", "qwen3", "phi")]
OTHERS += [
    ("opt", place) for place in ("the middle of a block", "the heads' outputs", "an MLP's input", "a transcoder")
]


@pytest.mark.parametrize(("name", "place"), OTHERS)
def test_attribution_holds_where_a_part_computes_in_float32(name, place):
    """And before a soft-cap: Gemma 2's logits are capped at 3."""
    model, tokens, own = boot(name), prompt(7), SITES[place]()
    found = rank_features(model, own, tokens, target=5, rank="attribution")
    rows = sorted((row for some in found.features[1:] for row in some), key=lambda row: -abs(row.attribution))
    for row in rows[:2]:
        ends = [
            float(target_value((5,), raw_final(model, tokens, -1, Edit(latent(own, row.latent, row.position), "steer", d), own)))
            for d in (1e-2, -1e-2)
        ]  # fmt: skip
        assert row.attribution == pytest.approx(row.value * (ends[0] - ends[1]) / 2e-2, rel=1e-2)
    assert found.value == pytest.approx(float(target_value((5,), raw_final(model, tokens, -1, [], own))), abs=1e-9)


def test_what_is_no_latent_is_told_too():
    """Latents and rest of a token together are the slope of scaling what stands there."""
    model, tokens, site = boot("gpt2"), prompt(7), f"{MLP}.hook_out"
    own = part(site)
    found = rank_features(model, own, tokens, target=5, top=99)

    def scaled(by, position):
        def change(x, hook):
            x = x.clone()
            x[0, position] *= by
            return x

        final = []
        hooks = [(site, change), ("hook_unembed", lambda x, hook: final.append(x[0, -1]))]
        model.run_with_hooks(tokens[None], fwd_hooks=hooks)
        return float(target_value((5,), final[0]))

    for position in (1, 4):
        slope = (scaled(1 + 1e-5, position) - scaled(1 - 1e-5, position)) / 2e-5
        latents = sum(row.attribution for row in found.features[position])
        assert latents + found.rest[position] == pytest.approx(slope, rel=1e-4)
        assert abs(found.rest[position]) > 1e-3


def test_features_are_the_codes_and_totals_sum_over_kept_tokens():
    model, own = toy(), dictionary(keep={"drop_positions": 2})
    text = "w3 w9 w50 w7 w9 w50 w8"
    found = rank_features(model, own, text, rank="activation", top=99)
    x = model.run_with_cache(found.ids[None])[1][RESID][0]
    dense = own.encode(x).dense(24)
    assert found.tokens[:2] == ["<s>", "w3"] and found.kept == [False] * 2 + [True] * 6
    for position, rows in enumerate(found.features):
        order = dense[position].argsort(descending=True)[: int((dense[position] > 0).sum())]
        assert [row.latent for row in rows] == order.tolist()
        assert [row.value for row in rows] == pytest.approx(dense[position, order].tolist())
    kept = dense[2:]
    assert [total.latent for total in found.totals] == kept.amax(0).argsort(descending=True)[
        : int((kept > 0).any(0).sum())
    ].tolist()
    for total in found.totals:
        rows = [row for some in found.features[2:] for row in some if row.latent == total.latent]
        assert total.tokens == len(rows) and total.value == max(row.value for row in rows)
        assert total.attribution == pytest.approx(sum(row.attribution for row in rows))
        assert float(dense[total.position, total.latent]) == pytest.approx(total.value)
    shares = model(found.ids[None])[0, -1].softmax(-1)
    assert [each.id for each in found.next_tokens] == shares.topk(10).indices.tolist()
    assert found.next_tokens[0].probability == pytest.approx(float(shares.max()))
    assert found.target == found.next_tokens[0].token and found.position == 7
    few = rank_features(model, own, text, top=2).features[4]
    assert [row[:3] for row in few] == [row[:3] for row in found.features[4][:2]]


def test_a_prompt_costs_one_forward_pass_and_leaves_the_model_alone(monkeypatch):
    model, own = toy(), dictionary()
    rank_features(model, own, "w3 w4")
    before, runs, run = model(prompt()[None]), [], type(model).run_with_hooks
    monkeypatch.setattr(type(model), "run_with_hooks", lambda *a, **k: runs.append(1) or run(*a, **k))
    rank_features(model, own, "w3 w4 w5")
    assert len(runs) == 1
    assert all(weight.grad is None and not weight.requires_grad for weight in model.parameters())
    torch.testing.assert_close(model(prompt()[None]), before, rtol=0, atol=0)


def test_targets_are_tokens_pairs_and_whys():
    model, own, text = toy(), dictionary(), "w3 w9 w50"
    by_id, by_text = (rank_features(model, own, text, target=target) for target in (17, "w17"))
    assert by_id.target == "w17" and by_id.value == by_text.value and by_id.target_ids == (17,)
    logits = model(by_id.ids[None])[0, -1]
    assert by_id.value == pytest.approx(float(logits[17] - logits.mean()))
    pairs = [rank_features(model, own, text, target=target) for target in ("w17||w20", ("w17", 20))]
    assert pairs[0].target == "w17 − w20" and pairs[0].value == pairs[1].value
    other = rank_features(model, own, text, target=20)
    assert pairs[0].value == pytest.approx(by_id.value - other.value)
    best = rank_features(model, own, text)
    assert rank_features(model, own, text, target=WhyNot("w17")).value == pytest.approx(best.value - by_id.value)


# Surprise


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    own = dictionary(keep={"drop_positions": 1})
    shards = cached(folder / "shards", count=30)
    return own, shards, collect(own, shards, folder / "store", toy(), progress=False)


def test_surprise_bounds_hold_against_counting(made):
    own, shards, store = made
    x = shards[RESID][:].float()  # as collect reads them
    dense = own.encode(x).dense(24)[own.kept(shards.positions, {RESID: x})]
    latents = torch.arange(24).repeat(6)
    values = torch.rand(len(latents), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6 + 1e-3
    values[:24] = store.max_value.double()
    asked = values > 0
    latents, values = latents[asked], values[asked]
    found = surprise(store, latents, values)
    finite = 0
    for j, v, bits, low, high in zip(latents.tolist(), values.tolist(), *(c.tolist() for c in found), strict=True):
        number = int((dense[:, j].float() >= torch.tensor(v).float()).sum())
        truth = -math.log2(number / len(dense)) if number else math.inf
        assert low - 1e-9 <= truth <= high + 1e-9
        assert low - 1e-9 <= bits <= high + 1e-9
        assert high - low < 20 or not number
        finite += number > 0
    assert finite > 50
    corpus = math.log2(len(dense))
    most = surprise(store, torch.tensor([0]), store.max_value[:1].double() * 2)
    assert (float(most.bits), float(most.low), float(most.high)) == (
        pytest.approx(corpus),
        pytest.approx(corpus),
        math.inf,
    )
    assert float(surprise(store, torch.tensor([0]), store.max_value[:1]).high) == pytest.approx(corpus)
    assert surprise(store, torch.tensor([0]), torch.zeros(1)).bits.isnan().all()


def test_surprise_interpolates_within_a_bin(tmp_path, monkeypatch):
    """By hand: 3 tokens above the bin and 8 in it; a quarter through its log width 6 of the 8 are at least as strong."""
    counts = torch.zeros(1, 56, dtype=torch.int64)
    counts[0, 24], counts[0, 30] = 8, 3  # bin 24 begins at 2^0
    store = fakes.store(tmp_path)
    store.manifest["kept_rows"] = 1024
    monkeypatch.setattr("unweave.circuits.prompts.surprise._histograms", lambda store, latents: counts)
    assert float(store.max_value[1]) > 2
    found = surprise(store, torch.tensor([1]), torch.tensor([2**0.125]))
    assert float(found.bits) == pytest.approx(-math.log2(9 / 1024))
    assert float(found.low) == pytest.approx(-math.log2(11 / 1024))
    assert float(found.high) == pytest.approx(-math.log2(3 / 1024))


def test_ranking_by_surprise_leaves_out_what_the_dictionary_does_not_answer_for(made):
    own, _, store = made
    found = rank_features(toy(), own, "w3 w9 w50 w7", store=store, rank="surprise", top=99)
    assert all(math.isnan(row.surprise) for row in found.features[0]) and found.features[0]
    for rows in found.features[1:]:
        bits = [row.surprise for row in rows]
        assert bits == sorted(bits, reverse=True) and not any(map(math.isnan, bits))
        assert all(row.surprise_low <= row.surprise <= row.surprise_high for row in rows)
    best = [total.surprise for total in found.totals]
    assert best == sorted(best, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": "surprise"}, "expected a store"),
        ({"rank": "size"}, "expected rank of activation, surprise, attribution"),
        ({"top": 0}, "top of at least 1"),
        ({"position": 4}, "expected a position from -4 to 3"),
        ({"target": "w3 w4"}, "one token"),
        ({"target": (1, 2, 3)}, "pair of tokens"),
        ({"target": 100}, "token id"),
    ],
)
def test_what_cannot_be_ranked(options, message):
    with pytest.raises(UserError, match=message):
        rank_features(toy(), dictionary(), "w3 w9 w50", **options)


def test_a_store_or_width_of_another_dictionary_is_refused(made):
    _, _, store = made
    with pytest.raises(UserError, match="store of this dictionary"):
        rank_features(toy(), dictionary(seed=1), "w3", store=store)
    with pytest.raises(UserError, match="width"):
        rank_features(toy(), dictionary(d=8), "w3")
    with pytest.raises(UserError, match="one dictionary"):
        rank_features(toy(), [dictionary(), dictionary(site="blocks.0.hook_resid_post")], "w3")


# Chats


@pytest.fixture
def talking(monkeypatch):
    model = toy()
    monkeypatch.setattr(model.tokenizer, "chat_template", CHAT)
    return model


def test_messages_are_read_as_the_template_writes_them(talking):
    messages = [{"role": "user", "content": "w7 w8"}]
    assert prompt_ids(talking, messages).tolist() == [3, 7, 8, 4, 5]  # no BOS, the next turn opened
    answered = [*messages, {"role": "assistant", "content": "w9 w10"}]
    assert prompt_ids(talking, answered).tolist() == [3, 7, 8, 4, 3, 9, 10]  # left open to go on
    assert rank_features(talking, dictionary(), messages).tokens == ["w3", "w7", "w8", "w4", "w5"]
    assert [piece.token for piece in stream(talking, messages, tokens=2)] == generate(
        talking, torch.tensor([3, 7, 8, 4, 5]), tokens=2
    ).tokens.tolist()


@pytest.mark.parametrize("wrong", [[], [{"role": "user"}], [{"role": "user", "content": "w3"}, {}]])
def test_other_prompts_are_refused(talking, wrong):
    with pytest.raises(UserError, match="expected a prompt as text, token ids"):
        prompt_ids(talking, wrong)


def test_a_template_that_refuses_or_misbehaves_is_a_user_error(talking, monkeypatch):
    for template in ("{{ raise_exception('roles must alternate') }}", "{{ messages[9].content }}", "{% broken"):
        monkeypatch.setattr(talking.tokenizer, "chat_template", template)
        with pytest.raises(UserError, match="chat template"):
            chat_text(talking, [{"role": "user", "content": "w3"}])
    monkeypatch.setattr(talking.tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="has none; give plain text"):
        chat_text(talking, [{"role": "user", "content": "w3"}])
    monkeypatch.setattr(talking.tokenizer, "chat_template", CHAT)
    with pytest.raises(UserError, match="UTF-8"):
        prompt_ids(talking, [{"role": "user", "content": "\ud800"}])


# Steering


def both(model, tokens, own, second=None):
    """Edits of three kinds on one dictionary, and one of a later layer."""
    found = rank_features(model, own, tokens, top=99)
    some = [row.latent for row in found.features[3]][:2]
    edits = [Edit(latent(own, some[0]), "ablate"), Edit(latent(own, some[1]), "set", 4.0, slice(1, None))]
    if second is not None:
        edits.append(Edit(latent(second, 7), "steer", 3.0, [2, 5]))
    return edits


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("place", SITES)
def test_a_control_along_the_features_own_rows_is_the_edit(place, is_frozen):
    """So what is compared differs from the real run in its directions alone; a later dictionary's edit rides along."""
    model, tokens, own = boot("gpt2"), prompt(7), SITES[place]()
    second = part("blocks.2.mlp.hook_in", "blocks.2.mlp.hook_out", seed=3)
    catalogue = Catalogue(model, [own, second])
    held = hold(catalogue, tokens, freezing(model, attention=True)) if is_frozen else None
    done, writes, _ = record(catalogue, tokens, both(model, tokens, own, second), held)
    again = push(catalogue, tokens, writes, [[write.rows for write in writes]] * 2, held)
    torch.testing.assert_close(again.shares, done.shares[-1].expand(2, -1), rtol=0, atol=1e-9)
    torch.testing.assert_close(again.final, done.final.expand(2, -1), rtol=0, atol=1e-9)
    base, nothing, _ = record(catalogue, tokens, [], held)
    assert not nothing and (base.final - done.final).abs().max() > 1e-3


def test_a_neuron_is_controlled_at_what_it_writes():
    model, tokens = boot("llama"), prompt(7)
    node = Node("neuron", 1, 4, 7, 0.0, "neuron")
    catalogue = Catalogue(model)
    done, writes, _ = record(catalogue, tokens, [Edit(node, "set", 5.0)])
    again = push(catalogue, tokens, writes, [[write.rows for write in writes]])
    torch.testing.assert_close(again.final[0], done.final, rtol=0, atol=1e-6)
    assert writes[0].site == "blocks.1.mlp.hook_out" and len(writes) == 1


def test_controls_are_as_long_and_otherwise_random():
    model, tokens, own = boot("gpt2"), prompt(7), clt()[0]
    catalogue = Catalogue(model, own)
    _, writes, _ = record(catalogue, tokens, both(model, tokens, own))
    assert len(writes) == LAYERS
    generator = torch.Generator().manual_seed(0)
    drawn = [directions(writes, generator) for _ in range(200)]
    for place, write in enumerate(writes):
        rows = torch.stack([each[place] for each in drawn])
        torch.testing.assert_close(rows.norm(dim=-1), write.rows.norm(dim=1).expand(200, -1))
        unit = torch.nn.functional.normalize(rows[:, 0], dim=1)
        assert unit.mean(0).norm() < 0.2  # of 200 unit vectors uniform on the sphere: about 1/sqrt(200)
        spread = (unit.T @ unit / 200 * WIDTH).diagonal()
        assert spread.min() > 0.5 and spread.max() < 1.6
    others = [other_rows(catalogue, writes, generator) for _ in range(50)]
    seen = set()
    for each in others:
        chosen = []
        for write, rows in zip(writes, each, strict=True):
            torch.testing.assert_close(rows.norm(dim=1), write.rows.norm(dim=1))
            unit = torch.nn.functional.normalize(own.W_dec[write.site], dim=1)
            cosine = torch.nn.functional.normalize(rows, dim=1) @ unit.T
            assert cosine.amax(1).min() > 1 - 1e-9
            chosen.append(cosine.argmax(1).tolist())
        assert all(same == chosen[0] for same in chosen)  # the same latent at every site
        assert not set(chosen[0]) & set(writes[0].features) and len(set(chosen[0])) == 2
        seen |= set(chosen[0])
    assert 16 < len(seen) <= 40
    few = part("blocks.1.hook_resid_post", latents=4)
    catalogue = Catalogue(model, few)
    _, writes, _ = record(catalogue, tokens, [Edit([latent(few, 0), latent(few, 1)], "steer", 1.0)])
    for _ in range(20):
        (rows,) = other_rows(catalogue, writes, generator)
        assert not torch.allclose(rows[0] / rows[0].norm(), rows[1] / rows[1].norm())
    catalogue = Catalogue(model, part("blocks.1.hook_resid_post", latents=2))
    _, writes, _ = record(catalogue, tokens, [Edit([latent(few, 0), latent(few, 1)], "steer", 1.0)])
    assert other_rows(catalogue, writes, generator) == []


def test_steered_prompts_compare_real_runs():
    model, tokens, own = boot("gpt2"), prompt(7), part("blocks.1.hook_resid_post")
    edits = both(model, tokens, own)
    found = steer_prompt(model, tokens, edits, own, target=11, controls=5, latents=3, top=4)
    base = model(tokens[None])[0].log_softmax(-1)
    assert [each.is_frozen for each in found.changed] == [True, False]
    for each in found.changed:
        logits = intervene(model, tokens, edits, own, freeze_attention=each.is_frozen).logits
        shares = logits.log_softmax(-1)
        truth = (base.exp() * (base - shares)).sum(-1)
        torch.testing.assert_close(torch.tensor(each.kl, dtype=torch.float64), truth, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(each.probabilities, shares[-1].exp())
        move = (logits[-1] - logits[-1].mean()) - (base[-1] - base[-1].mean())
        assert each.change == pytest.approx(float(move[11]))
        is_likely = torch.maximum(base[-1], shares[-1]) >= math.log(1e-3)
        likely = move.where(is_likely, 0.0)
        assert [moved.id for moved in each.raised] == likely.topk(4).indices.tolist()
        assert [moved.id for moved in each.lowered] == likely.topk(4, largest=False).indices.tolist()
        best = each.raised[0]
        assert best.change == pytest.approx(float(likely.max())) and best.control_low < best.control_high
        assert best.before == pytest.approx(float(base[-1, best.id].exp()))
        assert [control.kind for control in each.controls] == ["random"] * 5 + ["latents"] * 3
        stood = each.standing("latents")
        assert stood.rank == 1 + sum(value >= each.kl[-1] for value in stood.controls) and stood.p == stood.rank / 4
    assert found.changed[0].kl[0] == pytest.approx(0, abs=1e-9)  # edits begin at position 1
    assert found.changed[0].kl != found.changed[1].kl
    again = steer_prompt(model, tokens, edits, own, target=11, controls=5, latents=3, top=4)
    assert again.changed[1].controls == found.changed[1].controls
    other = steer_prompt(model, tokens, edits, own, target=11, controls=5, latents=3, top=4, seed=1)
    assert other.changed[1].controls != found.changed[1].controls
    assert "among 5 random" in str(found)


def test_a_direction_that_the_model_reads_beats_random_ones():
    """A latent that writes along the unembedding of one token, right before the logits."""
    model, tokens = boot("gpt2"), prompt(7)
    own = part("blocks.2.hook_resid_post")
    row = model.W_U[:, 42] - model.W_U.mean(1)
    own.W_dec["blocks.2.hook_resid_post"][3] = row / row.norm()
    found = steer_prompt(model, tokens, Edit(latent(own, 3, 6), "steer", 30.0), own, target=42, controls=19)
    for each in found.changed:
        assert each.standing("random", by="change")[2:] == (1, 0.05)
        assert each.raised[0].id == 42 and each.change > 3 * max(abs(control.change) for control in each.controls)
        assert each.size > 0.5


def test_an_edit_that_changes_nothing_stands_nowhere():
    model, tokens, own = boot("gpt2"), prompt(7), part("blocks.1.hook_resid_post")
    active = {row.latent for row in rank_features(model, own, tokens, top=99).features[3]}
    silent = next(index for index in range(60) if index not in active)
    found = steer_prompt(model, tokens, Edit(latent(own, silent)), own, controls=3, latents=3)
    for each in found.changed:
        assert max(each.kl) < 1e-9 and each.size == 0
        assert each.standing("random").value == pytest.approx(0, abs=1e-12)
    assert steer_prompt(model, tokens, [], own, controls=2).changed[1].standing().p == 1


def test_a_long_prompt_is_controlled_in_batches(monkeypatch):
    model, tokens, own = boot("gpt2"), prompt(7), part("blocks.1.hook_resid_post")
    edits = both(model, tokens, own)
    whole = steer_prompt(model, tokens, edits, own, controls=5, latents=0)
    monkeypatch.setattr("unweave.circuits.prompts.steering.BATCH_TOKENS", 14)
    pieces = steer_prompt(model, tokens, edits, own, controls=5, latents=0)
    for one, other in zip(whole.changed, pieces.changed, strict=True):
        assert [c.kl for c in one.controls] == pytest.approx([c.kl for c in other.controls])


def test_divergence_by_hand():
    base, changed = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert float(divergence(base, changed)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


@pytest.mark.parametrize("options", [{"controls": -1}, {"latents": -1}, {"top": 0}, {"frozen": ()}])
def test_what_cannot_be_steered(options):
    with pytest.raises(UserError, match="expected controls and latents"):
        steer_prompt(toy(), "w3", [], **options)


def test_without_positions_a_latent_changes_where_its_dictionary_answers():
    model, text = toy(), "w3 w9 w50 w7"
    own = dictionary(keep={"drop_positions": 2})
    edits = latent_edits(model, own, text, [Wish(3, "set", 9.0), Wish(4, positions=[1])])
    assert [edit.positions for edit in edits] == [[2, 3, 4], slice(5, None), [1]]
    x = intervene(model, text, edits[:2], own, read=[RESID]).activations[RESID]
    plain = intervene(model, text, [], own, read=[RESID]).activations[RESID]
    assert ((x - plain).norm(dim=1) > 1e-6).tolist() == [False, False, True, True, True]
    limited = dictionary(keep={"max_norm": {RESID: float(plain.norm(dim=1).median())}})
    first = latent_edits(model, limited, text, [Wish(3)])[0]
    assert first.positions == (plain.norm(dim=1) <= plain.norm(dim=1).median()).nonzero()[:, 0].tolist()
    for wrong, message in (
        (Wish(24), "latent below 24"),
        (Wish(1, "swap"), "an action of"),
        (Wish(1, "boil"), "an action of"),
    ):
        with pytest.raises(UserError, match=message):
            latent_edits(model, own, text, [wrong])


# Streams

STREAMED = [
    {},
    {"temperature": 1.5, "seed": 3},
    {"freeze_attention": True},
    {"freeze_attention": True, "temperature": 0.7, "seed": 1},
]


@pytest.mark.parametrize("options", STREAMED, ids=str)
def test_a_stream_is_what_generate_gives(options):
    model, tokens, own = boot("llama"), prompt(7), part("blocks.1.hook_resid_post")
    edits = [Edit(latent(own, 7), "set", 6.0, slice(2, None)), Edit(latent(own, 9), "steer", 2.0)]
    whole = generate(model, tokens, edits, own, tokens=8, **options)
    pieces = list(stream(model, tokens, edits, own, tokens=8, **options))
    assert [piece.token for piece in pieces] == whole.tokens.tolist()
    assert "".join(piece.text for piece in pieces) == whole.text
    shares = whole.logits.softmax(-1).gather(1, whole.tokens[:, None])[:, 0]
    assert [piece.probability for piece in pieces] == pytest.approx(shares.tolist())
    two = list(stream(model, tokens, edits, own, tokens=8, runs=("base", "changed"), **options))
    assert [piece for piece in two if piece.run == "changed"] == pieces
    plain = generate(model, tokens, tokens=8, **{k: v for k, v in options.items() if k != "freeze_attention"})
    assert [piece.token for piece in two if piece.run == "base"] == plain.tokens.tolist()
    assert [piece.run for piece in two[:4]] == ["base", "changed"] * 2
    assert whole.tokens.tolist() != plain.tokens.tolist()


@pytest.fixture
def endless():
    """A model whose tokenizer knows no end of text, with a prompt and an edit that changes what is written."""
    model = boot("llama")
    model.tokenizer.eos_token = None
    return model, prompt(7), Edit(Node("neuron", 2, 5, 7, 0.0, "neuron"), "set", 40.0, slice(0, None))


def test_a_run_ends_with_the_end_of_text(endless):
    model, tokens, edit = endless
    base, changed = (generate(model, tokens, some, tokens=6).tokens.tolist() for some in ((), edit))
    end = next(token for token in base if token not in changed)
    model.tokenizer.eos_token = model.tokenizer.decode([end])
    stop = base.index(end) + 1
    assert [piece.token for piece in stream(model, tokens, tokens=6)] == base[:stop]
    assert generate(model, tokens, tokens=6).tokens.tolist() == base[:stop]
    two = list(stream(model, tokens, edit, tokens=6, runs=("base", "changed")))
    assert [piece.token for piece in two if piece.run == "base"] == base[:stop]
    assert [piece.token for piece in two if piece.run == "changed"] == changed and stop < 6


def test_between_tokens_the_model_is_its_own_and_a_closed_stream_leaves_nothing(endless):
    model, tokens, edit = endless
    before = model(tokens[None])
    pieces = stream(model, tokens, edit, tokens=30)
    for _ in range(3):
        next(pieces)
        torch.testing.assert_close(model(tokens[None]), before, rtol=0, atol=0)
        assert torch.is_grad_enabled()
    other = stream(model, tokens, tokens=3)
    next(other), next(pieces), next(other)
    pieces.close()
    assert list(pieces) == []
    torch.testing.assert_close(model(tokens[None]), before, rtol=0, atol=0)


def test_a_character_of_several_tokens_comes_whole(endless, monkeypatch):
    model, tokens, _ = endless
    ids = generate(model, tokens, tokens=5).tokens.tolist()
    data = [b"a", "東".encode()[:2], "東".encode()[2:], b"\xff", "é".encode()[:1]]

    def decode(own, **options):
        return b"".join(data[place] for place, _ in enumerate(own)).decode("utf-8", "replace")

    monkeypatch.setattr(model.tokenizer, "decode", decode)
    texts = [piece.text for piece in stream(model, tokens, tokens=5)]
    assert texts[:3] == ["a", "", "東"] and "".join(texts) == decode(ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "at least 1 token"),
        ({"temperature": float("nan")}, "temperature"),
        ({"tokens": 1000}, "ask for fewer"),
        ({"runs": ()}, "expected runs"),
        ({"runs": ("base", "other")}, "expected runs"),
        ({"runs": ("base", "base")}, "name each once"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_at_once(options, message):
    with pytest.raises(UserError, match=message):
        stream(toy(), prompt(), **options)


def test_a_real_chat_is_streamed(smollm2):
    question = [{"role": "user", "content": "What is the capital of France? One word."}]
    ids = prompt_ids(smollm2, question)
    assert ids[0] == smollm2.tokenizer.convert_tokens_to_ids("<|im_start|>")
    pieces = list(stream(smollm2, question, tokens=9))
    assert "".join(piece.text for piece in pieces) == generate(smollm2, ids, tokens=9).text
    assert "Paris" in "".join(piece.text for piece in pieces)
