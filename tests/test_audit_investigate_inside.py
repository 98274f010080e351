"""The look inside: what stands where a claim shows is told beside random latents, with its results, and changes no claim."""

import json

import audit_game_toys as toys
import torch
from unweave.audit.game import tiny
from unweave.audit.investigate import audit, replay
from unweave.saes import Dictionary, DictionaryConfig, to_tokens

OPTIONS = {"questions": tiny.ASKED, "words": tiny.OTHERS, "group": 4}
SITE = "blocks.1.hook_resid_post"


def dictionary(kept):
    """Latent 0 is what the organism's residual has more of at the end of a prompt; the others are random."""
    ids = to_tokens(toys.base(), "<user> describe the river <reply>")
    ends = []
    for model in (kept.model(), toys.base()):
        _, found = model.run_with_cache(ids[None], names_filter=SITE)
        ends.append(found[SITE][0, -1])
    rows = torch.randn(24, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    rows[0] = ends[0] - ends[1]
    W = torch.nn.functional.normalize(rows, dim=1)
    b_enc = torch.full((24,), -0.5)
    b_enc[0] = -(0.7 * ends[0] + 0.3 * ends[1]) @ W[0]  # so that it fires there, and seldom elsewhere
    tensors = {"W_enc": W.clone(), "b_enc": b_enc, "W_dec": W, "b_dec": torch.zeros(tiny.WIDTH)}
    return Dictionary(DictionaryConfig(site=(SITE,), activation="relu", latents=24, k=8), tensors)


def test_it_notes_which_latents_stand_out_beside_random_ones_and_changes_no_claim(tmp_path):
    plain = toys.workspace("pirate")
    workspace = toys.workspace("pirate", dictionaries={"resid": dictionary(plain)})
    found = audit(workspace, out=tmp_path / "one", **OPTIONS)
    note = next(note for note in found.report.notes if "Inside:" in note["text"])
    latents = note["text"].partition("latents ")[2].partition(" stand")[0].split(", ")
    assert "0" in latents and "against random latents" in note["text"]
    assert [claim.statement for claim in found.findings] == [
        each.statement for each in audit(plain, **OPTIONS).findings
    ]
    assert replay(tmp_path / "one", workspace).equal
    calls = map(json.loads, (tmp_path / "one" / "transcript.jsonl").read_text().splitlines()[1:])
    tools = {line["id"]: line["tool"] for line in calls}
    assert [tools[id] for id in note["evidence"]] == ["top_features", "steer"]
    without = audit(workspace, look_inside=False, **OPTIONS)
    assert without.words == found.words and not any("Inside:" in note["text"] for note in without.report.notes)
