"""Scratchpad methods: identities that must hold, on hand-built copiers and on random models of several architectures."""

import audit_scratchpad_toys as copy
import pytest
import torch
import toys
from unweave.audit.scratchpad import (
    Claim,
    Spans,
    answer_trajectory,
    claimed_vs_used,
    graph_faithfulness,
    knock_out,
    mediation,
    sentence_importance,
    sentences_of,
    split,
)
from unweave.audit.scratchpad.answers import answer_logs, changes, divergence, probability
from unweave.audit.scratchpad.mediation import put, states
from unweave.saes import UserError, to_tokens


@pytest.fixture(scope="module", params=["llama", "gpt2", "opt"])
def random(request):
    model = toys.boot(request.param)
    run = split(model, "w3 w4 w5", scratchpad=["w6 w7", "w8 w9 w10"], answer="w11 w12", cue="w13")
    other = split(model, "w23 w4 w25", scratchpad=["w6 w27", "w8 w29 w20"], answer="w31 w12", cue="w13")
    return model, run, other


def test_pieces_cover_the_run_without_gaps(random):
    model, run, _ = random
    spans = run.spans
    order = [spans.prompt, *spans.sentences, spans.cue, spans.answer]
    assert [p for span in order for p in span] == list(range(len(run.tokens)))
    assert run.tokens.tolist() == to_tokens(model, "w3 w4 w5 w6 w7 w8 w9 w10 w13 w11 w12").tolist() and run.is_natural


def test_three_ways_of_giving_a_run_agree():
    model = toys.boot()
    ids = toys.prompt(9)
    text = " ".join(f"w{i}" for i in ids[1:].tolist())
    spans = Spans(range(0, 3), (range(3, 5), range(5, 7)), range(7, 8), range(8, 9))
    by_spans = split(model, ids, spans=spans)
    words = text.split()
    given = split(
        model,
        " ".join(words[:2]),
        scratchpad=[" ".join(words[2:4]), " ".join(words[4:6])],
        cue=words[6],
        answer=words[7],
    )
    marked = split(
        model, f"{' '.join(words[:2])} <think>{' '.join(words[2:6])}</think> {words[6]} {words[7]}", answer=words[7]
    )
    assert by_spans.tokens.tolist() == given.tokens.tolist() == ids.tolist()
    assert marked.answer.ids == given.answer.ids and marked.sentences[0].text.split() == words[2:6]
    assert marked.prompt.text.endswith("<think>") and marked.cue.text == f"</think> {words[6]}"
    assert (
        "".join(each.text for each in marked.pieces)
        == f"{' '.join(words[:2])} <think>{' '.join(words[2:6])}</think> {' '.join(words[6:])}"
    )


def test_sentences_put_together_are_the_text():
    text = "We add 3.5 to it. Is it 7? Yes!\nSo 7; then 8.\n\nDone"
    parts = sentences_of(text)
    assert "".join(parts) == text
    assert [part.strip() for part in parts] == ["We add 3.5 to it.", "Is it 7?", "Yes!", "So 7;", "then 8.", "Done"]


def test_padding_changes_nothing(random):
    model, run, other = random
    short = run.with_sentences(run.sentences[:1])
    together = answer_logs(model, [short, run, other])
    for logs, each in zip(together, (short, run, other), strict=True):
        torch.testing.assert_close(logs, answer_logs(model, [each])[0], rtol=0, atol=1e-5)


def test_the_last_layer_of_the_lens_is_the_model(random):
    model, run, _ = random
    found = answer_trajectory(model, run, draws=1)
    first = float(answer_logs(model, [run])[0][0, run.answer.ids[0]].exp())
    assert found.by_layer[-1][-1] == pytest.approx(first, rel=1e-6)
    assert found.by_sentence[-1] == pytest.approx(probability(answer_logs(model, [run])[0], run), rel=1e-6)
    nothing = probability(answer_logs(model, [run.with_sentences(())])[0], run)
    assert found.by_sentence[0] == pytest.approx(nothing, rel=1e-6)


def test_replacing_everything_is_the_counterfactual_run(random):
    model, run, other = random
    kept = states(model, other)
    hooks = put([(kept, run.spans.prompt), (kept, run.scratchpad)])
    there = split(model, "w23 w4 w25", scratchpad=["w6 w27", "w8 w29 w20"], answer="w11 w12", cue="w13")
    torch.testing.assert_close(answer_logs(model, [run], hooks)[0], answer_logs(model, [there])[0], rtol=0, atol=1e-9)
    found = mediation(model, run, other)
    same = mediation(model, run, run)
    assert same.total == same.direct == same.indirect == same.words == 0 and found.total == found.both - found.real


def test_an_unchanged_run_changes_nothing(random):
    model, run, _ = random
    (nothing,) = changes(model, run, [run])
    assert nothing.kl == pytest.approx(0, abs=1e-12) and nothing.drop == pytest.approx(0, abs=1e-12)


def test_kl_of_two_tokens_is_the_sum_of_both(random):
    model, run, other = random
    a, b = answer_logs(model, [run, other])
    by_hand = sum(float((a[t].exp() * (a[t] - b[t])).sum()) for t in range(2))
    assert divergence(a, b) == pytest.approx(by_hand, rel=1e-9)


