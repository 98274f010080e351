"""Activations of plain modules are those of bridges, packing shows nowhere, and what is kept beside the rows is true of them."""

import pytest
import torch
import toys
from plain_toy import CONTEXT, SITES, VOCAB, Toy, blocks, cache_toy
from saes_toys import MLP_IN, MLP_OUT, RESID, cached, model, texts
from torch.testing import assert_close
from unweave.saes import Shards, UserError, cache, model_info, resolve_site
from unweave.saes.capture import Capture, capture
from unweave.saes.models import _bundled_folder, special_ids
from unweave.saes.packing import assemble, batches, check_packing, pack_blocks
from unweave.saes.plain_modules import PlainModel
from unweave.saes.text import Block, pad_blocks

PLACES = ("blocks.1.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out",
          "blocks.2.attn.hook_in", "blocks.0.attn.hook_out", "hook_embed")  # fmt: skip
# Of these the bridge keeps every parameter as it is; GPT-2 and GPT-NeoX hold queries, keys and values in one matrix.
SAME_WEIGHTS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi", "mistral", "opt")


def plain(name: str) -> PlainModel:
    return PlainModel(toys.hugging_face(name), toys.tokenizer())


def batch() -> list[Block]:
    return [Block(toys.prompt(length, seed=length), number) for number, length in enumerate((9, 5, 12))]


# GPT-NeoX computes its rotation in float32, in another order.
@pytest.mark.parametrize(("name", "atol"), [*((name, 1e-9) for name in SAME_WEIGHTS), ("gpt2", 1e-9), ("neox", 1e-5)])
def test_a_plain_model_has_the_sites_activations_and_fingerprint_of_its_bridge(name, atol):
    bridge, own = toys.boot(name), plain(name)
    places = [place for place in PLACES if "mlp" not in place] if name == "opt" else PLACES
    assert [own.resolve(place) for place in places] == [resolve_site(bridge, place) for place in places]
    padded = pad_blocks(batch())
    expected, found = capture(bridge, padded, list(places)), capture(own, padded, list(places))
    for place in places:
        assert_close(found[place], expected[place], rtol=atol, atol=atol)
    assert (model_info(own).fingerprint == model_info(bridge).fingerprint) == (name in SAME_WEIGHTS)
    assert model_info(own).bos == model_info(bridge).bos == 0
    assert model_info(own).tokenizer == model_info(bridge).tokenizer
    shape = ("n_layers", "d_model", "n_ctx", "d_vocab")
    assert [getattr(model_info(own), part) for part in shape] == [getattr(model_info(bridge), part) for part in shape]


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("model.layers.1", "blocks.1.hook_resid_post"),
        ("model.layers.1.output", "blocks.1.hook_resid_post"),
        ("model.layers.1.input", "blocks.1.hook_resid_pre"),
        ("model.layers.1.mlp.input", "blocks.1.mlp.hook_in"),
        ("blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out"),
        ("model.layers.1.self_attn", "blocks.1.attn.hook_out"),
        ("model.embed_tokens", "hook_embed"),
        ("model.norm", "model.norm"),
        ("model.norm.input", "model.norm.input"),
        ("model.layers.1.mlp.down_proj.input", "model.layers.1.mlp.down_proj.input"),
    ],
)
def test_one_place_of_a_plain_model_has_one_name(given, canonical):
    assert plain("llama").resolve(given) == canonical


def test_a_block_that_rescales_its_parts_has_no_name_for_what_they_add():
    with pytest.raises(UserError, match="did you mean"):
        plain("gemma2").resolve("blocks.1.hook_mlp_out")


def test_a_bridge_and_its_plain_model_write_the_same_shards(tmp_path):
    sites = (RESID, MLP_IN, MLP_OUT)
    own = cache(toys.hugging_face("llama"), texts(), sites, tmp_path / "own", dtype=torch.float64, context=16, batch=3,
                progress=False, tokenizer=toys.tokenizer())  # fmt: skip
    bridge = cached(tmp_path / "bridge", sites, name="llama")
    assert own.sites == bridge.sites and own.tokens.equal(bridge.tokens)
    for site in sites:
        assert_close(own[site][:], bridge[site][:], rtol=1e-9, atol=1e-9)
    for part in ("fingerprint", "tokenizer", "bos"):
        assert own.manifest["model"][part] == bridge.manifest["model"][part]
    assert own.manifest["special"] == bridge.manifest["special"] == [0, 1, 2] == special_ids(model("llama"))


