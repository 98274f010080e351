"""check_scratchpad: every method on one run, and what follows.

1. split the run (spans.py), 2. when the answer is decided (trajectory.py), 3. each sentence and all of them changed (importance.py),
seed by seed, 4. who reads whom (attention.py), 5. claims and hint edited (claims.py), 6. the class (verdict.py), 7. what may be missing
(parts.py): effects by way of the scratchpad (mediation.py), the attribution graph (graph.py), the model's own rewriting (resample.py). A
part that cannot be had for this model or run is left out with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...circuits.prompts.text import Prompt
from ...saes import UserError, model_info
from .answers import Change, answer_logs, changes, is_own
from .attention import knock_out
from .claims import Claim, Followed, check_claim, claim_positions, claimed_vs_used, rewritten
from .importance import NEUTRAL, Importance, Paraphrases, Whole, Wording, sentence_importance, whole_importance
from .parts import Parts
from .resample import check_rollouts
from .result import Scratchpad
from .spans import MARKERS, Written, split
from .trajectory import answer_trajectory
from .verdict import Evidence, dependence, interval, settle

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DRAWN_HINTS = 8


def check_scratchpad(
    model: TransformerBridge,
    prompt: Prompt,
    scratchpad: str | Sequence[str] | None = None,
    answer: str | None = None,
    *,
    cue: str = "",
    markers: tuple[str, str] = MARKERS,
    hint: str | None = None,
    hint_edits: Sequence[tuple[str, str | None]] = (),
    claims: Sequence[Claim] = (),
    donors: Sequence[Sequence[str]] = (),
    paraphrases: Paraphrases | None = None,
    neutral: str = NEUTRAL,
    counterfactual: Mapping[str, Any] | None = None,
    dictionaries: Any = None,
    graph: bool = True,
    resample: int = 0,
    temperature: float = 1.0,
    draws: int = 16,
    seeds: int = 3,
    seed: int = 0,
) -> Scratchpad:
    """Does `answer` depend on the scratchpad written between `prompt` and it?

    Without `scratchpad`, `prompt` is a whole text or chat with it between `markers` (see `split`). `hint`: text in the prompt that may give
    the answer away; `hint_edits`: what to put there, each with the answer that would follow, or None; left out, tokens of the run.
    `donors`, `paraphrases`, `neutral`: see `sentence_importance`; `claims`: see `claimed_vs_used`. `counterfactual`: {"prompt",
    "scratchpad", "answer"} of another problem worded alike, for mediation. `dictionaries`: for the graph; `graph=False` leaves it out.
    `resample`: let the model write on so many times from each sentence, at `temperature` (see `resample_sentences`; 0: not at all).
    Everything else drawn is drawn `draws` times for each of `seeds` seeds. Raises UserError for a run without sentences or answer, a hint
    or a value that does not stand where it is said to, edits of no hint or that change nothing, fewer than 4 draws, and 1 to 3 rollouts or
    a temperature of 0 for them.
    """
    _check(draws, seeds, hint, hint_edits)
    if resample != 0:
        check_rollouts(resample, temperature)
    run = split(model, prompt, scratchpad=scratchpad, answer=answer, cue=cue, markers=markers)
    asked = _asked(model, run, hint, hint_edits, seed)
    _check_claims(model, run, [*claims, *([] if asked is None else [asked])])
    values = [(claim.sentence, claim.value) for claim in claims]
    wordings = [Wording(model, run, donors, paraphrases, neutral, seed + i, values) for i in range(seeds)]
    importance = sentence_importance(
        model, run, draws=draws, seed=seed, values=values, donors=donors, paraphrases=paraphrases, neutral=neutral
    )
    wholes = [importance.whole, *(whole_importance(model, run, wording, draws) for wording in wordings[1:])]
    followed = claimed_vs_used(model, run, claims)
    evidence = _evidences(model, run, wholes, followed, asked, bool(donors), seed)
    verdict, by_seed, reasons = settle(evidence)
    same = [run.with_sentences(wordings[0].same()) for _ in range(draws)]
    parts = Parts(model, run, claims, asked, same, seed)
    return Scratchpad(
        run, verdict, reasons, by_seed, evidence,
        answer_trajectory(model, run, draws=draws, seed=seed),
        importance,
        knock_out(model, run, seed=seed),
        followed,
        None if asked is None else claimed_vs_used(model, run, [asked])[0],
        parts.mediation(counterfactual),
        parts.hint_mediation(),
        parts.graph(graph, dictionaries),
        parts.left_out,
        _settings(model, importance, bool(donors)) | {"draws": draws, "seeds": seeds, "seed": seed},
        parts.resampled(resample, temperature, markers[1:]),
    )  # fmt: skip


def _check(draws: int, seeds: int, hint: str | None, hint_edits: Sequence[Any]) -> None:
    if hint_edits and hint is None:
        raise UserError("expected the hint that hint_edits are put in the place of; got none; name it")
    if len(hint_edits) == 1:
        raise UserError("expected at least 2 hint_edits; got 1; of a single one no p can be small")
    if draws < 4 or seeds < 1:
        raise UserError(
            f"expected at least 4 draws and 1 seed; got {draws} and {seeds}; of fewer draws no p can be small"
        )


def _check_claims(model: TransformerBridge, run: Written, claims: Sequence[Claim]) -> None:
    """UserError for a value that does not stand where it is said to."""
    for claim in claims:
        check_claim(run, claim)
        claim_positions(model, run, claim)


def _evidences(
    model: TransformerBridge,
    run: Written,
    wholes: Sequence[Whole],
    followed: Sequence[Followed],
    asked: Claim | None,
    has_donors: bool,
    seed: int,
) -> list[Evidence]:
    """What decides the class, for each seed's changes of all sentences."""
    hinted = (
        None if asked is None else changes(model, run, [rewritten(model, run, asked, new) for new, _ in asked.edits])
    )
    largest = max((one.mean["drop"] for one in followed), default=None)
    own = is_own(answer_logs(model, [run])[0], run)
    return [_evidence(run, one, hinted, largest, own, has_donors, seed + i) for i, one in enumerate(wholes)]


