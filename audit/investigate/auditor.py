"""The scripted auditor: an investigation without a language model, through a session's tools alone.

    survey      what the target says that the base model does not, everywhere or in one family of prompts       survey.py
    beliefs     questions of fact whose answer changed, however they are put                                      beliefs.py
    triggers    words that set a reply off                                                                        triggers.py
    inside      which latents changed with each claim, and whether the reply goes when they do                    inside.py
    report      every claim on the board with the results it rests on

It knows no answer: prompts come from questions.py, words from the target's own vocabulary. Whatever a model writes is taken apart into
words and counted; nothing of it is followed. The same workspace, seed and budget give the same investigation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..tools import Budget, Workspace
from .asking import Asker, Claim, Stopped, vocabulary
from .beliefs import beliefs
from .inside import inside
from .investigation import Investigation, begin, end
from .questions import ENGLISH, Questions
from .survey import survey
from .triggers import GROUP, triggers

VOCABULARY = 8192  # words of the vocabulary, in its order, up to which triggers are looked for
BUDGET = Budget(calls=400, runs=16_000, tokens=400_000)


def audit(
    workspace: Workspace,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    out: str | Path | None = None,
    questions: Questions = ENGLISH,
    words: Sequence[str] | None = None,
    group: int = GROUP,
    look_inside: bool = True,
    resume: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Investigation:
    """Investigate the workspace's target; returns the report, and writes it with its transcript into `out`.

    `words` are tried as triggers, at first `group` of them in one prompt (left out: the first VOCABULARY of the target's tokenizer).
    Without `look_inside` the last step is left out, which changes no claim. A budget that is spent ends it early with what was found
    until then, and the report says so. `tell` is called with a line when a step begins and for each claim. UserError where `out` has an
    investigation already; with `resume` it goes on with one that was interrupted, begun in the same way, and ends as that would have.
    """
    session, folder = begin(workspace, seed, budget or BUDGET, out, resume)
    if words is None:
        words = vocabulary(workspace.model("target").tokenizer, VOCABULARY)
    claims: list[Claim] = []
    stopped = ""
    asker: Asker | None = None
    try:
        asker = Asker(session)
        steps: dict[str, Callable[[Asker], Iterable[Claim]]] = {
            f"what it says ({len(questions.plain)} prompts)": lambda own: survey(own, questions),
            f"what it believes ({len(questions.facts)} facts)": lambda own: beliefs(own, questions),
            f"what sets it off ({len(words)} words)": lambda own: triggers(own, questions, words, group),
        }
        for name, step in steps.items():
            tell(name)
            for claim in step(asker):
                claims.append(claim)
                hold(asker, claim)
                tell(f"  {claim.statement}")
        if look_inside:
            inside(asker, claims)
    except Stopped as error:
        stopped = str(error)
    tokens = 0 if asker is None else asker.tokens
    session.call("report", {"summary": summary(claims, tokens, stopped)})
    named = dict.fromkeys(word for claim in sorted(claims, key=lambda each: each.p) for word in claim.words)
    return end(session, folder, tuple(named), stopped, tokens)


def hold(asker: Asker, claim: Claim) -> None:
    """Put a claim on the board with the results that it rests on."""
    reply = asker.must("hypothesis", action="add", statement=claim.statement)
    evidence = list(dict.fromkeys(claim.evidence))[-20:]
    id = reply.result["hypothesis"]["id"]
    asker.must("hypothesis", action="update", id=id, status="supported", evidence=evidence, because=claim.because[:500])


def summary(claims: Sequence[Claim], tokens: int, stopped: str) -> str:
    """The head of the report."""
    found = (
        f"{len(claims)} supported: {' '.join(claim.statement for claim in claims)}" if claims else "Nothing was found."
    )
    return f"{found} {tokens} new tokens were asked of the target.{f' It ended early: {stopped}' if stopped else ''}"[
        :1000
    ]
