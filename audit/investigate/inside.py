"""Last: what happens inside where a claim shows, and does the reply move when it is taken out?

At the end of a prompt that shows a claim, the latents that the target has more of than the base model (or, without one, that are most
unusual) are removed together. The change of the likeliest next token's logit is told beside the same removal of random latents that fire as
often. This says where a claim lives; a claim stands or falls by what the model wrote, not by this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .asking import Asker, Claim

FOLLOWED, LATENTS = 2, 4


def inside(asker: Asker, claims: Sequence[Claim]) -> None:
    """Add a note, with its results, to the board for each of the surest claims; nothing where the workspace has no dictionary."""
    if not asker.must("list_models").result["dictionaries"]:
        return
    for claim in sorted(claims, key=lambda each: each.p)[:FOLLOWED]:
        if claim.example:
            _looked(asker, claim)


def _looked(asker: Asker, claim: Claim) -> None:
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": claim.example}]}
    options: dict[str, Any] = {"positions": "last", "rank": "change" if asker.has_base else "surprise", "k": LATENTS}
    seen = asker.call("top_features", **prompt, **options)
    if not seen.ok:  # a model that takes no messages
        prompt = {"text": claim.example}
        seen = asker.call("top_features", **prompt, **options)
    if not seen.ok:
        return
    rows = [row for row in seen.result["features"] if row["mean"] > row.get("base", row.get("usual", 0.0))]
    if not rows:
        return
    changes = [{"latent": row["latent"], "amount": 1.0} for row in rows]
    removed = asker.call("steer", changes=changes, **prompt, how="ablate", tokens=0)
    if not removed.ok:
        return
    moved = removed.result["target_change"]
    latents = ", ".join(str(row["latent"]) for row in rows)
    chance = moved.get("random_latents", {}).get("p")
    text = (
        f"{claim.statement} Inside: at the end of such a prompt latents {latents} stand out; without them the likeliest token's logit "
        f"moves by {moved['value']}, p {chance} against random latents."
    )
    asker.call("note", text=text[:1000], evidence=[seen.id, removed.id])
