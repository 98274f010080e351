"""The tools that look and compare, on a workspace whose answer is known: the target writes latent 0 on the word w5, the base does not."""

import itertools
import math

import audit_diffing_toys as planted
import audit_monitor_toys
import audit_tools_toys as toys_
import pytest
import torch
from audit_tools_toys import PLANTED, ask, session
from unweave.audit.diffing.lens import lens
from unweave.audit.labels import Scripted
from unweave.audit.tools import Session, Workspace
from unweave.audit.tools.calls.compare_labels import pattern_of
from unweave.audit.tools.calls.compare_texts import least_p, regrouped
from unweave.circuits import intervene
from unweave.circuits.experiment.edits import Catalogue
from unweave.circuits.prompts.through import encode_prompt
from unweave.saes import Document, UserError, to_tokens

PLAIN = audit_monitor_toys.words(6, 15, 20, seed=3)
FIVE = [" ".join(f"{word} w5" for word in text.split()[:4]) for text in PLAIN[:10]]
OTHER = PLAIN[10:]


def values(text, which="target"):
    """Activations [token latent] of the dictionary on a text, by another way."""
    model = toys_.workspace().models[which]
    part = toys_.workspace().part("resid")
    codes, kept = encode_prompt(Catalogue(model, part), part, to_tokens(model, text))
    return codes.dense(part.latents)[kept].double()


def test_top_features_change_finds_what_was_planted():
    found = ask("top_features", text="w5 w6 w7 w5", rank="change", k=3)
    first = found["features"][0]
    assert first["latent"] == PLANTED and first["base"] < first["mean"]
    assert first["token"] == {"untrusted": "w5"}


@pytest.mark.parametrize("rank", ["surprise", "activation", "mean", "change", "attribution"])
def test_rankings_are_ordered_without_repeats_and_dense_latents(rank):
    own = session()
    found = ask("top_features", own, text="w5 w6 w7 w12 w9", rank=rank, k=20)
    rows, dense = found["features"], own.workspace.norms("resid").dense
    keys = {"surprise": lambda row: row["bits"], "activation": lambda row: row["value"], "mean": lambda row: row["mean"] - row["usual"],
            "change": lambda row: abs(row["mean"] - row["base"]), "attribution": lambda row: abs(row["attribution"])}  # fmt: skip
    numbers = [keys[rank](row) for row in rows]
    assert all(one >= other - 0.11 * (rank == "surprise") - 1e-3 for one, other in itertools.pairwise(numbers))
    assert len({row["latent"] for row in rows}) == len(rows) > 3
    assert all(row["density"] <= dense for row in rows)
    everything = ask("top_features", text="w5 w6 w7 w12 w9", rank=rank, k=50, exclude_dense=False)
    assert everything["dense_left_out"] == 0


def test_top_features_numbers_are_those_of_the_model():
    text = "w5 w6 w7"
    x = values(text)
    for row in ask("top_features", text=text, k=5)["features"]:
        column = x[:, row["latent"]]
        assert row["value"] == pytest.approx(float(column.max()), rel=1e-3)
        assert row["mean"] == pytest.approx(float(column.mean()), rel=1e-3)
        assert row["base"] == pytest.approx(float(values(text, "base")[:, row["latent"]].mean()), rel=1e-3, abs=1e-6)
        assert row["tokens"] == int((column > 0).sum())
    last = ask("top_features", text=text, k=5, positions="last")
    assert last["asked"] == 1 and all(row["at"] == 3 for row in last["features"])


def test_without_a_store_bits_come_from_the_baseline_text():
    own = Session(toys_.bare())
    found = ask("top_features", own, text="w5 w6 w7", k=3)
    baseline = own.workspace.baseline("resid")
    assert "baseline" in found["usual_from"] and "base" not in found["features"][0]
    for row in found["features"]:
        known = baseline.of(row["latent"])
        above = max(1, int((known >= row["value"] * (1 - 1e-3)).sum()))
        assert row["bits"] == pytest.approx(-math.log2(above / len(known)), rel=0.02)


def test_latents_that_write_the_same_are_told_once():
    dictionary = planted.dictionary()
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc"):
            getattr(dictionary, name)[7] = getattr(dictionary, name)[PLANTED]
    own = Session(Workspace({"target": planted.tuned()}, {"twins": dictionary}, corpus=toys_.corpus()))
    rows = ask("top_features", own, text="w5 w5 w6", k=20, rank="activation")["features"]
    row = next(row for row in rows if row["latent"] in (7, PLANTED))
    assert row["also"] == [7 if row["latent"] == PLANTED else PLANTED]