def test_the_bundled_model_is_the_same_with_and_without_its_bridge(smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = _bundled_folder()
    own = PlainModel(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    )
    sites = ["blocks.2.hook_resid_post", "blocks.3.mlp.hook_in", "blocks.3.mlp.hook_out"]
    padded = pad_blocks([Block(torch.arange(40) + 1000, 0), Block(torch.arange(30) + 5000, 1)])
    expected, found = capture(smollm2, padded, sites), capture(own, padded, sites)
    for site in sites:
        assert_close(found[site], expected[site], rtol=1e-3, atol=1e-3 * float(expected[site].std()))
    assert model_info(own).fingerprint == model_info(smollm2).fingerprint
    assert (model_info(own).bos, model_info(own).tokenizer) == (0, model_info(smollm2).tokenizer)


def test_any_torch_module_can_be_read_and_stops_after_the_last_site(tmp_path):
    toy = Toy()
    shards = cache(toy, blocks(), SITES, tmp_path / "a", dtype=torch.float32, progress=False)
    assert toy.calls == 0
    assert shards.sites == list(SITES) and shards.manifest["special"] == []
    assert shards.tokens.tolist() == [int(token) for block in blocks() for token in block]
    x = toy.embed(blocks()[0][None])
    assert_close(shards["layers.0"][: len(blocks()[0])], toy.layers[0](x)[0], rtol=1e-5, atol=1e-6)
    info = model_info(toy)
    assert (info.name, info.bos, info.tokenizer, info.d_vocab) == ("Toy", None, "none", VOCAB)
    assert info.fingerprint != model_info(Toy(seed=1)).fingerprint


def test_hooks_are_gone_afterwards():
    toy = Toy()
    capture(toy, pad_blocks([Block(blocks()[0], 0)]), list(SITES))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in toy.modules())
    toy(blocks()[0][None])
    assert toy.calls == 1


@pytest.mark.parametrize(
    ("given", "sites", "says"),
    [
        (["some text"], SITES, "which has none; give tokenizer="),
        ([torch.tensor([VOCAB])], SITES, "expected token blocks"),
        (blocks(), ("layers.7",), "did you mean layers"),
    ],
)
def test_what_a_torch_module_cannot_do_is_a_user_error(tmp_path, given, sites, says):
    with pytest.raises(UserError, match=says):
        cache(Toy(), given, sites, tmp_path / "a", progress=False)


def test_a_plain_model_in_training_mode_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"call model.eval\(\)"):
        cache(Toy().train(), blocks(), SITES, tmp_path / "a", progress=False)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mistral"])
@pytest.mark.parametrize("made", [toys.boot, plain], ids=["bridge", "plain"])
def test_packed_rows_are_those_of_each_block_alone(made, name):
    own, sites = made(name), ["blocks.2.hook_resid_post", "blocks.1.mlp.hook_out"]
    packed = pack_blocks(batch(), 2, 16)
    assert packed.tokens.shape == (2, 16)
    run = Capture(own, sites)
    for site in sites:
        alone = torch.cat([run(pad_blocks([block])).rows[site] for block in batch()])
        assert_close(run(packed).rows[site], alone, rtol=1e-5, atol=1e-5)


def test_packed_shards_are_the_unpacked_ones_and_a_resumed_run_packs_as_before(tmp_path, monkeypatch):
    options = dict(count=30, longest=9, batch=2)
    plainly, packed = cached(tmp_path / "a", **options), cached(tmp_path / "b", pack=True, **options)
    for column in ("tokens", "positions", "documents"):
        assert getattr(plainly, column).equal(getattr(packed, column))
    assert_close(packed[RESID][:], plainly[RESID][:], rtol=1e-9, atol=1e-9)
    assert (plainly.manifest["packed"], packed.manifest["packed"]) == (False, True)
    cut = cached(tmp_path / "c", pack=True, shard_mib=0, **options)
    assert sum(entry["blocks"] for entry in cut.manifest["shards"]) == 30
    (tmp_path / "c" / "shard-00002.safetensors").unlink()
    again = cached(tmp_path / "c", pack=True, shard_mib=0, resume=True, **options)
    assert again.fingerprint == cut.fingerprint
    with pytest.raises(UserError, match="packed"):
        cached(tmp_path / "b", resume=True, **options)


