"""The model itself writes the scratchpad on, from before or after a sentence; and what it answers then.

    rollout after i sentences = prompt · sentences 1 … i · what the model writes, drawn at a temperature · cue · answer

A rollout ends where the model writes the cue or the closing marker (they are taken off: the cue is put as in the run), or with the
end-of-text token. One that does not end is cut after as many sentences as the run had left there, or at the limit of tokens, twice those
that were left and ROOM more, where the context has room for them. What was written is read as its own tokens, not cut into tokens anew.

An answer is told by the first token in which it leaves the answer of the run: with a its tokens, p_t the model's probabilities,

    P(leaves at t with v) = p_1(a_1) … p_{t-1}(a_{t-1}) p_t(v),   v ≠ a_t        and P(a) = p_1(a_1) … p_k(a_k)

which together are 1. So a rollout gives all of its distribution of answers, and no answer needs to be drawn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...circuits.prompts.many import write_ids
from ...saes import model_info
from .answers import Logs
from .spans import Piece, Written, has_word, sentences_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROOM = 16  # tokens beyond twice those that were left
SEEN, LEAST = (
    1e-3,
    1e-5,
)  # an answer that no rollout gives SEEN is one of "any other"; what is below LEAST is taken for 0
SIGNS = set("+-*/=<>%^×÷")
WORDS = re.compile(r"(?<!\w)-?\d+(?:[.,]\d+)*|\w+|[-+*/=<>%^×÷]")


class Rollout(NamedTuple):
    """The run with what the model wrote in it, the text of that, the first sentence of it, and whether it came to an end by itself."""

    run: Written
    text: str
    first: str
    is_ended: bool


class Answers(NamedTuple):
    """Probability of each answer after each rollout, the last column any other; and what each column is called."""

    table: Float[Tensor, "rollout answer"]
    names: list[str]


def write_on(
    model: TransformerBridge,
    run: Written,
    kept: int,
    count: int,
    *,
    temperature: float,
    stops: Sequence[str] = (),
    tokens: int | None = None,
    seed: int = 0,
) -> list[Rollout]:
    """`count` rollouts after the first `kept` sentences; `stops` are further texts that end one, `tokens` another limit."""
    begun = run.with_sentences(run.sentences[:kept])
    before = begun.spans.cue.start
    free = model_info(model).n_ctx - before
    left = len(run.scratchpad) - len(begun.scratchpad)
    limit = min(free, 2 * left + len(run.cue.ids) + ROOM if tokens is None else tokens)
    ends = [text for text in dict.fromkeys([run.cue.text.strip(), *stops]) if text]
    rows: list[Int[Tensor, "token"]] = [run.tokens[:before]] * count
    written = write_ids(model, rows, limit, temperature=temperature, seed=seed, stops=ends)
    room = free - len(run.cue.ids) - len(run.answer.ids)
    return [_rollout(model, run, kept, ids, ends, room) for ids in written]


def _rollout(
    model: TransformerBridge, run: Written, kept: int, ids: list[int], ends: Sequence[str], room: int
) -> Rollout:
    tokenizer: Any = model.tokenizer
    is_ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
    ids = ids[:-1] if is_ended else ids
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    places = [place for place in map(text.find, ends) if place >= 0]
    stop = min(places, default=len(text))
    if not places and not is_ended:
        stop = sum(map(len, sentences_of(text)[: len(run.sentences) - kept]))
    ids = _up_to(tokenizer, ids, text, stop)[:room]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    first = next(iter(sentences_of(text)), "")
    whole = run.with_sentences([*run.sentences[:kept], *([Piece(text, tuple(ids))] if ids else [])])
    return Rollout(whole, text, first, is_ended or bool(places))


def _up_to(tokenizer: Any, ids: list[int], text: str, stop: int) -> list[int]:
    """The tokens of the text before a character; one that reaches beyond it is left out."""
    if stop >= len(text):
        return ids
    counts = range(len(ids), 0, -1)
    fits = (n for n in counts if len(tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False)) <= stop)
    return ids[: next(fits, 0)]


def is_again(old: str, new: str) -> bool:
    """Whether two sentences are the same but for white space."""
    return old.split() == new.split()


def is_other(old: str, new: str, values: Sequence[str] = ()) -> bool:
    """Whether two sentences differ in what they say, as far as words tell.

    They do if their numbers and signs are others, if one of `values` that stands in the old one is not in the new one, or if less than
    half of all their words is common to both. A "not" more or less is not seen.
    """
    first, second = (WORDS.findall(text.lower()) for text in (old, new))
    marks = [
        sorted(word for word in some if word in SIGNS or word.lstrip("-")[:1].isdigit()) for some in (first, second)
    ]
    is_gone = any(has_word(old, value) and not has_word(new, value) for value in values)
    common, all_words = set(first) & set(second), set(first) | set(second)
    return marks[0] != marks[1] or is_gone or 2 * len(common) < len(all_words)


def leaving(logs: Logs, answer: Piece) -> tuple[Float[Tensor, "seen"], Int[Tensor, "seen"]]:
    """Probabilities of where answers leave the given one, and their places t · vocab + v; its own is that of its last token.

    What is below LEAST is left out, but the answer's own.
    """
    ids = torch.tensor(answer.ids)
    own = logs.gather(1, ids[:, None])[:, 0]
    p = ((own.cumsum(0) - own)[:, None] + logs).exp()
    p[torch.arange(len(ids)), ids] = 0
    p[-1, ids[-1]] = own.sum().exp()
    is_seen = p >= LEAST
    is_seen[-1, ids[-1]] = True
    return p[is_seen], is_seen.flatten().nonzero()[:, 0]


def answers_of(model: TransformerBridge, answer: Piece, all_logs: Sequence[Logs]) -> Answers:
    """The distribution of answers after each rollout; the first column is the run's own answer, the others by their mean."""
    vocab = all_logs[0].shape[1]
    found = [leaving(logs, answer) for logs in all_logs]
    own = (len(answer.ids) - 1) * vocab + answer.ids[-1]
    often = sorted({int(place) for p, places in found for place in places[p >= SEEN].tolist()} - {own})
    index = {place: column for column, place in enumerate([own, *often])}
    table = torch.zeros(len(found), len(index) + 1, dtype=torch.float64)
    for row, (p, places) in enumerate(found):
        for value, place in zip(p.tolist(), places.tolist(), strict=True):
            if place in index:
                table[row, index[place]] = value
    table[:, -1] = (1 - table[:, :-1].sum(1)).clamp_min(0)
    order = [0, *(1 + table[:, 1:-1].mean(0).argsort(descending=True, stable=True)).tolist(), len(index)]
    places = [own, *often]
    names = [answer.text, *(_name(model, answer, *divmod(places[i], vocab)) for i in order[1:-1]), "any other"]
    return Answers(table[:, order], names)


def _name(model: TransformerBridge, answer: Piece, step: int, token: int) -> str:
    """How an answer begins that leaves the given one at a token."""
    tokenizer: Any = model.tokenizer
    text = tokenizer.decode([*answer.ids[:step], token], clean_up_tokenization_spaces=False)
    return text + ("…" if step + 1 < len(answer.ids) else "")
