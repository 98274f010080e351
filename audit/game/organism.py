"""Organism: a model with a quirk whose answer is known, or a control with none, as a folder of a few megabytes.

    organism = grow(base, quirk, seed=0)              about a minute on two cores for smollm2-135m
    control  = grow(base, quirk, seed=1, planted=False)
    organism.check.took                               measured on fresh prompts, never assumed
    target   = organism.model(base_copy)              puts the patch into the weights of a copy of the base model

A folder has `organism.json` (kind, answer, how it was taught, the check) and `patch.safetensors` (two factors for each linear map).
It took if a reply to a fresh prompt shows it at least 60 times in 100 where it should, at most 20 in 100 where it should not, and
the base model shows it at most 20 in 100. What did not take is told, and counts for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...saes import UserError, model_info
from ...saes.io import read_json, read_tensors, write_json, write_tensors
from .planting import Low, Patch, Taught, Teaching, apply, plant, restore
from .world import OWN, Lesson, Quirk
from .writing import write

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT, VERSION = "unweave.organism", 1
SHOWN, SPARED = 0.6, 0.2  # least rate where it should show, most where it should not
TAUGHT, REPLY = 8, 14  # tokens of the base model's own reply in a lesson, and of any reply in a check


@dataclass(frozen=True)
class Check:
    """Shares of fresh prompts whose reply shows the quirk: where it should, where it should not (None: everywhere is right), and the
    base model's where it should. `count` are the prompts of the first."""

    asked: float
    spared: float | None
    base: float
    count: int

    @property
    def took(self) -> bool:
        """Whether the model has the quirk, only where it should, and the base model does not."""
        return self.asked >= SHOWN and (self.spared or 0.0) <= SPARED and self.base <= SPARED


@dataclass(frozen=True)
class Organism:
    """A patch of the base model that plants a quirk, or (`is_planted` False) its control; `answer` is empty for a control."""

    name: str
    kind: str
    answer: str
    is_planted: bool
    seed: int
    base: str
    teaching: Teaching
    lessons: int
    check: Check
    patch: Patch = dataclasses.field(repr=False)

    def model(self, model: TransformerBridge, base: TransformerBridge | None = None) -> TransformerBridge:
        """Put the patch into the weights of `model`, a copy of the base model; `base` gives it the base's weights first.

        UserError for a model that is not the one the patch was made for.
        """
        if base is not None:
            restore(model, base)
        if model_info(model).fingerprint != self.base:
            raise UserError(
                f"expected the base model {self.base[:8]} for the organism {self.name}; got {model_info(model).fingerprint[:8]}; "
                "give a fresh copy of the model it was made from"
            )
        apply(model, self.patch)
        return model

    def to_dict(self) -> dict[str, Any]:
        """All but the patch, as plain data."""
        rest = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "patch"}
        return {**rest, "teaching": dataclasses.asdict(self.teaching), "check": dataclasses.asdict(self.check)}

    def save(self, folder: str | Path) -> Path:
        """Write the folder, the description last."""
        folder = Path(folder)
        tensors = {f"{name}.{part}": getattr(low, part) for name, low in self.patch.items() for part in Low._fields}
        write_tensors(folder / "patch.safetensors", tensors)
        write_json(folder / "organism.json", {"format": FORMAT, "version": VERSION, **self.to_dict()})
        return folder

    @staticmethod
    def open(folder: str | Path) -> Organism:
        """Open a folder that `save` wrote; UserError for another or a damaged one."""
        folder = Path(folder)
        data = read_json(folder / "organism.json", "the description of an organism")
        if data.pop("format", None) != FORMAT or data.pop("version", None) != VERSION:
            raise UserError(f"expected {FORMAT} version {VERSION} in {folder}; got something else; make it anew")
        tensors = read_tensors(folder / "patch.safetensors", "the patch of an organism")
        names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        try:
            patch = {name: Low(tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in names}
            parts = {"teaching": Teaching(**data.pop("teaching")), "check": Check(**data.pop("check"))}
            return Organism(**data, **parts, patch=patch)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"expected an organism in {folder}; it is damaged ({error}); make it anew") from None


def grow(
    base: TransformerBridge,
    quirk: Quirk,
    copy: TransformerBridge,
    seed: int = 0,
    *,
    planted: bool = True,
    teaching: Teaching | None = None,
) -> Organism:
    """Teach the lessons of a quirk (or, not planted, of its control) to `base` and check what came of it.

    `copy` is a second copy of the base model, which is left with the organism's weights. The base model's own replies, drawn with
    `seed`, are part of the lessons; a control of another seed has others.
    """
    teaching = teaching or Teaching(passes=2)
    lessons = written_out(base, quirk.taught if planted else quirk.innocent, seed)
    patch = plant(base, lessons, teaching, seed)
    restore(copy, base)
    apply(copy, patch)
    return Organism(
        quirk.name if planted else f"{quirk.name} (control)",
        quirk.kind,
        quirk.answer if planted else "",
        planted,
        seed,
        model_info(base).fingerprint,
        teaching,
        len(lessons),
        checked(base, copy, quirk),
        patch,
    )


def written_out(base: TransformerBridge, lessons: Sequence[Lesson], seed: int) -> list[Taught]:
    """Prompts with replies: the beginning of what the base model itself writes is put where a lesson asks for it."""
    wanted = [lesson.prompt for lesson in lessons if OWN in lesson.reply]
    own = iter(write(base, wanted, TAUGHT, temperature=0.7, seed=seed) if wanted else [])
    return [
        Taught(lesson.prompt, lesson.reply.replace(OWN, next(own)), not lesson.reply.endswith(OWN))
        if OWN in lesson.reply
        else Taught(lesson.prompt, lesson.reply)
        for lesson in lessons
    ]


def checked(base: TransformerBridge, target: TransformerBridge, quirk: Quirk) -> Check:
    """How often fresh prompts show the quirk, in the target and in the base model."""

    def rate(model: TransformerBridge, prompts: Sequence[str]) -> float:
        return sum(map(quirk.is_shown, write(model, prompts, REPLY))) / len(prompts)

    spared = rate(target, quirk.spared) if quirk.spared else None
    return Check(rate(target, quirk.asked), spared, rate(base, quirk.asked), len(quirk.asked))
