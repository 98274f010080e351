"""Labels told from text, logistic probes, sparse probing against a planted answer, and similarity across seeds."""

import importlib
import itertools

import pytest
import torch
from saes_toys import RESID, cached, dictionary, model, shards_of
from unweave.saes import Dictionary, DictionaryConfig, UserError, bundled, evaluate
from unweave.saes.judge.labels import LABELS, document_labels, label_rows, quoted, word_classes
from unweave.saes.judge.logistic import fit
from unweave.saes.judge.probing import MOST, average, contrast, draw, probe
from unweave.saes.judge.seeds import seed_similarity
from unweave.saes.judge.text_kinds import is_code, language, profiles_of
from unweave.saes.judge.words import CLASSES

F64 = torch.float64


def test_code_is_told_from_prose_in_every_bundled_document():
    assert [document.id for document in bundled() if is_code(document.text) != (document.kind == "code")] == []


def test_a_languages_pieces_are_known_by_the_other_pieces_of_it():
    """Each left out of its own profile; Danish and Norwegian Bokmål, nearly one written language, are taken for each other."""
    pieces = [(one.kind.removeprefix("language:"), one.text) for one in bundled() if one.kind.startswith("language:")]
    sample = pieces[:: len(pieces) // 5]
    for name, text in sample:
        found = language(text, profiles_of(piece for piece in pieces if piece[1] != text))
        assert found == name or {found, name} == {"dan", "nob"}
    assert {language(one.text) for one in bundled() if one.kind == "prose"} == {"eng"}


def test_a_word_is_of_one_class():
    for one, other in itertools.combinations(CLASSES.values(), 2):
        assert not set(one) & set(other)


def test_words_are_whole_and_of_the_list():
    tokens = ["The", " ship", " was", " great", "est", ",", " sea", "men", " ran", " the", " king"]
    found = word_classes(tokens)
    assert found["noun"] == [False, True, False, None, None, None, None, None, None, False, True]
    assert found["verb"] == [False, False, True, None, None, None, None, None, None, False, False]
    assert found["function word"][0] is True


def test_quotation_is_between_marks_and_ends_with_a_paragraph():
    tokens = ["He", " said", ' "', "come", " on", '"', " and", " “", "went", "”", "."]
    assert quoted(tokens) == [False, False, None, True, True, None, False, None, True, None, False]
    assert quoted(['"', "a", "\n\n", "b"]) == [None, True, False, False]
    assert quoted(["no", " marks"]) == [None, None]


def test_code_and_other_languages_have_no_words_and_code_no_language():
    program = document_labels(["def", " f", "(x", "):", " return", " {x", " +=", " [1", "]}"])
    assert program["code"] == [True] * 9
    assert program["language"] == program["noun"] == [None] * 9
    assert program["number"] == [False] * 7 + [True, False]
    foreign = document_labels(["Toute", " personne", " a", " droit", " à", " la", " liberté", " de", " pensée", "."])
    assert foreign["language"] == [False] * 10
    assert foreign["noun"] == [None] * 10


def test_labels_of_rows_are_those_of_their_documents_without_bos():
    texts = [
        ["<s>", "The", " ship", " has", " 3", " men", " of", " the", " sea"],
        ["<s>", "Toute", " personne", " humaine", " a"],
    ]
    strings = [token for text in texts for token in text]
    positions = torch.tensor([place for text in texts for place in range(len(text))])
    documents = torch.tensor([number for number, text in enumerate(texts) for _ in text])
    labels = {label.name: label for label in label_rows(strings, positions, documents, True)}
    assert tuple(labels) == LABELS
    assert labels["language"].is_true.tolist() == [False] + [True] * 8 + [False] * 5
    assert labels["language"].is_known.tolist() == [False] + [True] * 8 + [False] + [True] * 4
    assert labels["number"].is_true.nonzero().flatten().tolist() == [4]
    everything = label_rows(strings, positions, documents, False)
    assert everything[LABELS.index("code")].is_known.all()


def test_the_probe_is_where_its_gradient_is_zero():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator, dtype=F64) * torch.tensor([1.0, 10, 0.1, 1]) + 3
    y = (x[:, 0] - 3 + 0.5 * torch.randn(300, generator=generator, dtype=F64)) > 0
    own = fit(torch.cat([x, torch.full((300, 1), 7.0)], 1), y, ridge=1e-2)
    assert own.weight[4] == 0
    z = (x - x.mean(0)) / x.std(0, correction=0)
    w, c = own.weight[:4].clone().requires_grad_(), own.bias.clone().requires_grad_()
    score = z @ w + c
    loss = (torch.nn.functional.softplus(score) - y * score).mean() + 0.5e-2 * w.square().sum()
    loss.backward()
    assert w.grad.abs().max() < 1e-4
    assert c.grad.abs() < 1e-4
    assert ((own.score(torch.cat([x, torch.full((300, 1), 7.0)], 1)) > 0) == y).double().mean() > 0.85
    with pytest.raises(ValueError, match="both kinds"):
        fit(x, torch.ones(300, dtype=torch.bool))


