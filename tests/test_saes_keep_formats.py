"""The exclusion rule in files: told in the words of other libraries where they have words, read from theirs, kept whole in ours."""

import json

import pytest
from saes_formats_samples import SAMPLES
from saes_formats_toys import made
from saes_toys import dictionary
from unweave.circuits import load_transcoders, parts, save_transcoders
from unweave.saes import Dictionary, UserError
from unweave.saes.formats.card import card
from unweave.saes.keep import KeepRule

RULE = KeepRule(2, {"blocks.3.hook_resid_post": 7.5}, (0, 5), "clip")


def of_saelens(folder, flat=False, **words):
    """A folder as SAELens writes it, with these words in its metadata."""
    path = SAMPLES[f"saelens {'old' if flat else 'gated'}"](folder).path
    cfg = json.loads((path / "cfg.json").read_text())
    (cfg if flat else cfg["metadata"]).update(words)
    (path / "cfg.json").write_text(json.dumps(cfg))
    return path


@pytest.mark.parametrize("form", ["saelens", "sparsify", "dictionary_learning"])
def test_every_form_that_we_write_keeps_the_whole_rule(tmp_path, form):
    made(keep=RULE.to_dict()).save(tmp_path / "x", form)
    assert Dictionary.load(tmp_path / "x").keep_rule == RULE


@pytest.mark.parametrize(
    ("rule", "tokens", "positions"), [(RULE, [0, 5], [2, None]), (KeepRule(), False, [None, None])]
)
def test_saelens_is_told_what_it_has_words_for(tmp_path, rule, tokens, positions):
    made(keep=rule.to_dict()).save(tmp_path)
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert (metadata["exclude_special_tokens"], metadata["seqpos_slice"]) == (tokens, positions)
    # Without it SAELens reads the folder as one of before v6, whose metadata it does not look for here.
    assert metadata["sae_lens_version"].startswith("6.")
    # SAELens takes its rows by slice(*seqpos_slice).
    assert list(range(5))[slice(*positions)] == list(range(rule.drop_positions, 5))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ({"exclude_special_tokens": [0, 128009], "seqpos_slice": [1, None]}, KeepRule(1, {}, (0, 128009))),
        ({"exclude_special_tokens": True, "seqpos_slice": [None]}, KeepRule()),
        ({"exclude_special_tokens": False}, KeepRule()),
        ({"seqpos_slice": [5, -5]}, KeepRule(5)),
        ({"seqpos_slice": [-5, None]}, KeepRule()),
        ({}, KeepRule()),
    ],
)
def test_what_saelens_left_out_is_left_out_here(tmp_path, words, rule, flat):
    own = Dictionary.load(of_saelens(tmp_path, flat, **words))
    assert own.keep_rule == rule
    assert own.metadata["saelens"].items() >= words.items()


@pytest.mark.parametrize("wrong", [{"exclude_special_tokens": ["a"]}, {"exclude_special_tokens": [-3]}])
def test_malformed_words_of_saelens_are_a_user_error(tmp_path, wrong):
    with pytest.raises(UserError, match="malformed"):
        Dictionary.load(of_saelens(tmp_path, **wrong))


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"sae": {"k": 4}, "exclude_tokens": [0, 2]}, (0, 2)),
        ({"sae": {"k": 4}, "exclude_tokens": []}, ()),
        ({"model_type": "llama", "exclude_tokens": [3]}, ()),  # of something else
        (None, ()),
    ],
)
@pytest.mark.parametrize("seed", ["", "seed1"])
def test_the_tokens_that_a_run_of_sparsify_excluded_are_left_out_here(tmp_path, config, tokens, seed):
    path = SAMPLES["sparsify"](tmp_path).path
    folder = path if path.is_dir() else path.parent
    if seed:
        (folder / seed).mkdir()
        for file in ("cfg.json", "sae.safetensors"):
            (folder / file).rename(folder / seed / file)
    if config is not None:
        (folder.parent / "config.json").write_text(json.dumps(config))
    assert Dictionary.load(folder / seed).keep_rule == KeepRule(0, {}, tokens)


def test_a_malformed_list_of_sparsify_is_a_user_error(tmp_path):
    path = SAMPLES["sparsify"](tmp_path).path
    (path.parent / "config.json").write_text(json.dumps({"sae": {}, "exclude_tokens": ["x"]}))
    with pytest.raises(UserError, match="exclude_tokens"):
        Dictionary.load(path)


def test_parts_keep_the_rule_in_a_circuit_tracer_folder(tmp_path):
    own = dictionary(site="blocks.0.mlp.hook_in", site_out="blocks.0.mlp.hook_out", keep=RULE.to_dict())
    save_transcoders(parts(own), tmp_path / "set")
    assert load_transcoders(tmp_path / "set")[0].keep == RULE


def test_the_card_tells_the_rule():
    text = card(made(keep=RULE.to_dict()), "me/saes")
    assert "positions left out | 2" in text and "token ids left out | 0, 5" in text
    assert "norms clipped to | blocks.3.hook\\_resid\\_post 7.5" in text
    assert "largest norms kept" in card(made(keep={**RULE.to_dict(), "massive": "drop"}), "me/saes")
