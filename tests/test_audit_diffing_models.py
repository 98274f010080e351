"""`diff` of two toy models that differ by a known edit: every method ranks it first, and the same model twice gives nothing."""

import dataclasses
import itertools
import json

import audit_diffing_toys as toy
import pytest
import saes_toys
import torch
import toys
from unweave.audit.diffing import Diff, diff
from unweave.audit.diffing.command import diff as command
from unweave.audit.diffing.pair import alignment_table, check_pair
from unweave.saes import Dictionary, UserError, model_info
from unweave.saes.splice import check_model

OPTIONS = dict(
    site=toy.SITE, context=toy.CONTEXT, progress=False, causal=2, causal_tokens=300, controls=9,
    config=dict(latents=64, k=5, tokens=25_000, batch=128),
)  # fmt: skip
# Two latents of a trained dictionary are a part of what fires on w5; the planted one is most of it.
LEAST_SHARE = {"crosscoder": 0.1, "mean": 0.3, "stagewise": -0.1}
METHODS = ["crosscoder", "mean", "stagewise", "lens"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("diff")


@pytest.fixture(scope="module")
def found(folder):
    """The four Diffs of the planted pair, by method; the mean under a dictionary that has the planted direction."""
    given = {"mean": toy.dictionary()}
    return {
        method: diff(
            toy.base(), toy.tuned(), toy.texts(), folder / method, method, dictionary=given.get(method),
            activations=folder / "activations", **OPTIONS,
        )
        for method in METHODS
    }  # fmt: skip


@pytest.fixture(scope="module")
def nothing(folder):
    """The same model twice."""
    return {
        method: diff(
            toy.base(), toy.base(), toy.texts(), folder / f"same-{method}", method, activations=folder / "activations",
            **{**OPTIONS, "config": {**OPTIONS["config"], "tokens": 4_000}},
        )
        for method in METHODS
    }  # fmt: skip


def along(folder, first, second):
    """Cosine with the planted direction of what a latent writes in B beyond A."""
    return float(torch.cosine_similarity(second - first, toy.direction(), dim=0))


def test_the_crosscoder_ranks_the_planted_direction_first(folder, found):
    top = found["crosscoder"].rows(1)[0]
    in_a, in_b = Dictionary.load(folder / "crosscoder" / "crosscoder").W_dec[top["latent"]].split(toys.WIDTH)
    assert top["is_found"] and top["fires_on"][0] == f"w{toy.TOKEN}"
    assert along(folder, in_a, in_b) > 0.9


def test_the_change_of_means_ranks_the_planted_latent_first(found):
    top = found["mean"].rows(1)[0]
    assert top["latent"] == 0 and top["is_found"] and top["d_low"] > 0


def test_the_dictionary_trained_on_turns_towards_the_planted_direction(folder, found):
    top = found["stagewise"].rows(1)[0]
    control, tuned = (
        Dictionary.load(folder / "stagewise" / name).W_dec[top["latent"]] for name in ("control", "tuned")
    )
    assert top["is_found"] and top["rotation"] > 0 and top["fires_on"][0] == f"w{toy.TOKEN}"
    assert along(folder, control, tuned) > 0.8


def test_the_lens_reads_the_raised_token_off_the_difference(found):
    rows = found["lens"].rows(5)
    assert {row["string"] for row in rows} == {f"w{toy.RAISED}"} and {row["position"] for row in rows} == {
        1,
        2,
        3,
        4,
        5,
    }
    assert all(row["is_found"] and row["score"] > row["random_high"] for row in rows)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_model_twice_gives_no_discovery(method, nothing):
    assert nothing[method].discoveries == 0
    assert all(score["patched"]["share"] is None for score in nothing[method].causal)


@pytest.mark.parametrize("method", ["crosscoder", "mean", "stagewise"])
def test_patching_and_removing_the_first_latents_beats_every_control(method, found):
    together, *_, everything = found[method].causal
    for way in ("patched", "removed"):
        share = together[way]
        assert share["share"] > LEAST_SHARE[method] and share["share"] > max(share["controls"]) and share["p"] == 1 / 10
        assert share["interval"][0] <= share["share"] <= share["interval"][1]
        assert everything[way]["share"] > 0.9  # all that was changed stands at this site


def test_the_score_of_a_target_is_the_share_of_its_logit(folder):
    prompts = [f"w{i} w{j} w{toy.TOKEN}" for i in range(3, 9) for j in (10, 12)]
    found = diff(
        toy.base(), toy.tuned(), toy.texts(), folder / "target", "mean", dictionary=toy.dictionary(),
        activations=folder / "activations", target=f"w{toy.RAISED}", prompts=prompts, **OPTIONS,
    )  # fmt: skip
    first = found.causal[1]
    assert first["latents"] == [0] and 0.25 < first["patched"]["share"] < 1.5 and first["patched"]["p"] == 1 / 10


def test_a_diff_comes_back_from_its_folder(folder, found):
    for method, made in found.items():
        opened = Diff.open(folder / method)
        assert opened.rows() == made.rows() and repr(opened) == repr(made) and opened.method == method
        assert json.loads(json.dumps(made.to_dict())) == json.loads(json.dumps(opened.to_dict()))
        assert {"models", "sites", "text", "settings", "dictionaries"} <= opened.manifest.keys()


def test_rows_are_ordered_by_any_column_and_by_no_other(found):
    made = found["mean"]
    of_q = [row["q"] for row in made.rows(by="q") if row["is_found"]]
    assert of_q == sorted(of_q) and len(made.rows(3)) == 3
    with pytest.raises(UserError, match="expected a column"):
        made.rows(3, by="beauty")


def test_a_damaged_folder_is_an_error(folder, found, tmp_path):
    with pytest.raises(UserError, match="manifest of a Diff"):
        Diff.open(tmp_path)
    manifest = json.loads((folder / "mean" / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(UserError, match="version 99"):
        Diff.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "diff.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="numbers of a Diff"):
        Diff.open(tmp_path)


def test_the_same_call_gives_the_same_numbers(folder, found):
    again = diff(
        toy.base(), toy.tuned(), toy.texts(), folder / "again", "mean", dictionary=toy.dictionary(),
        activations=folder / "activations", **OPTIONS,
    )  # fmt: skip
    assert again.rows() == found["mean"].rows() and again.causal == found["mean"].causal


def test_models_that_do_not_read_the_same_tokens_are_refused():
    info = saes_toys.INFO
    with pytest.raises(UserError, match="share a tokenizer"):
        check_pair(info, dataclasses.replace(info, tokenizer="u" * 32), None)
    with pytest.raises(UserError, match="one BOS rule"):
        check_pair(info, dataclasses.replace(info, bos=None), None)
    with pytest.raises(UserError, match="one BOS rule"):
        check_pair(info, info, torch.arange(100).roll(1))
    with pytest.raises(UserError, match="ids below 100"):
        alignment_table({3: 100}, info, info)


def permuted():
    """Model A with its words renumbered: the same model to whoever knows the alignment."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    order = torch.cat([torch.arange(3), 3 + torch.randperm(97, generator=torch.Generator().manual_seed(0))])
    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": int(order[i]) for i in range(3, 100)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.init_kwargs.update(name_or_path="", add_bos_token=True)
    hf = toys.hugging_face("llama", dtype=torch.float32)
    with torch.no_grad():
        for weight in (hf.model.embed_tokens.weight, hf.lm_head.weight):
            weight[order] = weight.clone()
    model = TransformerBridge.boot_transformers(
        "llama-tiny", hf_model=hf, tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )
    return model.eval().requires_grad_(False), {i: int(order[i]) for i in range(100)}


def test_an_alignment_of_tokens_stands_for_a_shared_tokenizer(folder, tmp_path):
    other, alignment = permuted()
    with pytest.raises(UserError, match="share a tokenizer"):
        diff(toy.base(), other, toy.texts(), tmp_path / "no", "mean", dictionary=toy.dictionary(), **OPTIONS)
    options = dict(dictionary=toy.dictionary(), **OPTIONS)
    same = diff(toy.base(), other, toy.texts(), tmp_path / "same", "mean", alignment=alignment, **options)
    assert same.discoveries == 0 and float(same.columns["change"].abs().max()) < 1e-5
    assert same.causal == [] or all(abs(each["patched"]["share"] or 0) <= 1 for each in same.causal)
    few = {key: value for key, value in alignment.items() if key != toy.TOKEN}
    with pytest.raises(UserError, match="counterpart"):
        diff(toy.base(), other, toy.texts(), tmp_path / "few", "mean", alignment=few, **options)


def narrow():
    """A llama of half the width with the same tokenizer."""
    from transformer_lens.model_bridge import TransformerBridge

    config, kind = toys.configs()["llama"]()
    config.hidden_size, config.head_dim, config.architectures = 32, 16, [kind.__name__]
    config._attn_implementation = "eager"
    torch.manual_seed(1)
    hf = kind(config).eval().requires_grad_(False)
    return TransformerBridge.boot_transformers("narrow", hf_model=hf, tokenizer=toys.tokenizer(), device="cpu").eval()


def test_models_of_two_widths_have_a_crosscoder_and_nothing_else(tmp_path):
    other = narrow()
    found = diff(toy.base(), other, toy.texts(), tmp_path / "both", "crosscoder", **OPTIONS)
    assert len(found) == 64 and found.discoveries == 0 and found.causal == [] and "different widths" in found.notes[0]
    with pytest.raises(UserError, match="one width"):
        diff(toy.base(), other, toy.texts(), tmp_path / "lens", "lens", **OPTIONS)


def test_what_does_not_fit_is_refused(tmp_path):
    def refused(match, texts=None, method="mean", **changes):
        with pytest.raises(UserError, match=match):
            diff(toy.base(), toy.tuned(), texts or toy.texts(12), tmp_path / "x", method, **{**OPTIONS, **changes})

    refused("a method", method="magic")
    refused("two texts", texts=["w3 w4"])
    refused("fdr and held_out", fdr=1.5)
    refused("a site of this model", site="blocks.9.hook_resid_post")
    refused("one site of 64", dictionary=saes_toys.dictionary(d=32, site=toy.SITE))
    refused("a dictionary of", dictionary=saes_toys.dictionary(site="blocks.0.hook_resid_post"))
    refused("one token", dictionary=toy.dictionary(), target="w3 w4")
    refused("TopK or BatchTopK", method="stagewise", dictionary=toy.dictionary(), texts=toy.texts(40))


def test_other_text_in_the_same_folder_is_read_anew(tmp_path):
    options = {**OPTIONS, "causal": 0, "dictionary": toy.dictionary()}
    one, two = (
        diff(toy.base(), toy.tuned(), toy.texts(20, seed), tmp_path / "x", "mean", **options).manifest["text"]
        for seed in (1, 2)
    )
    assert one["shards"] != two["shards"]


def test_the_command_loads_one_model_at_a_time_and_prints_rows(tmp_path, monkeypatch):
    from unweave.audit.diffing import command, pair

    loaded = {"A": toy.base(), "B": toy.tuned()}
    asked = []
    monkeypatch.setattr(pair, "load_model", lambda name, *_: asked.append(name) or loaded[name])
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in toy.texts(40)))
    result = command.diff(
        "A", "B", (str(tmp_path / "text.jsonl"),), tmp_path / "out", "lens", site=toy.SITE, context=toy.CONTEXT
    )
    assert result["rows"][0]["string"] == f"w{toy.RAISED}" and result["discoveries"] >= 5
    assert all(one != other for one, other in itertools.pairwise(asked)) and len(asked) <= 6
    json.dumps(result)
    assert result["table"][0].split()[:2] == ["position", "string"] and f"'w{toy.RAISED}'" in result["table"][1]
    with pytest.raises(UserError, match="--site with --site-b"):
        command.diff("A", "B", ("bundled",), tmp_path / "other", site_b=toy.SITE)


@pytest.mark.parametrize("texts", ["one text", b"one text", ["a text", None], ["a text", b"x"]])
def test_what_is_no_list_of_texts_is_refused_before_anything_is_read(texts, tmp_path):
    with pytest.raises(UserError, match="expected a list of texts"):
        diff("no-model", "no-model", texts, tmp_path / "out")
    with pytest.raises(UserError, match="seed of 64 bits"):
        diff("no-model", "no-model", ["a", "b"], tmp_path / "out", seed=2**70)


@pytest.mark.parametrize("pairs", [{5: 2**70}, {2**70: 5}, torch.rand(4)])
def test_an_alignment_of_anything_but_ids_is_refused(pairs):
    info = model_info(toy.base())
    with pytest.raises(UserError, match="no whole numbers"):
        alignment_table(pairs, info, info)


def test_a_dictionary_trained_by_a_diff_reads_its_own_model_elsewhere(tmp_path):
    options = {
        "config": {"tokens": 2000, "latents": 32, "k": 4},
        "causal": 0,
        "progress": False,
        "context": toy.CONTEXT,
    }
    for method, names in (("mean", ["dictionary"]), ("stagewise", ["dictionary", "control", "tuned"])):
        out = tmp_path / method
        diff(toy.base(), toy.tuned(), toy.texts(), out, method, site=toy.SITE, **options)
        for name in names:
            own = Dictionary.load(out / name)
            assert own.read == toy.SITE
            check_model(own, toy.tuned() if name == "tuned" else toy.base())
        again = diff(
            toy.base(), toy.tuned(), toy.texts(), tmp_path / f"{method}-again", "mean", site=toy.SITE,
            dictionary=Dictionary.load(out / "dictionary"), **options,
        )  # fmt: skip
        assert not again.notes


def test_prompts_that_are_no_text_are_a_plain_error(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        command("a", "b", ("bundled",), tmp_path / "out", prompts=file)