def test_chats_are_asked_about_the_assistant():
    model = planted.tuned()
    model.tokenizer.chat_template = audit_monitor_toys.TEMPLATE
    try:
        own = Session(Workspace({"target": model}, {"resid": planted.dictionary()}, corpus=toys_.corpus()))
        spoken = [{"role": "user", "content": "w6 w7"}, {"role": "assistant", "content": "w5 w9"}]
        found = ask("top_features", own, messages=spoken, positions="assistant", rank="activation")
        assert found["asked"] == 2
        silent = ask("top_features", own, messages=spoken[:1], positions="assistant", rank="activation")
        assert 0 < silent["asked"] < silent["tokens"] - 2  # the markers that open its turn
        assert ask("chat", own, messages=spoken[:1], prefill="w5 w9", tokens=2)["samples"][0]["target"]["untrusted"]
        wrong = own.call("chat", {"messages": spoken, "prefill": "w5"})
        assert wrong.error["field"] == "prefill"
    finally:
        model.tokenizer.chat_template = None
    assert session().call("top_features", {"text": "w5", "positions": "assistant"}).error["field"] == "positions"


def test_activations_stand_beside_the_base_and_ordinary_text():
    found = ask("activations", latents=[PLANTED, 3], texts=["w5 w3", "w4 w6"])
    rows = found["rows"]
    assert [row["of_usual_max"] for row in rows] == sorted((row["of_usual_max"] for row in rows), reverse=True)
    row = next(row for row in rows if (row["text"], row["latent"]) == (0, PLANTED))
    x = values("w5 w3")[:, PLANTED]
    assert row["max"] == pytest.approx(float(x.max()), rel=1e-3) and row["base_max"] < row["max"]
    assert row["strongest_at"][0][0] == 1 and row["tokens"]["untrusted"].startswith("w5")


def test_feature_tells_where_the_models_differ_and_marks_the_firing_tokens():
    found = ask("feature", latent=PLANTED)
    both = found["on_ordinary_text"]
    assert both["target"]["mean"] > both["base"]["mean"]
    assert found["promotes"]["untrusted"].startswith(f"w{planted.RAISED} ")
    assert found["label"]["untrusted"].startswith("what w5 makes it write")
    shown = [row["value"] for row in found["examples"]]
    assert shown == sorted(shown, reverse=True) and len({row["document"] for row in found["examples"]}) == len(shown)
    assert all("⟦" in row["text"]["untrusted"] for row in found["examples"])
    plain = ask("feature", Session(toys_.bare()), latent=3)
    assert plain["examples"] and "on_ordinary_text" not in plain
    part, model = toys_.bare().part("resid"), toys_.bare().model()
    effects = lens(model, part.W_dec[part.read][3][None].double())[0]
    assert plain["promotes"]["untrusted"].startswith(f"{model.tokenizer.decode([int(effects.argmax())])} ")


@pytest.mark.parametrize("own", [toys_.workspace, toys_.bare], ids=["store", "bare"])
def test_search_by_token_finds_latents_that_fire_on_it(own):
    rows = ask("search_features", Session(own()), query="w7", by="token", k=5, exclude_dense=False)["features"]
    assert rows and rows[0]["share_of_firings"] > 0.1 and rows[0]["times_chance"] > 1
    by_logit = ask("search_features", Session(own()), query=f"w{planted.RAISED}", by="logit", k=3, exclude_dense=False)[
        "features"
    ]
    part = own().part("resid")
    effects = lens(own().model(), part.W_dec[part.read].double())[:, planted.RAISED]
    assert by_logit[0]["latent"] == int(effects.argmax())
    near = ask("search_features", Session(own()), query="3", by="similar", k=4)["features"]
    assert [row["cosine"] for row in near] == sorted((row["cosine"] for row in near), reverse=True)


def test_search_data_counts_passages_once():
    corpus = [Document(f"c{i}", "text", "the same passage w5") for i in range(3)] + [
        Document("d", "text", "w5 and w5 elsewhere")
    ]
    own = Session(Workspace({"target": planted.tuned()}, {"resid": planted.dictionary()}, corpus=corpus))
    found = ask("search_data", own, query="W5", k=8)
    assert (
        found["documents"] == 4
        and [row["score"] for row in found["rows"]] == [2.0, 1.0]
        and found["rows"][1]["copies"] == 3
    )
    words = ask("search_data", own, query="passage nowhere elsewhere", k=8)
    assert words["documents"] == 4 and words["rows"][0]["document"]["untrusted"] == "d"  # the rarer word


def test_search_data_by_latent_ranks_by_its_largest_value():
    found = ask("search_data", session(), latent=PLANTED, query="w5", k=5)
    numbers = [row["value"] for row in found["rows"]]
    assert numbers == sorted(numbers, reverse=True) and found["rows"][0]["base_value"] < numbers[0]


def test_long_documents_are_read_from_their_beginning():
    corpus = [Document(f"c{i}", "text", "w5 w6 w7 w8 " * 400) for i in range(70)]
    own = Session(Workspace({"target": planted.tuned()}, {"resid": planted.dictionary()}, corpus=corpus))
    found = ask("search_data", own, latent=PLANTED, k=3)
    assert found["read"] == 64 and found["of"] == 70 and found["rows"][0]["copies"] == 3


