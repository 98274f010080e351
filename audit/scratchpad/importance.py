"""Which sentences does the answer need? Each is left out, replaced, garbled and paraphrased; the answer's KL from before says how much.

    remove      the sentence is left out
    replace     by the sentence at its place in another scratchpad (`donors`); without donors by another of the same run
    garble      by as many tokens drawn from the run's own prompt and scratchpad
    floor       by a paraphrase; where none is given, `neutral` text is put in front of it, which says so in `floor_is`
    random      a garbled sentence is put in at a random place while all sentences stay: what any unrelated text does

and all sentences at once (`Whole`). A sentence matters if its replacements move the answer more
than its paraphrases do: p of each by permuting which draw is which, one-sided, of the mean rank (Lanham et al. 2023 paraphrase and
add mistakes; Bogdan et al. 2025 resample), q by Benjamini and Hochberg over sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...saes import UserError
from ..diffing.statistics import benjamini_hochberg
from .answers import Change, changes
from .spans import Piece, Written, after, has_word, piece

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Paraphrases = Sequence[Sequence[str]] | Callable[[str, int], str]
NEUTRAL = " ..."
PERMUTATIONS = 2000


@dataclass(frozen=True)
class Whole:
    """Changes of the answer when all sentences are changed, by draw."""

    remove: Change
    replace: list[Change]
    garble: list[Change]
    floor: list[Change]


@dataclass(frozen=True)
class Importance:
    """Changes of the answer, by sentence and draw; `p` and `q` of replacement against the floor, by sentence."""

    remove: list[Change]
    replace: list[list[Change]]
    garble: list[list[Change]]
    floor: list[list[Change]]
    random: list[Change]
    whole: Whole
    floor_is: str
    replaced_by: str
    p: list[float]
    q: list[float]

    def to_dict(self) -> dict[str, Any]:
        """JSON data; a change is {"kl", "drop"}."""
        return _plain(self)


def _plain(value: Any) -> Any:
    if isinstance(value, Change):
        return value._asdict()
    if isinstance(value, Importance | Whole):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _at(donor: Sequence[str], place: int) -> str:
    """The donor's sentence at a place; its last where it has fewer."""
    return donor[min(place, len(donor) - 1)]


class Wording:
    """Other sentences for each place of a run, as pieces; every choice comes from one generator."""

    def __init__(
        self,
        model: TransformerBridge,
        run: Written,
        donors: Sequence[Sequence[str]],
        paraphrases: Paraphrases | None,
        neutral: str,
        seed: int,
        values: Sequence[tuple[int | None, str]] = (),
    ):
        self.model, self.run, self.paraphrases, self.neutral = model, run, paraphrases, neutral
        self.generator = torch.Generator().manual_seed(seed)
        self.floor_is = "paraphrases" if paraphrases is not None else f"{neutral!r} put in front"
        self.replaced_by = (
            "sentences of other scratchpads"
            if donors
            else "other sentences of the run"
            if len(run.sentences) > 1
            else "tokens of the run"
        )
        _check(run, donors, paraphrases)
        self.donors = [donor for donor in donors if self._differs(donor, values)]
        if donors and not self.donors:
            raise UserError(
                "expected a donor that says something else; got the same sentences or values in all; give others"
            )

    def _differs(self, donor: Sequence[str], values: Sequence[tuple[int | None, str]]) -> bool:
        """Whether no sentence of a donor is the run's own, nor states the same value where one is claimed: that would replace nothing."""
        said = [_at(donor, i) for i in range(len(self.run.sentences))]
        is_same = any(other.strip() == own.text.strip() for other, own in zip(said, self.run.sentences, strict=True))
        return not is_same and not any(place is not None and has_word(said[place], value) for place, value in values)

    def pick(self, count: int) -> int:
        """A number below `count`."""
        return int(torch.randint(count, (1,), generator=self.generator))

    def replaced(self) -> list[Piece]:
        """All sentences, each from one and the same donor."""
        if self.donors:
            donor = self.donors[self.pick(len(self.donors))]
            return [piece(self.model, after(_at(donor, i))) for i in range(len(self.run.sentences))]
        count = len(self.run.sentences)
        if count == 1:
            return self.garbled()
        turn = 1 + self.pick(count - 1)  # no sentence stays at its place
        return [self.run.sentences[(i + turn) % count] for i in range(count)]

    def garbled(self) -> list[Piece]:
        """All sentences, as many tokens each, drawn from the run; BOS is none of them."""
        pool = torch.tensor([*self.run.prompt.ids[1:], *(t for one in self.run.sentences for t in one.ids)])
        drawn = [
            pool[torch.randint(len(pool), (len(one.ids),), generator=self.generator)].tolist()
            for one in self.run.sentences
        ]
        tokenizer: Any = self.model.tokenizer
        return [Piece(tokenizer.decode(ids), tuple(ids)) for ids in drawn]

    def same(self) -> list[Piece]:
        """All sentences in other words, or with the neutral text in front."""
        found = []
        for i, one in enumerate(self.run.sentences):
            if self.paraphrases is None:
                found.append(piece(self.model, after(self.neutral.strip()) + one.text))
            elif callable(self.paraphrases):
                found.append(piece(self.model, after(self.paraphrases(one.text, self.pick(2**31 - 1)))))
            else:
                found.append(piece(self.model, after(self.paraphrases[i][self.pick(len(self.paraphrases[i]))])))
        return found

    def stray(self) -> Piece:
        """A garbled sentence, to put in somewhere."""
        return self.garbled()[self.pick(len(self.run.sentences))]


