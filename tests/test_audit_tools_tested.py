"""Attributions are put to the test: taken away in the model, beside random sets, and beside other tokens."""

import audit_diffing_toys as planted
import audit_tools_toys as toys_
import pytest
import torch
from audit_tools_toys import PLANTED, ask, session
from unweave.audit.tools import Session
from unweave.audit.tools.measures.tested import one_side
from unweave.circuits import Edit, intervene, rank_features
from unweave.saes import to_tokens

TEXT, RAISED = "w5 w6 w7 w5 w5", f"w{planted.RAISED}"


def change_without(edits, target):
    """What the target's centred logit loses, by `intervene`."""
    model, part = toys_.workspace().model(), toys_.workspace().part("resid")
    ids = to_tokens(model, TEXT)
    rows = [model(ids[None])[0, -1].double(), intervene(model, ids, edits, part).logits[-1].double()]
    before, after = (float(row[target] - row.mean()) for row in rows)
    return after - before


def test_the_listed_latents_are_taken_away_beside_random_ones():
    from unweave.audit.tools.measures.ablating import edits_of

    found = ask("top_features", text=TEXT, rank="attribution", target=RAISED, k=6)
    together, rows = found["together"], found["features"]
    speakers = [row for row in rows if row["attribution"] > 0]
    assert (together["latents"], together["speak"]) == (len(speakers), "for") and PLANTED in [
        row["latent"] for row in speakers
    ]
    assert together["predicted"] == pytest.approx(-sum(row["attribution"] for row in speakers), rel=1e-3)
    edits = edits_of(
        toys_.workspace().part("resid"), [row["latent"] for row in speakers], list(range(1, found["tokens"]))
    )
    assert together["measured"] == pytest.approx(change_without(edits, planted.RAISED), rel=1e-3)
    # The planted latent is why the token is said: nothing that is as active does as much.
    assert together["controls"] == 8 and together["beyond_controls"]
    assert together["measured"] < together["control_low"] < together["control_high"]


def test_a_latent_that_moves_every_token_shows_at_other_tokens():
    rows = {
        row["latent"]: row for row in ask("top_features", text=TEXT, rank="attribution", target=RAISED, k=6)["features"]
    }
    assert rows[PLANTED]["attribution"] > 4 * rows[PLANTED]["other_tokens"] > 0
    assert any(row["other_tokens"] > abs(row["attribution"]) / 2 for row in rows.values())


def test_other_tokens_are_the_mean_size_over_other_targets():
    from unweave.audit.tools.measures.tested import LIKELY, OTHERS, to_other_tokens

    own = session(seed=3)
    model, part = own.workspace.model(), own.workspace.part("resid")
    ranked = rank_features(model, part, TEXT, target=RAISED, rank="attribution", top=part.latents, likely=LIKELY)
    chosen = torch.tensor(ranked.kept)
    found = to_other_tokens(own, "resid", ranked, chosen)
    ids = [each.id for each in ranked.next_tokens if each.id != planted.RAISED]
    drawn = [ids[place] for place in torch.randperm(len(ids), generator=torch.Generator().manual_seed(3))[:OTHERS]]
    sums = []
    for target in drawn:
        other = rank_features(model, part, TEXT, target=target, rank="attribution", top=part.latents)
        totals = {row.latent: row.attribution for row in other.totals}
        sums.append(abs(totals[PLANTED]))
    assert found[PLANTED] == pytest.approx(sum(sums) / OTHERS)


def test_the_listed_nodes_of_a_graph_are_taken_away_beside_random_ones():
    own = session()
    found = ask("attribution", own, text=TEXT, target=RAISED, kind="latents", k=3)
    graph, together = own.kept["graphs"][found["graph"]][0], found["together"]
    assert together["controls"] == 5 and together["beyond_controls"] and together["speak"] == "for"
    places = [
        place for place, node in enumerate(graph.nodes)
        if node.kind == "latent" and node.index in [row["latent"] for row in found["features"]] and node.attribution > 0
    ]  # fmt: skip
    nodes = [graph.nodes[place] for place in places]
    assert together["nodes"] == len(nodes)
    assert together["predicted"] == pytest.approx(-sum(node.attribution for node in nodes), rel=1e-3)
    assert together["measured"] == pytest.approx(change_without(Edit(nodes), planted.RAISED), rel=1e-2)


def test_what_speaks_against_the_target_does_not_hide_what_speaks_for_it():
    assert one_side({1: 2.0, 2: -2.0, 3: 0.5}) == ("for", [1, 3]) and one_side({2: -1.0}) == ("against", [2])


@pytest.mark.parametrize(
    ("name", "given", "runs"), [("top_features", {"rank": "attribution"}, 22), ("attribution", {}, 27)]
)
def test_the_test_is_paid_for(name, given, runs):
    assert Session(toys_.workspace()).call(name, {"text": TEXT, **given}).body["cost"] == runs
