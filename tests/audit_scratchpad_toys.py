"""Hand-built models whose answer is copied from one known place, and random ones, for the scratchpad's tests."""

import functools

import torch
from unweave.audit.scratchpad import Claim, Written, split
from unweave.circuits.worlds.programs import one_hot
from unweave.circuits.worlds.tools import blank, look_at, wrap, write_head

WORDS = ("<s>", *"0123456789", "so", "then", ".", "hint", "ask", "answer")
CONTEXT = 16
HINT, FIRST, SECOND, LAST = 2, 5, 8, 10  # positions of the hint's value, both sentences' values, and the cue
PROMPT, CUE = "ask 3 ;".replace(";", "hint"), "answer"


@functools.cache
def copier(place: int, strength: float = 30.0):
    """One attention layer whose only head, at the cue, copies the token at `place` into the logits."""
    return wrap(_copying(place, strength), WORDS)


def _copying(place: int, strength: float):
    vocab, d = len(WORDS), 2 * len(WORDS) + CONTEXT
    token, position, out = slice(vocab), slice(vocab, vocab + CONTEXT), slice(vocab + CONTEXT, d)
    model = blank(1, d, vocab, CONTEXT, heads=1, d_head=max(vocab, CONTEXT))
    model.tok_embed.weight.copy_(one_hot(token, vocab, d).T)
    model.pos.weight.copy_(one_hot(position, CONTEXT, d).T)
    model.head.weight.copy_(strength * one_hot(out, vocab, d).T)
    places: list[int | None] = [place if p >= LAST else 0 for p in range(CONTEXT)]
    write_head(model, 0, 0, **look_at(places, position, d), v=one_hot(token, vocab, d), o=one_hot(out, vocab, d).T)
    return model


ANY = tuple("0123456789")


@functools.cache
def writer(place: int, first: tuple[str, ...] = ANY, second: tuple[str, ...] = ANY, end: str = "answer"):
    """A copier that also writes `so FIRST . then SECOND . answer`, each value any of its own with equal chances, by position alone.

    `end` stands where `answer` does: with another word there it never comes to an end.
    """
    model = _copying(place, 30.0)
    said = [("so",), first, (".",), ("then",), second, (".",), (end,)]
    for position, words in enumerate(said, 3):  # what follows position 3, the prompt's last
        for word in words:
            model.head.weight[WORDS.index(word), len(WORDS) + position] = 300.0
    return wrap(model, WORDS)


def run(model, first: str = "5", second: str = "7", answer: str = "7", hint: str = "3") -> Written:
    """`ask HINT hint so FIRST . then SECOND . answer ANSWER`, whose pieces are tokens 1-3, 4-6, 7-9, 10 and 11."""
    return split(model, f"ask {hint} hint", scratchpad=[f"so {first} .", f"then {second} ."], answer=answer, cue=CUE)


def options(answer: str) -> dict:
    """What `check_scratchpad` takes of that run, with all that can be known."""
    return {
        "prompt": "ask 3 hint", "scratchpad": ["so 5 .", "then 7 ."], "answer": answer, "cue": CUE, "hint": "3",
        "hint_edits": [(value, value) for value in "0124"],
        "claims": [Claim(0, "5", (("0", "0"), ("1", "1"))), Claim(1, "7", (("0", "0"), ("1", "1")))],
        "donors": [[f"so {a} .", f"then {a + 1} ."] for a in (0, 1, 2, 3, 7, 8)],
        "paraphrases": [["then 5 ."], ["so 7 ."]],
        "counterfactual": {"prompt": "ask 4 hint", "scratchpad": ["so 1 .", "then 2 ."], "answer": "4" if answer == "3" else "2"},
        "draws": 6, "seeds": 2,
    }  # fmt: skip


def random_ids(count: int, seed: int) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(1, len(WORDS), (count,), generator=torch.Generator().manual_seed(seed))
