"""The tools that act, each beside its controls: steering, ablating, probes, chat; and a workspace from folders."""

import audit_diffing_toys as planted
import audit_tools_toys as toys_
import pytest
import torch
from audit_tools_toys import PLANTED, ask, session
from unweave.audit.tools import Session, Workspace
from unweave.audit.tools.calls.act_steer import _wishes
from unweave.circuits import Edit, intervene
from unweave.circuits.graph import Node
from unweave.saes import UserError, to_tokens

RAISED = f"w{planted.RAISED}"


def ablated_loss(text, latent):
    """Mean loss of the target with a latent set to zero at every token but the first, and without; by `intervene`."""
    model, part = toys_.workspace().model(), toys_.workspace().part("resid")
    ids = to_tokens(model, text)
    node = Node("latent", part.layer, 0, latent, 0.0, "", site=part.read)
    changed = intervene(model, ids, Edit(node, "ablate", None, slice(1, None)), part).logits
    rows = [
        logits[:-1].double().log_softmax(-1).gather(1, ids[1:, None]).mean()
        for logits in (model(ids[None])[0], changed)
    ]
    return float(rows[0] - rows[1])


def test_steering_the_planted_latent_raises_its_token_more_than_controls_do():
    found = ask("steer", changes=[{"latent": PLANTED, "amount": 1.0}], text="w6 w7 w8", target=RAISED, tokens=4)
    change = found["target_change"]
    assert change["value"] > max(change["random_directions"]["largest"], change["random_latents"]["largest"])
    assert (
        found["raised"][0]["token"]["untrusted"] == RAISED
        and found["raised"][0]["change"] > found["raised"][0]["controls"][1]
    )
    assert set(found["texts"]) == {"unchanged", "changed", "random"} and PLANTED not in found["random_latents"]
    nothing = ask("steer", changes=[{"latent": PLANTED, "amount": 0.0}], text="w6 w7 w8", tokens=0)
    assert nothing["kl"]["value"] == 0.0 and "texts" not in nothing


@pytest.mark.parametrize("how", ["set", "scale", "ablate"])
def test_every_way_of_changing_works(how):
    found = ask("steer", changes=[{"latent": PLANTED, "amount": 0.5}, {"latent": 3}], text="w5 w7", how=how, tokens=2)
    assert found["how"] == how and found["kl"]["value"] >= 0
    largest = toys_.workspace().norms("resid").largest
    (wish, _) = _wishes(session(), "resid", [PLANTED, 3], [0.5, 1.0], how)
    assert wish.value == {"set": pytest.approx(0.5 * float(largest[PLANTED])), "scale": 0.5, "ablate": None}[how]
    twice = session().call("steer", {"changes": [{"latent": 3}, {"latent": 3}], "text": "w5"})
    assert twice.error["field"] == "changes"


def test_ablation_is_measured_on_the_text_and_beside_active_others():
    text = "w5 w30 w5 w30 w6"
    found = ask("ablate", latents=[PLANTED], texts=[text, "w6 w7"])
    row = next(row for row in found["rows"] if row["text"] == 0)
    assert row["loss_change"] == pytest.approx(ablated_loss(text, PLANTED), rel=1e-2, abs=1e-3)
    assert (
        found["kl"]["controls"] == 8
        and 0.111 < found["kl"]["p"] <= 1
        and row["last_kl"]["random_directions"] is not None
    )
    assert found["kl"]["mean"] == pytest.approx(sum(row["kl"] for row in found["rows"]) / 2, rel=1e-2)


def test_ablating_what_is_silent_changes_nothing():
    part, model = toys_.workspace().part("resid"), toys_.workspace().model()
    from unweave.circuits.experiment.edits import Catalogue
    from unweave.circuits.prompts.through import encode_prompt

    codes, kept = encode_prompt(Catalogue(model, part), part, to_tokens(model, "w6 w7"))
    silent = (codes.dense(part.latents)[kept] == 0).all(0).nonzero()[:, 0].tolist()[:2]
    found = ask("ablate", latents=silent, texts=["w6 w7"])
    assert found["rows"][0]["fires"] == 0 and found["loss_change"]["mean"] == 0.0 and found["loss_change"]["p"] == 1.0


def probe_texts(word):
    return [f"{word} w3 w{number}" for number in range(6, 16)]


def test_a_probe_is_right_on_other_texts_and_shuffled_labels_are_not():
    own = session()
    quality = ask("probe_train", own, name="five", positive=probe_texts("w5"), negative=probe_texts("w4"))["quality"]
    assert quality["auc"] > 0.9 > quality["shuffled"] and quality["shuffled"] < 0.75
    found = ask("probe_apply", own, name="five", texts=["w4 w9", "w5 w9"])
    assert [row["text"] for row in found["rows"]] == [1, 0] and found["rows"][0]["above_ordinary"] > 0.5
    assert own.call("probe_apply", {"name": "other", "texts": ["w5"]}).error["field"] == "name"
    both = own.call("probe_train", {"name": "x", "positive": probe_texts("w5"), "negative": probe_texts("w5")})
    assert both.error["field"] == "negative"
    assert (
        own.call(
            "probe_train", {"name": "x", "positive": probe_texts("w5"), "negative": probe_texts("w4"), "layer": 9}
        ).error["field"]
        == "layer"
    )


def test_chat_pairs_the_target_with_its_base():
    own = session()
    found = ask("chat", own, text="w5 w6", n=3, temperature=1.0, tokens=6)
    gaps = [row["gap"] for row in found["samples"]]
    assert (
        len(gaps) == 3
        and gaps == sorted(gaps, reverse=True)
        and found["mean_gap"] == pytest.approx(sum(gaps) / 3, rel=1e-2)
    )
    row = found["samples"][0]
    model, base = own.workspace.model(), own.workspace.model("base")
    ids = to_tokens(model, "w5 w6")
    new = torch.tensor([model.tokenizer.convert_tokens_to_ids(word) for word in row["target"]["untrusted"].split()])
    for which, name in ((model, "target_nats"), (base, "base_nats")):
        shares = which(torch.cat([ids, new])[None])[0, len(ids) - 1 : -1].double().log_softmax(-1)
        assert row[name] == pytest.approx(-float(shares.gather(1, new[:, None]).mean()), rel=1e-2)
    assert row["gap"] == pytest.approx(row["base_nats"] - row["target_nats"], rel=1e-2, abs=1e-4)
    alone = ask("chat", Session(toys_.bare()), text="w5", tokens=3)
    assert list(alone["samples"][0]) == ["sample", "target"]
    assert ask("chat", own, text="w5", n=4, tokens=3)["samples"][1:] == []  # at temperature 0 all would be the same


def test_a_workspace_opens_from_folders(tmp_path):
    from unweave.audit.tools.opening import Found

    planted.dictionary().save(tmp_path / "dictionaries" / "store")
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "store").symlink_to(toys_.folder() / "store")
    toys_.store()
    toys_.diff().save(tmp_path / "diffs" / "mean one")
    own = Workspace.open([tmp_path], planted.tuned(), planted.base())
    assert list(own.dictionaries) == ["store"] and list(own.diffs) == ["mean-one"] and own.store("store") is not None
    assert ask("list_models", Session(own))["dictionaries"][0]["store"]["labelled"] == 1
    with pytest.raises(UserError, match="folder"):
        Workspace.open([tmp_path / "nothing"], planted.tuned())
    with pytest.raises(UserError, match="name the model"):
        Found().model_name()