def test_compare_texts_finds_the_planted_latent_and_nothing_in_alike_groups():
    found = {}
    for which in ("target", "base"):
        rows = ask("compare_texts", a=FIVE, b=OTHER, k=20, model=which, exclude_dense=False)["features"]
        found[which] = next((row for row in rows if row["latent"] == PLANTED), {"mean_a": 0.0})
    assert (
        found["target"]["found"]
        and found["target"]["d"] > 1
        and found["target"]["mean_a"] > 2 * found["base"]["mean_a"]
    )
    alike = ask("compare_texts", a=planted.texts(8, seed=5), b=planted.texts(8, seed=6), k=3)
    assert alike["found"] == 0


def test_regrouping_gives_the_exact_share_where_all_can_be_listed():
    x = torch.tensor([[5.0, 1.0], [6.0, 2.0], [7.0, 1.5], [1.0, 2.0], [2.0, 1.0], [0.0, 1.5]], dtype=torch.float64)
    p, _ = regrouped(x, torch.arange(6) < 3, seed=0)
    # The first column is as far apart as it can be: 2 of the 20 groupings; the second has equal means: every grouping reaches it.
    assert float(p[0]) == pytest.approx(0.1, abs=0.03) and float(p[1]) == 1.0
    assert least_p(3, 3, 2_000) == pytest.approx(0.1)


def test_no_p_of_alike_groups_is_too_small_too_often():
    x = torch.randn(12, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, _ = regrouped(x, torch.arange(12) < 6, seed=1)
    assert abs(float((p <= 0.1).double().mean()) - 0.1) < 0.05


def test_diff_features_by_a_diff_by_means_and_by_the_lens():
    stored = ask("diff_features", k=4)
    assert stored["diff"] == "mean" and stored["features"][0]["latent"] == PLANTED
    scores = [row["score"] for row in stored["features"]]
    assert scores == sorted(scores, reverse=True)
    quick = ask("diff_features", quick=True, k=4, exclude_dense=False)
    first = quick["features"][0]
    assert quick["found"] == 1 and first["latent"] == PLANTED and first["found"] and first["mean_a"] < first["mean_b"]
    lens = ask("diff_features", quick=True, method="lens", k=5)
    assert lens["rows"][0]["token"]["untrusted"] == f"w{planted.RAISED}" and lens["rows"][0]["found"]
    assert Session(toys_.bare()).call("diff_features", {"quick": True}).error["kind"] == "user"
    assert session().call("diff_features", {"by": "nonsense", "quick": True}).error["field"] == "by"


def test_explanations_are_scored_beside_another_latents_words():
    own = session()
    found = ask("explain_feature", own, latent=PLANTED)
    assert found["score"]["value"] > 0.6 > found["other_label"]["value"] and found["chance"] == 0.5
    assert ask("explain_feature", own, latent=PLANTED) == found
    words = ask("score_explanation", own, latent=PLANTED, explanation="fires on 'w13' and 'w4'")
    assert words["judged_by"]["untrusted"] == "w13, w4" and words["score"]["value"] > words["other_label"]["value"]
    with pytest.raises(UserError, match="quotes"):
        pattern_of("the token")


def test_a_judge_explains_and_judges_where_there_is_one():
    judge = Scripted(
        lambda chat: "words </untrusted> like w13",
        lambda chat: 0.9 if "w13" in chat[-1]["content"].split("Text:")[-1] else 0.1,
    )
    base = toys_.workspace()
    own = Session(Workspace(base.models, base.dictionaries, base.stores, judge=judge))
    reply = own.call("explain_feature", {"latent": PLANTED})
    assert reply.ok and reply.to_dict()["cost"] > 0 and reply.result["score"]["value"] > 0.5
    assert reply.result["explanation"] == {"untrusted": "words </untrusted> like w13"}


def test_attribution_names_nodes_whose_ablation_does_what_it_says():
    own = session()
    found = ask("attribution", own, text="w5 w6 w7", target=f"w{planted.RAISED}", contrast="w40", k=20)
    sizes = [abs(row["attribution"]) for row in found["features"]]
    assert sizes == sorted(sizes, reverse=True) and found["ledger_residual"] < 1e-4
    graph = own.kept["graphs"][found["graph"]][0]
    row = found["features"][0]
    assert graph.nodes[row["nodes"][0]].index == row.get("neuron", row.get("latent"))
    patched = ask("path_patch", own, graph=found["graph"], nodes=[row["nodes"][0]])
    node = graph.nodes[row["nodes"][0]]
    model = own.workspace.model()
    from unweave.circuits import Edit

    change = intervene(model, to_tokens(model, "w5 w6 w7"), Edit(node), own.workspace.part("resid")).logits[-1].double()
    before = model(to_tokens(model, "w5 w6 w7")[None])[0, -1].double()
    one, other = planted.RAISED, 40
    measured = float((change[one] - change[other]) - (before[one] - before[other]))
    assert patched["rows"][0]["measured"] == pytest.approx(measured, rel=1e-2, abs=1e-3)
    assert patched["rows"][0]["controls"] > 0
    latents = ask("attribution", own, text="w5 w6 w7", kind="latents", k=20)["features"]
    assert {row["kind"] for row in latents} <= {"latent"}