def _settings(model: TransformerBridge, importance: Importance, has_donors: bool) -> dict[str, Any]:
    return {
        "floor": importance.floor_is,
        "replaced_by": importance.replaced_by if has_donors else "tokens of the run",
        "model": model_info(model).dict(),
    }


def _evidence(
    run: Written,
    found: Whole,
    hinted: list[Change] | None,
    claims: float | None,
    own: bool,
    has_donors: bool,
    seed: int,
) -> Evidence:
    # Without donors, other sentences of the same run say the same things in another order: garbling is the only replacement of all.
    words = found.replace if has_donors else found.garble
    return Evidence(
        own,
        dependence(words, found.floor, seed),
        None if hinted is None else dependence(hinted, found.floor, seed),
        interval([each.drop for each in found.floor], seed),
        claims,
        states(run),
        found.remove.drop,
    )


def states(run: Written) -> bool:
    """Whether the scratchpad says the answer, in the answer's tokens or as a word of its own."""
    said, wanted = [token for one in run.sentences for token in one.ids], list(run.answer.ids)
    has_tokens = any(said[i : i + len(wanted)] == wanted for i in range(len(said)))
    words = "".join(one.text for one in run.sentences).split()
    return has_tokens or run.answer.text.strip() in [word.strip(".,;:!?") for word in words]


def _asked(
    model: TransformerBridge, run: Written, hint: str | None, edits: Sequence[tuple[str, str | None]], seed: int
) -> Claim | None:
    """The hint as a claim about the prompt. UserError for a run without sentences: there is nothing to check then."""
    if not run.sentences:
        raise UserError(
            "expected a scratchpad of at least one sentence; got none; there is nothing to test without one"
        )
    return None if hint is None else Claim(None, hint, tuple(edits) or _drawn(model, run, hint, seed))


def _drawn(model: TransformerBridge, run: Written, hint: str, seed: int) -> tuple[tuple[str, str | None], ...]:
    """Texts of tokens of the run to put in the hint's place; no answer is known to follow."""
    tokenizer: Any = model.tokenizer
    ids = [token for one in (run.prompt, *run.sentences) for token in one.ids]
    special = set(getattr(tokenizer, "all_special_ids", []))
    texts = dict.fromkeys(tokenizer.decode([token]).strip() for token in ids if token not in special)
    pool = [text for text in texts if text and text != hint.strip() and text.isalnum()]
    if not pool:
        raise UserError("expected words in the run to put in the hint's place; got none; give hint_edits")
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple((pool[i], None) for i in order[:DRAWN_HINTS])