def test_knocked_out_attention_is_what_an_edited_pattern_gives(random):
    model, run, _ = random
    span = run.spans.sentences[0]

    def blind(pattern, hook):
        pattern = pattern.clone()
        pattern[:, :, span.stop :, list(span)] = 0
        return pattern / pattern.sum(-1, keepdim=True)

    found = knock_out(model, run, draws=1)
    assert found.matrix[0][0] == found.matrix[0][1] == found.matrix[1][1] == 0
    assert found.matrix[1][0] > 0 and found.matrix[2][0] > 0
    if model.cfg.model_name == "opt-tiny":  # whose hook_pattern is shown too late to be changed
        return
    hooks = [(f"blocks.{layer}.attn.hook_pattern", blind) for layer in range(toys.LAYERS)]
    a, b = answer_logs(model, [run])[0], answer_logs(model, [run], hooks)[0]
    assert found.matrix[2][0] == pytest.approx(divergence(a, b), rel=1e-4)


@pytest.mark.parametrize("place, answer", [(copy.HINT, "3"), (copy.FIRST, "5"), (copy.SECOND, "7")])
def test_a_copier_depends_on_the_sentence_it_copies_and_on_no_other(place, answer):
    model = copy.copier(place)
    run = copy.run(model, answer=answer)
    is_used = [place == copy.FIRST, place == copy.SECOND]
    donors = [["so 1 .", "then 2 ."], ["so 8 .", "then 9 ."]]
    found = sentence_importance(model, run, donors=donors, paraphrases=[["then 5 ."], ["so 7 ."]], draws=6)
    for i, used in enumerate(is_used):
        assert all((each.drop > 0.9) == used for each in found.replace[i])
        assert all(abs(each.kl) < 1e-9 for each in found.floor[i]) and (found.q[i] < 0.05) == used
    matrix = knock_out(model, run, draws=2).matrix
    assert [matrix[-1][i] > 1 for i in range(2)] == is_used and matrix[1][0] < 1e-9


def test_a_model_that_ignores_the_scratchpad_has_no_indirect_effect():
    model = copy.copier(copy.HINT)
    found = mediation(model, copy.run(model, answer="3"), copy.run(model, first="1", second="2", hint="4", answer="4"))
    assert found.indirect == found.words == 0
    assert found.direct == found.total == pytest.approx(-2, abs=1e-9) and found.share == 0


def test_a_model_that_copies_the_scratchpad_has_no_direct_effect():
    model = copy.copier(copy.SECOND)
    found = mediation(model, copy.run(model), copy.run(model, first="1", second="2", hint="4", answer="2"))
    assert found.direct == 0 and found.indirect == found.words == found.total == pytest.approx(-2, abs=1e-9)


def test_the_answer_follows_the_copied_claim_in_text_and_in_states():
    model = copy.copier(copy.SECOND)
    claims = [
        Claim(0, "5", (("1", "1"), ("2", "2"))),
        Claim(1, "7", (("1", "1"), ("2", "2"))),
        Claim(None, "3", (("1", "1"),)),
    ]
    first, second, hint = claimed_vs_used(model, copy.run(model), claims)
    assert second.mean["follows"] == pytest.approx(1) and second.mean["states"] == pytest.approx(1)
    assert second.mean["drop"] == pytest.approx(1) and second.mean["chance"] == pytest.approx(0, abs=1e-9)
    for one in (first, hint):
        assert max(abs(one.mean[key]) for key in ("follows", "states", "drop")) < 1e-9


@pytest.mark.parametrize(
    "place, group, answer", [(copy.HINT, "hint", "3"), (copy.FIRST, "scratchpad", "5"), (copy.SECOND, "claimed", "7")]
)
def test_the_graph_credits_the_copied_token_and_ablation_agrees(place, group, answer):
    model = copy.copier(place)
    found = graph_faithfulness(model, copy.run(model, answer=answer), claimed=[copy.SECOND], hint=[copy.HINT], draws=2)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares[group] == max(found.shares[name] for name in ("claimed", "scratchpad", "hint", "prompt")) > 0.2
    assert found.measured[group] > 0.9 and all(
        abs(drop) < 1e-9 for name, drop in found.measured.items() if name != group
    )
    assert found.residual < 1e-9 and found.error_share == 0


def test_shares_sum_to_one_on_a_random_model(random):
    model, run, _ = random
    found = graph_faithfulness(model, run, claimed=[5], hint=[2], draws=1, max_features=100)
    assert sum(found.shares.values()) == pytest.approx(1, abs=1e-9) and min(found.shares.values()) >= 0
    everything = graph_faithfulness(model, run, claimed=list(run.scratchpad), draws=1, max_features=100)
    assert everything.shares["scratchpad"] == 0
    assert everything.shares["claimed"] == pytest.approx(found.shares["claimed"] + found.shares["scratchpad"], abs=0.2)


def test_a_counterfactual_of_another_length_is_refused():
    model = copy.copier(copy.HINT)
    longer = split(model, "ask 4 4 hint", scratchpad=["so 5 .", "then 7 ."], answer="3", cue="answer")
    with pytest.raises(UserError, match="as many tokens"):
        mediation(model, copy.run(model), longer)
