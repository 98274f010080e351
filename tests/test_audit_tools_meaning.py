"""The corpus by words and by meaning: where a match stands, what a score is, and what stands beside it."""

import audit_diffing_toys as planted
import audit_tools_toys as toys_
import pytest
import torch
from audit_tools_toys import ask, session
from unweave.audit.tools import Session, Workspace, replay
from unweave.audit.tools.calls.look_data import unfolded
from unweave.audit.tools.measures.meaning import (
    CONTROLS,
    FIRST,
    Meanings,
    Query,
    asked,
    beside_others,
    means,
    read_meanings,
)
from unweave.saes import Document, bundled, to_tokens

SITE = "blocks.1.hook_resid_post"  # the middle of the toys' two blocks


def workspace(texts):
    return Workspace({"target": planted.tuned()}, corpus=[Document(f"d{n}", "x", text) for n, text in enumerate(texts)])


def mean_of(text):
    """By the model's own cache."""
    model = planted.tuned()
    _, cache = model.run_with_cache(to_tokens(model, text)[None, : min(FIRST + 1, model.cfg.n_ctx)])
    return cache[SITE][0, 1:].double().mean(0)


@pytest.mark.parametrize("before", ["", "Straße groß ", "ﬃ ﬁ ŉ ", "İİİ "])
def test_a_match_is_shown_where_it_stands(before):
    """Folding makes one character of these two or three."""
    text = before * 60 + "the NEEDLE stands here" + " w5" * 200
    (row,) = ask("search_data", Session(workspace([text, "w5"])), query="needle")["rows"]
    shown = row["text"]["untrusted"]
    assert shown.index("NEEDLE") in range(min(len(before) * 60 + 4, 88), 96)


def test_places_of_the_folded_text_are_found_in_the_text():
    text = "aßbİcﬃd"
    folded = text.casefold()
    assert [text[unfolded(text, folded.index(char))] for char in "abcd"] == list("abcd")
    assert unfolded(text, folded.index("ss") + 1) == 1 and unfolded(text, len(folded)) == len(text)


def test_a_score_is_the_cosine_of_means_less_the_corpus_mean():
    texts = planted.texts(12) + ["w5 w6", "w9 " * 300]
    own = Session(workspace(texts))
    found = ask("search_data", own, query="w5 w6 w9", by="meaning", k=14)
    x = torch.stack([mean_of(text) for text in texts])
    wanted = torch.nn.functional.cosine_similarity(x - x.mean(0), (mean_of("w5 w6 w9") - x.mean(0))[None])
    assert len(found["rows"]) == 14 and found["read"] == found["of"] == 14 and found["site"] == SITE
    for row in found["rows"]:
        assert row["score"] == pytest.approx(float(wanted[int(row["document"]["untrusted"][1:])]), abs=1e-3)
    assert [row["score"] for row in found["rows"]] == sorted((row["score"] for row in found["rows"]), reverse=True)


def test_a_document_is_nearest_to_itself_beyond_all_others():
    texts = planted.texts(60)
    found = ask("search_data", Session(workspace(texts)), query=texts[7], by="meaning", k=3)
    first = found["rows"][0]
    assert first["document"]["untrusted"] == "d7" and first["score"] == pytest.approx(1.0, abs=1e-3)
    assert first["p"] <= 1 / CONTROLS and found["others_best"]["highest"] < 0.999 and found["near"] >= 1


def test_other_texts_of_the_same_length_are_the_control():
    """p counts, for each document, the other documents' beginnings that come as near; its own beginning does not count."""
    model, corpus = planted.tuned(), [Document(f"d{n}", "x", text) for n, text in enumerate(planted.texts(40))]
    x = means(model, [each.text for each in corpus], SITE)
    known = Meanings(torch.nn.functional.normalize(x - x.mean(0)), x.mean(0), list(range(40)), SITE)
    query = asked(model, known, "w5 w6 w7")
    assert query.tokens == 3
    found = beside_others(model, known, corpus, query, 4, 0.05)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(4))[:CONTROLS].tolist()
    begin = means(model, [corpus[row].text for row in order], SITE, 3)
    scores = known.scores(begin)
    for row in (order[0], next(row for row in range(40) if row not in order)):
        others = [float(scores[place, row]) for place, one in enumerate(order) if one != row]
        above = sum(each >= float(query.scores[row]) for each in others)
        assert float(found.p[row]) == pytest.approx((1 + above) / (1 + len(others)))
    # The least p of 32 or 31 others is 1/33 or 1/32: so many documents reach it by chance.
    assert found.chance == pytest.approx((40 - CONTROLS) / 33 + CONTROLS / 32)


def test_random_queries_have_no_small_p_too_often():
    model, corpus = planted.tuned(), [Document(f"d{n}", "x", text) for n, text in enumerate(planted.texts(60))]
    x = means(model, [each.text for each in corpus], SITE)
    known = Meanings(torch.nn.functional.normalize(x - x.mean(0)), x.mean(0), list(range(60)), SITE)
    near = []
    for place, text in enumerate(planted.texts(20, seed=9)):
        query = Query(known.scores(means(model, [text], SITE, 8))[0], 8)
        near.append(float((beside_others(model, known, corpus, query, place, 0.05).p <= 0.05).double().mean()))
    assert sum(near) / len(near) < 0.08


def test_reading_the_corpus_is_paid_for_once(tmp_path):
    own = Session(workspace(planted.texts(20)), transcript=tmp_path / "t.jsonl")
    given = {"query": "w5 w6", "by": "meaning"}
    assert [own.call("search_data", given).body["cost"] for _ in range(2)] == [9 + 20 * FIRST // 512, 9]
    assert own.call("search_data", {"query": "w5"}).body["cost"] == 0
    assert replay(tmp_path / "t.jsonl", workspace(planted.texts(20))).equal


def test_what_cannot_be_looked_for_by_meaning_is_told():
    own = session()
    for given in ({}, {"latent": 3}, {"latent": 3, "query": "w5"}):
        assert own.call("search_data", {"by": "meaning", **given}).error["field"] == "query"
    assert (
        Session(workspace(["", "w5 w6", " "])).call("search_data", {"query": "w5", "by": "meaning"}).error["kind"]
        == "user"
    )
    assert Session(workspace(["w5", "w6 w7"])).call("search_data", {"query": "w5", "by": "meaning"}).ok
    alone = Session(toys_.bare())
    assert alone.call("search_data", {"query": "\U0001f600 w5", "by": "meaning"}).ok  # no base, other tokens


def test_a_translation_is_nearer_than_another_passage(smollm2):
    """Where the words differ: passages of one declaration in four languages, of which each finds its own among three of another."""
    languages = ("dan", "nob", "swe", "nld")
    corpus = sorted(
        (each for each in bundled() if each.kind.removeprefix("language:") in languages), key=lambda each: each.id
    )
    assert len(corpus) == 12
    known = read_meanings(smollm2, corpus)
    scores = torch.stack([asked(smollm2, known, each.text).scores for each in corpus]).view(4, 3, 4, 3)
    right = [
        int(scores[a, row, b].argmax()) == row for a in range(4) for b in range(4) if a != b for row in range(3)
    ]  # chance is a third
    assert sum(right) / len(right) > 0.7
