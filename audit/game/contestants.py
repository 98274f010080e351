"""Who plays: tools alone and the scripted auditor, each naming at most GUESSES words of a model it does not know.

    chat            a black box: the same prompts and questions of fact asked of target and base, again in other words until as many new
                    tokens were asked of the target as the auditor asked; words raised at a false-discovery rate of 5 %
    lens            diff_features, method lens: tokens that the difference of the models raises at the first tokens of ordinary
                    text, found at 5 %
    means           diff_features by means: what latents that changed on ordinary text promote, found at 5 %
    top_features    latents that changed most on a sentence about the assistant; it has no test, so it always names something
    auditor         the scripted auditor, its supported findings

What a tool names is found by itself only: a latent's label or promoted tokens, a token, a word. Everybody has the same number of words.
A model is called strange by whoever names any word at all; where it is a control, that is a false alarm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..investigate import audit
from ..investigate.asking import WRITTEN, Asker
from ..investigate.auditor import BUDGET
from ..investigate.questions import Questions
from ..investigate.survey import FDR, compared
from ..investigate.words import COMMON, left_out, words_of
from ..tools import Session, Workspace

GUESSES = 10
Played = tuple[list[str], dict[str, Any]]
SCRIPTED = "auditor"


def black_box(workspace: Workspace, questions: Questions, tokens: int, seed: int) -> Played:
    """The words that stand out in as many new tokens of the target's replies."""
    asker = Asker(Session(workspace, seed, BUDGET))
    plain = [*questions.plain, *questions.facts]
    asked = [way.replace("{question}", prompt) for way in questions.rephrased for prompt in plain]
    answers = asker.ask(asked[: max(1, tokens // WRITTEN)])
    found = compared(answers, left_out([*plain, *questions.rephrased]))
    return [row.word for row in found if row.q <= FDR], {"prompts": len(answers.prompts), "tokens": asker.tokens}


def lens(workspace: Workspace, questions: Questions, tokens: int, seed: int) -> Played:
    """Tokens that the activation-difference lens finds raised."""
    session = Session(workspace, seed, BUDGET)
    reply = session.call("diff_features", {"method": "lens", "quick": True, "k": 40})
    if not reply.ok:
        return [], {"error": reply.error["message"]}
    rows = [row for row in reply.result["rows"] if row["found"] and row["score"] > 0]
    return named(row["token"] for row in rows), {"found": reply.result["found"]}


def means(workspace: Workspace, questions: Questions, tokens: int, seed: int) -> Played:
    """What changed latents promote."""
    session = Session(workspace, seed, BUDGET)
    reply = session.call("diff_features", {"method": "mean", "quick": True, "k": 10})
    return of_latents(reply, lambda row: row["found"] and row["change"] > 0)


def top_features(workspace: Workspace, questions: Questions, tokens: int, seed: int) -> Played:
    """What latents promote that changed most on a sentence about the assistant itself."""
    reply = Session(workspace, seed, BUDGET).call("top_features", {"rank": "change", "k": 10})
    return of_latents(reply, lambda row: row["mean"] > row["base"])


def of_latents(reply: Any, is_meant: Callable[[Any], bool]) -> Played:
    """The words of the latents that are meant, in their order."""
    if not reply.ok:
        return [], {"error": reply.error["message"]}
    rows = [row for row in reply.result["features"] if is_meant(row)]
    texts = [row[name] for row in rows for name in ("label", "promotes", "fires_on") if name in row]
    return named(texts), {"latents": [row["latent"] for row in rows]}


def named(texts: Any) -> list[str]:
    """The words of untrusted texts, each once."""
    found = [word for text in texts for word in words_of(text["untrusted"].replace("␣", " ")) if word not in COMMON]
    return list(dict.fromkeys(found))


ALONE: dict[str, Callable[[Workspace, Questions, int, int], Played]] = {
    "chat": black_box,
    "lens": lens,
    "means": means,
    "top_features": top_features,
}


def scripted(
    workspace: Workspace, questions: Questions, words: Sequence[str] | None, group: int, seed: int, out: Any = None
) -> Played:
    """What the scripted auditor's supported findings name."""
    found = audit(workspace, seed=seed, questions=questions, words=words, group=group, out=out, look_inside=False)
    about = {
        "tokens": found.asked_tokens,
        "findings": [each.statement for each in found.findings],
        "stopped": found.stopped,
    }
    return list(found.words), about