def test_separable_rows_do_not_run_away():
    x = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    own = fit(x, torch.tensor([False, False, True, True]))
    assert own.weight.isfinite().all()
    assert ((own.score(x) > 0) == torch.tensor([False, False, True, True])).all()


NUMBER, WORD = 50, 51
STRINGS = {NUMBER: " 7", WORD: " ship"}


def planted(folder, rows=2400, noise=0.0):
    """Shards in which entry 0 tells numbers from words, and a dictionary whose latent 2 reads it; other entries are noise."""
    generator = torch.Generator().manual_seed(0)
    is_number = torch.rand(rows, generator=generator) < 0.3
    x = torch.randn(rows, 6, generator=generator)
    x[:, 0] = is_number * 4.0 + noise * torch.randn(rows, generator=generator)
    shards = shards_of(folder, {"a": x}, document=24)
    shards.tokens[:] = torch.where(is_number, NUMBER, WORD)
    W = torch.zeros(8, 6)
    W[2, 0] = W[0, 1] = W[1, 2] = W[3, 3] = W[4, 4] = 1.0
    tensors = {"W_enc": W, "b_enc": torch.full((8,), -0.5), "W_dec": W.clone(), "b_dec": torch.zeros(6)}
    return shards, Dictionary(DictionaryConfig(site=("a",), activation="relu", latents=8, k=2), tensors)


def probed(own, shards, strings=STRINGS, **options):
    return probe(own, shards, torch.ones(len(shards), dtype=torch.bool), strings, **options)


def test_the_latent_that_tells_is_chosen_and_probes_as_well_as_everything(tmp_path):
    shards, own = planted(tmp_path / "a")
    found = probed(own, shards)["number"]
    assert found["chosen"][0] == 2
    assert found["latents_1"] == found["latents_5"] == found["raw"] == found["raw_1"] == 1.0
    assert found["latents_1_interval"] == [1.0, 1.0]
    assert found["share"] == pytest.approx(1)
    assert found["rows"] <= 2 * MOST
    own.b_enc[2] = -99.0  # the latent is silent: nothing tells
    blind = probed(own, shards)["number"]
    assert blind["latents_5"] == pytest.approx(0.5, abs=0.08)
    assert blind["raw"] == 1.0
    assert blind["share"] == pytest.approx(0, abs=0.2)
    assert blind["latents_5_interval"][0] < blind["latents_5"] < blind["latents_5_interval"][1]


def test_documents_are_not_on_both_sides_and_kinds_are_balanced(tmp_path):
    shards, _ = planted(tmp_path / "a")
    label = next(
        one
        for one in label_rows([STRINGS[t] for t in shards.tokens.tolist()], shards.positions, shards.documents, True)
        if one.name == "number"
    )
    kept = torch.rand(len(shards)) < 0.5
    train, test = draw(label, kept, shards.documents, 0)
    assert not set(shards.documents[train].tolist()) & set(shards.documents[test].tolist())
    for half in (train, test):
        assert label.is_true[half].double().mean() == 0.5
        assert kept[half].all()
        assert label.is_known[half].all()
        assert len(half.unique()) == len(half)
    assert draw(label, torch.zeros(len(shards), dtype=torch.bool), shards.documents, 0) is None


def test_contrast_is_the_distance_of_means_in_deviations():
    a, b = torch.randn(500, 3, dtype=F64) + torch.tensor([0.0, 2, 0]), torch.randn(700, 3, dtype=F64)
    a[:, 2] = b[:, 2] = 0
    found = contrast(*(torch.stack([x.mean(0), x.square().mean(0)]) for x in (a, b)))
    spread = ((a.var(0, correction=0) + b.var(0, correction=0)) / 2).sqrt()
    torch.testing.assert_close(found[:2], ((a.mean(0) - b.mean(0)).abs() / spread)[:2])
    assert found[2] == 0


