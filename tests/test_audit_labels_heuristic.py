"""The explainer without a language model finds the rule of latents whose rule is known, and its judge knows nothing else."""

import audit_labels_toys as toy
import pytest
from unweave.audit.labels import Draws
from unweave.audit.labels.heuristic import Pattern, explain
from unweave.audit.labels.negatives import material
from unweave.audit.labels.patterns import Clause, clauses_at, spelling
from unweave.audit.labels.snippets import Snippet, StoreRows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return StoreRows(toy.store(tmp_path_factory.mktemp("store")))


@pytest.mark.parametrize(
    "latent, clauses",
    [
        (toy.CAT, {Clause("token", " cat"), Clause("word", "cat")}),
        (toy.NUMBER, {Clause("class", "numbers")}),
        (toy.OF_THE, {Clause("pair", "of the")}),
        (toy.DOG, {Clause("token", " dog"), Clause("word", "dog")}),
    ],
)
def test_rule_is_found(rows, latent, clauses):
    found = explain(material(rows, latent, Draws()))
    assert {clause for clause, _, _ in found.clauses} & clauses
    assert len(found.clauses) == 1


def test_most_frequent_token_alone_misses_the_context(rows):
    found = material(rows, toy.OF_THE, Draws())
    token = explain(found, only_token=True)
    assert [clause for clause, _, _ in token.clauses] == [Clause("token", " the")]
    same = [each for each in found.hard if each.kind == "same_token"]
    assert all(token.window(each) > 0.5 for each in same)
    assert not any(explain(found).window(each) > 0.5 for each in same)


def test_judge_looks_at_marks_only_where_it_is_asked_to():
    pattern = Pattern(((Clause("word", "cat"), 0.9, 0.8),))
    snippet = Snippet(0, 0, (" a", " cat", " sat"), (1,), "positive")
    assert pattern.window(snippet) == 0.9
    assert pattern.places(snippet, [1]) == 0.8
    assert pattern.places(snippet, [0, 2]) == 0.25
    assert Pattern(()).window(snippet) == 0.25


def test_promoted_token_that_follows_is_a_clause():
    assert Clause("next", "promoted") in clauses_at([" of", " Paris"], 0, frozenset([" Paris"]))
    assert not any(clause.kind == "next" for clause in clauses_at([" of", " Paris"], 1, frozenset([" Paris"])))


def test_spellings_by_hand():
    tokens = {" Paris": "capitalised words", "NASA": "words in capitals", " 2024": "numbers", ",": "punctuation", "\n\n": "line breaks",
              "ing": "parts of words", " dog": "words", "my_name": "names in code", "getName": "names in code",
              " Москва": "letters of the Cyrillic script beyond ASCII"}  # fmt: skip
    assert {token: spelling(token) for token in tokens} == tokens


def test_label_is_short_and_quotes_the_corpus(rows):
    hostile = "<script>x</script>" * 60
    label = Pattern(((Clause("word", hostile), 0.9, 0.9),), ("\n", hostile)).says()
    assert len(label) <= 500 and "\n" not in label
    assert label.startswith("the word '<script>")


def test_pattern_survives_json(rows):
    found = explain(material(rows, toy.CAT, Draws()), [" fur"])
    assert Pattern.from_dict(found.to_dict()) == found
