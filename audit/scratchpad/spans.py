"""Where the prompt, the sentences of the scratchpad and the answer stand in a run.

    tokens = prompt · sentence 1 · … · sentence n · cue · answer

The cue is what stands between the scratchpad and the answer (`</think>`, `Answer:`); it is kept when sentences are changed or left out,
so that the answer can be asked for after any of them. Pieces are tokenised one by one, white space at their front, so that a change of one
leaves the tokens of all others as they are. Where the whole text would be cut into tokens otherwise, `is_natural` is False: the model then
reads a spelling that it would not have written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ...circuits.prompts.text import Prompt, chat_text, prompt_ids
from ...circuits.trace import prompt_tokens
from ...saes import UserError, model_info, token_strings

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MARKERS = ("<think>", "</think>")
BETWEEN = re.compile(r"(?<=[.!?;])(?=\s)|(?<=\n)(?=.)")


class Piece(NamedTuple):
    """A stretch of a run: its text, and its token ids."""

    text: str
    ids: tuple[int, ...]


class Spans(NamedTuple):
    """Positions of the pieces; each a range of token positions."""

    prompt: range
    sentences: tuple[range, ...]
    cue: range
    answer: range


@dataclass(frozen=True)
class Written:
    """A run in pieces; `tokens` are all of them, `spans` where each stands."""

    prompt: Piece
    sentences: tuple[Piece, ...]
    cue: Piece
    answer: Piece
    is_natural: bool = True

    @property
    def tokens(self) -> Int[Tensor, "token"]:
        """All token ids, on the CPU."""
        return torch.tensor([token for piece in self.pieces for token in piece.ids], dtype=torch.int64)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Prompt, sentences, cue and answer, in order."""
        return (self.prompt, *self.sentences, self.cue, self.answer)

    @property
    def spans(self) -> Spans:
        """Where each piece stands."""
        ends, start = [], 0
        for piece in self.pieces:
            ends.append(range(start, start + len(piece.ids)))
            start += len(piece.ids)
        return Spans(ends[0], tuple(ends[1:-2]), ends[-2], ends[-1])

    @property
    def scratchpad(self) -> range:
        """Positions of all sentences together."""
        start = len(self.prompt.ids)
        return range(start, start + sum(len(piece.ids) for piece in self.sentences))

    def with_sentences(self, sentences: Iterable[Piece]) -> Written:
        """The same run with other sentences."""
        return replace(self, sentences=tuple(sentences))

    def with_sentence(self, place: int, sentence: Piece | None) -> Written:
        """The same run with one sentence replaced, or left out (None)."""
        kept = [sentence if i == place else piece for i, piece in enumerate(self.sentences)]
        return self.with_sentences(piece for piece in kept if piece is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON data: the texts and where they stand."""
        spans = self.spans
        one = {name: getattr(self, name).text for name in ("prompt", "cue", "answer")}
        ends: dict[str, Any] = {name: _ends(getattr(spans, name)) for name in one}
        ends["sentences"] = [_ends(span) for span in spans.sentences]
        return one | {"sentences": [each.text for each in self.sentences], "spans": ends, "is_natural": self.is_natural}


def _ends(span: range) -> list[int]:
    return [span.start, span.stop]


def split(
    model: TransformerBridge,
    run: Prompt,
    *,
    scratchpad: str | Sequence[str] | None = None,
    answer: str | None = None,
    cue: str = "",
    markers: tuple[str, str] = MARKERS,
    spans: Spans | None = None,
) -> Written:
    """A run in pieces, from one of three forms.

    `scratchpad` given: `run` is the prompt (text, ids or messages), the scratchpad text or sentences, then `cue` and `answer`.
    `spans` given: `run` is the whole run, and they say where its pieces stand (without gaps).
    Neither: `run` is a whole text, or a chat whose last message is the assistant's, with the scratchpad between `markers`;
    everything up to `answer` is then the cue, all of the rest being the answer where it is left out.
    Raises UserError for a scratchpad or an answer that is not there, and for a run beyond the model's context.
    """
    if spans is not None:
        written = _by_spans(model, run, spans)
    elif scratchpad is not None:
        if answer is None:
            raise UserError("expected an answer beside the scratchpad; got none; give answer=' 7'")
        parts = sentences_of(scratchpad) if isinstance(scratchpad, str) else list(scratchpad)
        written = _joined(model, run, parts, cue, answer)
    else:
        text = run if isinstance(run, str) else _text_of(model, run)
        prompt, parts, cue, answer = _between(text, markers, answer)
        whole = prompt if isinstance(run, str) else _as_chat(model, prompt)
        written = _pieces(model, whole, prompt, parts, cue, answer)
    if not written.answer.ids:
        raise UserError("expected an answer of at least one token; got none; give the text of the answer")
    prompt_tokens(model, written.tokens)
    return replace(written, is_natural=_is_natural(model, written))


def sentences_of(text: str) -> list[str]:
    """Sentences of a text, each with the white space in front of it; they end at . ! ? ; before white space, and at line ends."""
    found = [part for part in BETWEEN.split(text) if part]
    merged: list[str] = []
    for part in found:
        if merged and not part.strip():
            merged[-1] += part
        else:
            merged.append(part)
    return merged if text.strip() else []


def piece(model: TransformerBridge, text: str) -> Piece:
    """A text and its ids, without a BOS; UserError for what UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"expected text that UTF-8 can hold; got {error.reason} at {error.start}; mend it") from error
    tokenizer: Any = model.tokenizer
    return Piece(text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ())