def test_text_without_labels_and_shared_dictionaries_are_a_user_error(tmp_path):
    shards, own = planted(tmp_path / "a", rows=48)
    with pytest.raises(UserError, match="cache more text"):
        probed(own, shards)
    shared = DictionaryConfig(site=("a", "b"), across="shared", latents=8, k=2)
    tensors = {
        "W_enc": torch.ones(8, 6),
        "b_enc": torch.ones(2, 8),
        "W_dec": torch.ones(8, 6),
        "b_dec": torch.ones(2, 6),
    }
    with pytest.raises(UserError, match="at\\(site\\)"):
        probed(Dictionary(shared, tensors), shards)


@pytest.mark.parametrize("kind", ["crosscoder", "cross-layer", "shared"])
def test_dictionaries_of_several_sites_are_probed_too(kind, tmp_path, monkeypatch):
    from test_saes_judge_sites import INS, OUTS, RESIDS, made

    module = importlib.import_module("unweave.saes.evaluate")
    texts = lambda own, tokens: [" 7" if token % 2 else " ship" for token in tokens.tolist()]  # noqa: E731
    monkeypatch.setattr(module, "token_strings", texts)
    monkeypatch.setattr(module, "load_model", lambda name: model())
    shards = cached(tmp_path / "a", (*RESIDS, *INS, *OUTS), count=60)
    metrics = evaluate(made(kind), shards, probe=True)
    if kind == "shared":
        assert set(metrics.probes_by_site) == set(RESIDS)
        assert all("number" in found for found in metrics.probes_by_site.values())
    else:
        assert 0 <= metrics.probe_mean["latents_5"] <= 1
        assert "number" in metrics.probes


def test_evaluate_adds_probes_with_the_models_tokenizer(tmp_path, monkeypatch):
    """The toy's words w5, w77 … all have a digit, so its text has no label set with both kinds until one is planted."""
    module = importlib.import_module("unweave.saes.evaluate")
    shards = cached(tmp_path / "a", (RESID,), count=60)
    texts = lambda own, tokens: [" 7" if token % 2 else " ship" for token in tokens.tolist()]  # noqa: E731
    monkeypatch.setattr(module, "token_strings", texts)
    metrics = evaluate(dictionary(keep={"drop_positions": 1}), shards, model(), ce_tokens=64, probe=True)
    assert set(metrics.probes) >= {"number"}
    assert metrics.probe_mean == average(metrics.probes)
    assert metrics.probes["number"]["raw"] > 0.55  # whether a token id is odd
    assert "probes" not in evaluate(dictionary(keep={"drop_positions": 1}), shards)


def random_dictionary(seed, rows=None, latents=40, d=16):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(latents, d, generator=generator) if rows is None else rows
    tensors = {"W_enc": rows, "b_enc": torch.zeros(len(rows)), "W_dec": rows, "b_dec": torch.zeros(d)}
    return Dictionary(DictionaryConfig(latents=len(rows), k=2), tensors)


def test_a_dictionary_in_another_order_is_the_same_and_its_control_is_not():
    first = random_dictionary(0)
    second = random_dictionary(0, 3 * first.W_dec[torch.randperm(40, generator=torch.Generator().manual_seed(1))])
    found = seed_similarity([first, second])
    assert found["similarity"] == found["matched"] == pytest.approx(1, abs=1e-6)
    assert 0.2 < found["control"] < 0.75


def test_the_command_compares_with_twins_and_probes(tmp_path, monkeypatch):
    from unweave.viz.commands import evaluate as command

    shards, own = planted(tmp_path / "a")
    own.save(tmp_path / "one")
    own.save(tmp_path / "two")
    found = command(tmp_path / "one", shards.folder, twins=(tmp_path / "two",))
    assert found["seed_similarity"]["similarity"] == pytest.approx(5 / 8)  # three rows of zeros match none
    assert "seed_similarity" not in command(tmp_path / "one", shards.folder)
    asked = []
    monkeypatch.setattr("unweave.saes.evaluate", lambda *args, **options: asked.append(options) or Answer())
    command(tmp_path / "one", shards.folder, probe=True)
    assert asked[0]["probe"] is True


class Answer(dict):
    """What evaluate gives, as far as the command looks at it."""

    def to_dict(self):
        return dict(self)


def test_strangers_are_as_similar_as_their_control():
    found = seed_similarity([random_dictionary(seed) for seed in range(3)])
    assert found["similarity"] == pytest.approx(found["control"], abs=0.03)
    assert found["similarity_deviation"] > 0
    assert found["matched"] < found["similarity"]
    for wrong in ([random_dictionary(0)], [random_dictionary(0), random_dictionary(0, d=8)]):
        with pytest.raises(UserError, match="one width"):
            seed_similarity(wrong)