def test_each_block_goes_into_the_first_line_with_room():
    lengths = (5, 4, 3, 2, 4, 6, 1)
    given = [Block(torch.arange(length) + 10 * number, number) for number, length in enumerate(lengths)]
    groups = list(batches(iter(given), 2, 8))
    assert [[len(block.tokens) for block in group] for group in groups] == [[5, 4, 3, 2], [4, 6, 1]]
    packed = assemble(groups[0], 2, 8)
    assert packed.tokens.tolist() == [[0, 1, 2, 3, 4, 20, 21, 22], [10, 11, 12, 13, 30, 31, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 0, 1]]
    tokens, positions, documents = packed.rows()
    assert tokens.tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 20, 21, 22, 30, 31]
    assert positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert documents.tolist() == [0] * 5 + [1] * 4 + [2] * 3 + [3] * 2


def test_a_block_that_fits_no_line_is_a_user_error():
    with pytest.raises(UserError, match="at most 8 tokens to pack; got one of 9"):
        list(batches(iter([Block(torch.arange(9), 0)]), 2, 8))


def test_a_model_that_mixes_packed_documents_is_refused(tmp_path):
    with pytest.raises(UserError, match="keeps packed documents apart"):
        check_packing(toys.boot("opt"), [RESID], toys.VOCAB)
    with pytest.raises(UserError, match="takes no position_ids"):
        cache_toy(tmp_path / "a", pack=True)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_norms_are_those_of_the_rows_as_captured(tmp_path, dtype):
    exact, shards = cached(tmp_path / "a"), cached(tmp_path / "b", dtype=dtype)
    assert_close(shards.norms(RESID), exact[RESID][:].norm(dim=1).float())
    most = float(exact[RESID][:].abs().max())
    assert_close(shards[RESID][:].double(), exact[RESID][:], rtol=2**-8, atol=most / 254)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_statistics_are_those_of_all_rows(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("unweave.saes.shards.statistics.CHUNK", 50)  # so that several chunks are joined
    shards = cached(tmp_path / "a", (RESID, MLP_OUT), statistics=True, shard_mib=0, dtype=dtype)
    said = shards.manifest["statistics"]
    kept = torch_file(tmp_path / "a" / said["file"])
    for site in shards.sites:
        rows = shards[site][:].double()
        assert_close(kept[f"{site}.mean"], rows.mean(0), rtol=1e-10, atol=1e-12)
        assert_close(kept[f"{site}.variance"], rows.var(0, correction=0), rtol=1e-10, atol=1e-12)
    assert said["rows"] == len(shards)


def torch_file(path):
    from safetensors.torch import load_file

    return load_file(str(path))


def test_massive_rows_are_counted_by_the_rule(tmp_path):
    toy = Toy()
    toy.embed.weight[7] *= 1000
    given = [torch.tensor([3, 4, 5, 7, 6]), torch.tensor([7, 3, 4, 5, 6])]
    shards = cache(toy, given, ["embed"], tmp_path / "a", context=CONTEXT, progress=False, statistics=True)
    massive = shards.manifest["statistics"]["massive"]["embed"]
    assert (massive["rows"], massive["first_rows"]) == (1, 1)
    assert massive["median_norm"] == float(shards.norms("embed")[shards.positions > 0].median())


def test_shards_may_be_written_behind_a_url(tmp_path):
    there = cache_toy("memory://caching/a", statistics=True)
    here = cache_toy(tmp_path / "a", statistics=True)
    assert there.fingerprint == here.fingerprint
    assert Shards.open("memory://caching/a").manifest == here.manifest
    assert cache_toy("memory://caching/a", resume=True).fingerprint == here.fingerprint