def after(text: str) -> str:
    """The text as it follows another: with a space in front unless it begins with white space."""
    return text if not text or text[0].isspace() else " " + text


def words_at(holder: str, text: str) -> list[tuple[int, int]]:
    """Where `text` stands in `holder` as a whole word: first and last character, one past."""
    wanted = text.strip()
    return [each.span() for each in re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", holder)] if wanted else []


def has_word(holder: str, text: str) -> bool:
    """Whether `text` stands in `holder` as a whole word."""
    return bool(words_at(holder, text))


def places(model: TransformerBridge, holder: Piece, text: str) -> range:
    """Positions, within a piece, of the tokens that touch the last place where `text` stands in it as a whole word.

    Raises UserError where it does not stand there.
    """
    found = words_at(holder.text, text)
    if not found:
        raise UserError(f"expected {text[:40]!r} in {holder.text[:80]!r}; it is not there; give it as it is written")
    start, stop = found[-1]
    tokenizer: Any = model.tokenizer
    encoded = tokenizer(holder.text, add_special_tokens=False, return_offsets_mapping=True)
    extra = len(holder.ids) - len(encoded["input_ids"])  # a BOS stands in front of the prompt
    touching = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < stop and b > start]
    return range(extra + touching[0], extra + touching[-1] + 1)


def edited(holder: str, text: str, new: str) -> str:
    """`holder` with the last whole-word `text` in it replaced by `new`."""
    start, stop = words_at(holder, text)[-1]
    return holder[:start] + new.strip() + holder[stop:]


def prompt_piece(model: TransformerBridge, old: Piece, text: str) -> Piece:
    """The ids of another prompt text, with a BOS in front if the old prompt has one."""
    ids, bos = piece(model, text).ids, model_info(model).bos
    has_bos = bos is not None and old.ids[:1] == (bos,) and piece(model, old.text).ids[:1] != (bos,)
    return Piece(text, (bos, *ids) if has_bos and bos is not None else ids)


def _joined(model: TransformerBridge, run: Prompt, parts: Sequence[str], cue: str, answer: str) -> Written:
    """Pieces given one by one, with a space between two where neither has any."""
    text = run if isinstance(run, str) else _text_of(model, run)
    return _pieces(model, run, text, [after(part) for part in parts], after(cue), after(answer))


def _pieces(model: TransformerBridge, run: Prompt, text: str, parts: Sequence[str], cue: str, answer: str) -> Written:
    """Pieces exactly as they are written."""
    ids = tuple(prompt_ids(model, run).tolist())
    return Written(
        Piece(text, ids), tuple(piece(model, part) for part in parts), piece(model, cue), piece(model, answer)
    )


def _by_spans(model: TransformerBridge, run: Prompt, spans: Spans) -> Written:
    ids = prompt_ids(model, run)
    order = [spans.prompt, *spans.sentences, spans.cue, spans.answer]
    ends = [span.start for span in order] + [order[-1].stop]
    if any(a.stop != b for a, b in zip(order, ends[1:], strict=True)) or ends[0] != 0 or ends[-1] > len(ids):
        raise UserError(
            f"expected spans that follow each other from 0 to at most {len(ids)}; got {[_ends(span) for span in order]}; mend them"
        )
    strings = token_strings(model, ids)
    found = [Piece("".join(strings[s.start : s.stop]), tuple(ids[s.start : s.stop].tolist())) for s in order]
    return Written(found[0], tuple(found[1:-2]), found[-2], found[-1])


def _between(text: str, markers: tuple[str, str], answer: str | None) -> tuple[str, list[str], str, str]:
    """Prompt with the opening marker, sentences, cue with the closing one, and answer."""
    start, stop = text.rfind(markers[0]), text.rfind(markers[1])
    if start < 0 or stop < start:
        raise UserError(
            f"expected a scratchpad between {markers[0]} and {markers[1]}; got none; give scratchpad=, or markers= that stand in the text"
        )
    begin = start + len(markers[0])
    rest = text[stop + len(markers[1]) :]
    place = 0 if answer is None else rest.rfind(answer.strip())
    if place < 0:
        raise UserError(
            f"expected the answer {str(answer)[:40]!r} after {markers[1]}; it is not there; give it as it is written"
        )
    space = len(rest[:place]) - len(rest[:place].rstrip()) if answer is not None else 0
    said = rest if answer is None else rest[place - space : place + len(answer.strip())]
    return (
        text[:begin],
        sentences_of(text[begin:stop]),
        markers[1] + (rest[: place - space] if answer is not None else ""),
        said.rstrip(),
    )


def _text_of(model: TransformerBridge, run: Any) -> str:
    return "".join(token_strings(model, run)) if isinstance(run, Tensor) else chat_text(model, run)


def _as_chat(model: TransformerBridge, text: str) -> Tensor:
    """Ids of a chat's text, to which no BOS is added."""
    return torch.tensor(piece(model, text).ids, dtype=torch.int64)


def _is_natural(model: TransformerBridge, written: Written) -> bool:
    whole = piece(model, "".join(each.text for each in written.pieces)).ids
    ours = tuple(token for each in written.pieces for token in each.ids)
    return whole == ours or whole == ours[1:]