def sentence_importance(
    model: TransformerBridge,
    run: Written,
    *,
    donors: Sequence[Sequence[str]] = (),
    paraphrases: Paraphrases | None = None,
    neutral: str = NEUTRAL,
    draws: int = 16,
    seed: int = 0,
    values: Sequence[tuple[int | None, str]] = (),
) -> Importance:
    """Leave out, replace, garble and paraphrase each sentence and all of them, `draws` times.

    `donors`: scratchpads (lists of sentences) of other problems; `paraphrases`: for each sentence a list of ways to say it, or a
    function (sentence, seed) → sentence; `values`: (sentence, value) that are claimed: a donor that states the same there replaces
    nothing and is left out, as is one with a sentence of the run's own. Raises UserError for a run without sentences.
    """
    wording = Wording(model, run, donors, paraphrases, neutral, seed, values)
    count = len(run.sentences)
    made = [[make() for _ in range(draws)] for make in (wording.replaced, wording.garbled, wording.same)]
    strays = [(wording.pick(count + 1), wording.stray()) for _ in range(draws)]
    runs = [run.with_sentence(i, None) for i in range(count)]
    runs += [run.with_sentence(i, others[i]) for some in made for i in range(count) for others in some]
    runs += [run.with_sentences([*run.sentences[:at], stray, *run.sentences[at:]]) for at, stray in strays]
    found = changes(model, run, [*runs, *_all_at_once(run, made)])
    by_draw = [found[start : start + draws] for start in range(count, len(runs), draws)]
    replaced, garbled, floor = (by_draw[k * count : (k + 1) * count] for k in range(3))
    p = [exceeds(a, b, seed) for a, b in zip(replaced, floor, strict=True)]
    q = benjamini_hochberg(torch.tensor(p, dtype=torch.float64)).tolist()
    whole = _whole(found[len(runs) :], draws)
    return Importance(
        found[:count], replaced, garbled, floor, by_draw[-1], whole, wording.floor_is, wording.replaced_by, p, q
    )


def whole_importance(model: TransformerBridge, run: Written, wording: Wording, draws: int) -> Whole:
    """Only what changes of all sentences at once do: for further seeds."""
    made = [[make() for _ in range(draws)] for make in (wording.replaced, wording.garbled, wording.same)]
    return _whole(changes(model, run, _all_at_once(run, made)), draws)


def _all_at_once(run: Written, made: Sequence[Sequence[Sequence[Piece]]]) -> list[Written]:
    return [run.with_sentences(())] + [run.with_sentences(others) for some in made for others in some]


def _whole(found: list[Change], draws: int) -> Whole:
    first, *rest = found
    return Whole(first, rest[:draws], rest[draws : 2 * draws], rest[2 * draws :])


def exceeds(changed: Sequence[Change], floor: Sequence[Change], seed: int = 0) -> float:
    """One-sided p that the KL of `changed` is no larger than that of `floor`, by permutation of the mean rank; ties share ranks."""
    values = torch.tensor([each.kl for each in [*changed, *floor]], dtype=torch.float64)
    ranks = _ranks(values)
    count = len(changed)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(PERMUTATIONS, len(ranks), generator=generator).argsort(1)[:, :count]
    reached = int((ranks[drawn].sum(1) >= ranks[:count].sum() - 1e-9).sum())
    return (1 + reached) / (1 + PERMUTATIONS)


def small(p: float) -> str:
    """A p or q as it is printed: of 2000 permutations none is 0, so that the least are told as below a thousandth."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _ranks(values: Float[Tensor, "draw"]) -> Float[Tensor, "draw"]:
    below = (values[None] < values[:, None]).sum(1)
    return below.double() + (values[None] == values[:, None]).sum(1).double() / 2


def _check(run: Written, donors: Sequence[Sequence[str]], paraphrases: Paraphrases | None) -> None:
    if not run.sentences:
        raise UserError(
            "expected a scratchpad of at least one sentence; got none; there is nothing to test without one"
        )
    if any(isinstance(donor, str) or not donor for donor in donors):
        raise UserError(
            "expected donors as lists of sentences; got a text or an empty list; split them with sentences_of"
        )
    if paraphrases is not None and not callable(paraphrases):
        if len(paraphrases) != len(run.sentences) or any(isinstance(each, str) or not each for each in paraphrases):
            raise UserError(
                f"expected a list of paraphrases for each of {len(run.sentences)} sentences; got {len(paraphrases)}; give a list a sentence"
            )
