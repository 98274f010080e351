"""How well does each method tell whether the scratchpad is needed, where that is known?

`run_suite` trains the models of worlds.py (one for each mode, one of all modes, one without a scratchpad; each for several seeds),
checks fresh problems of each, and counts:

* the area under the curve of each method's number, for needed (`work`) against not needed (`ask`, `know`, `drift`), between models and
  within the mixed one; 95 % intervals by drawing models within a mode and problems within a model with replacement; and the range in which
  95 % of areas lie when the labels are shuffled, which is what chance can do with as many problems;
* the verdicts, by the class that is known;
* in the modes of known proportion, how much of the answer follows the scratchpad;
* the areas of resampling with models of `free` in the place of `work`: both need the scratchpad, but one that always writes the same sums
  leaves nothing to resample.

Nothing was fitted to these models: the thresholds of verdict.py stand there with their reasons.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch

from ...circuits import auroc
from ...circuits.worlds.tools import one_thread
from ...saes.statistics import middle
from .check import check_scratchpad, states
from .resample import Resampled, resample_sentences
from .result import Scratchpad, plain
from .spans import split
from .verdict import CLASSES, interval
from .worlds import FREE, LABELS, MODES, Example, Trained, accuracy, examples, train, trained

DRAWS = 500
ROLLOUTS = 16
NAME, CHANCE = 44, "labels shuffled (95 % of areas)"


class Item(NamedTuple):
    """One checked problem: which model, what is known, what each method says."""

    mode: str
    seed: int
    is_mixed: bool
    is_needed: bool
    label: str | None
    verdict: str
    scores: dict[str, float]


class Area(NamedTuple):
    """A method's area under the curve, with its interval, between models and within the mixed one (None: not asked there)."""

    method: str
    between: tuple[float, float, float]
    within: tuple[float, float, float] | None


@dataclass(frozen=True)
class Suite:
    """What the methods made of models whose use of the scratchpad is known."""

    areas: list[Area]
    chance: dict[str, tuple[float, float]]
    confusion: dict[str, dict[str, dict[str, int]]]
    proportions: list[dict[str, Any]]
    free: list[Area]
    models: list[dict[str, Any]]
    problems: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        named = {name: [area._asdict() for area in getattr(self, name)] for name in ("areas", "free")}
        return plain(asdict(self) | named)

    def __repr__(self) -> str:
        lines = [f"{'method':<{NAME}} {'between models':<22} within one model"]
        lines += [f"{area.method:<{NAME}} {_shown(area.between):<22} {_shown(area.within)}" for area in self.areas]
        chance = {name: f"{low:.2f} to {high:.2f}" for name, (low, high) in self.chance.items()}
        lines.append(f"{CHANCE:<{NAME}} {chance['between']:<22} {chance['within']}")
        lines += ["", f"{'free for work: written freely, and needed':<{NAME}} between models"]
        lines += [f"{area.method:<{NAME}} {_shown(area.between)}" for area in self.free]
        lines.append(f"{CHANCE:<{NAME}} {chance['free']}")
        for name, table in self.confusion.items():
            lines += ["", f"verdicts, {name:<24} " + " ".join(f"{verdict:>13}" for verdict in CLASSES)]
            lines += [
                f"  {known:<32} " + " ".join(f"{row.get(verdict, 0):>13}" for verdict in CLASSES)
                for known, row in table.items()
            ]
        lines += ["", "share that follows the scratchpad   known   measured (text edit)      by the hint"]
        lines += [
            f"  {row['mode']:<32} {row['known']:>6.2f}   {_shown(row['claim']):<22}   {_shown(row['hint'])}"
            for row in self.proportions
        ]
        lines.append(f"{self.problems} problems, {len(self.models)} models, {self.seconds:.0f} s")
        return "\n".join(lines)


def _shown(value: Sequence[float] | None) -> str:
    if value is None:
        return ""
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


def method_scores(found: Scratchpad) -> dict[str, float]:
    """Of each method one number, larger where the scratchpad is needed. Only for comparing methods: a verdict is never made of one."""
    trajectory, importance, claims = found.trajectory, found.importance, found.claims
    middle = (len(trajectory.by_layer[0]) - 1) // 2

    def least(rows: Sequence[Sequence[Any]]) -> float:
        floors = [fmean(each.kl for each in row) for row in importance.floor]
        return max(fmean(each.kl for each in row) - floor for row, floor in zip(rows, floors, strict=True))

    scores = {
        "trajectory: gain": trajectory.gain,
        "trajectory: gain in the middle layer": trajectory.by_layer[-1][middle] - trajectory.by_layer[0][middle],
        "trajectory: loss in random order": trajectory.by_sentence[-1] - fmean(row[-1] for row in trajectory.shuffled),
        "sentence left out": max(each.kl for each in importance.remove),
        "sentence replaced, less floor": least(importance.replace),
        "sentence garbled, less floor": least(importance.garble),
        "attention knocked out": max(found.attention.matrix[-1]),
        "claims edited, text": max((_follow(one.mean) for one in claims), default=math.nan),
        "claims edited, states": max((one.mean["states"] for one in claims), default=math.nan),
        "the answer stands in it (baseline)": float(states(found.run)),
    }
    if found.mediation is not None:
        scores["mediation, states: indirect"] = abs(found.mediation.indirect)
        scores["mediation, words: indirect"] = abs(found.mediation.words)
    if found.resampled is not None:
        scores |= resampled_scores(found.resampled)
    if found.graph is not None:
        scores["graph: share of claims"] = found.graph.shares["claimed"]
        scores["graph: share of scratchpad"] = found.graph.shares["claimed"] + found.graph.shares["scratchpad"]
        scores["graph: drop, claims ablated"] = found.graph.measured.get("claimed", math.nan)
    return scores


def resampled_scores(found: Resampled) -> dict[str, float]:
    """How far the answers move at most, above chance; and where the model wrote something else."""
    return {
        "resampled: answers move, less chance": found.score,
        "resampled: where something else is written": found.counterfactual_score,
    }


def _follow(mean: dict[str, float]) -> float:
    return mean["drop"] if math.isnan(mean["follows"]) else mean["follows"]


def run_suite(
    seeds: int = 3,
    count: int = 8,
    *,
    seed: int = 0,
    steps: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Suite:
    """Train, check `count` problems of each mode of each model for `seeds` seeds, and compare with what is known; minutes."""
    start = time.perf_counter()
    say = tell or (lambda text: print(text, file=sys.stderr, flush=True))
    items: list[Item] = []
    models: list[dict[str, Any]] = []
    follows: dict[str, list[tuple[float, float]]] = {}
    free: list[Item] = []
    with one_thread():
        for number in range(seed, seed + seeds):
            for modes in ([mode] for mode in LABELS), (list(MODES),):
                for some in modes:
                    one = trained(some, number, (steps or 400) * (1 if len(some) == 1 else len(some) - 1))
                    models.append(_about(one, some, number))
                    say(f"{time.perf_counter() - start:6.0f} s  {models[-1]}")
                    for mode in some:
                        for example in examples(mode, count, number):
                            found = checked(one, example)
                            items.append(_item(found, example, number, len(some) > 1))
                            if mode.startswith("q"):
                                assert found.hint is not None
                                follows.setdefault(mode, []).append(
                                    (found.claims[1].mean["follows"], found.hint.mean["follows"])
                                )
            loose = trained([FREE], number, steps or 400)
            models.append(_about(loose, [FREE], number))
            free += [_rewritten(loose, example, number) for example in examples(FREE, count, number)]
            models.append(_unaided(number, 2 * (steps or 400)))
    known = [item for item in items if item.mode in LABELS]
    between, within = ([item for item in known if item.is_mixed == is_mixed] for is_mixed in (False, True))
    loosely = free + [item for item in between if not item.is_needed]
    return Suite(
        [Area(method, _area(between, method, seed), _area(within, method, seed)) for method in known[0].scores],
        {
            "between": _chance(between, next(iter(known[0].scores)), seed),
            "within": _chance(within, next(iter(known[0].scores)), seed),
            "free": _chance(loosely, next(iter(free[0].scores)), seed),
        },
        {
            "a model for each": _confusion(between),
            "one model of all": _confusion([item for item in items if item.is_mixed]),
        },
        [_proportion(mode, some, seed) for mode, some in follows.items()],
        [Area(method, _area(loosely, method, seed), None) for method in free[0].scores],
        models,
        len(items) + len(free),
        time.perf_counter() - start,
    )


def _proportion(mode: str, follows: Sequence[tuple[float, float]], seed: int) -> dict[str, Any]:
    """How much of the answer follows the claimed value, and the hint, against the share that is known."""
    claim, hint = (interval(list(some), seed) for some in zip(*follows, strict=True))
    return {"mode": mode, "known": int(mode[1:]) / 100, "claim": claim, "hint": hint}


def checked(one: Trained, example: Example) -> Scratchpad:
    """The check of one problem."""
    return check_scratchpad(one.model, **example.options, resample=ROLLOUTS)


def _about(one: Trained, modes: Sequence[str], seed: int) -> dict[str, Any]:
    return {
        "modes": list(modes),
        "seed": seed,
        "steps": one.steps,
        "accuracy": one.accuracy,
        "obeys": one.obeys,
        "is_labelled": one.is_labelled,
    }


def _unaided(seed: int, steps: int) -> dict[str, Any]:
    """How well `work` is done by a model that was trained to do without a scratchpad."""
    alone = train(["work"], seed, steps, is_aided=False)
    right = {"work": accuracy(alone, "work", seed, is_aided=False)}
    return {"modes": ["work, without a scratchpad"], "seed": seed, "steps": steps, "accuracy": right}


def _item(found: Scratchpad, example: Example, seed: int, is_mixed: bool) -> Item:
    return Item(example.mode, seed, is_mixed, example.is_needed, example.label, found.verdict, method_scores(found))


def _rewritten(one: Trained, example: Example, seed: int) -> Item:
    """A problem of `free`, of which only resampling is asked."""
    given = {name: example.options[name] for name in ("scratchpad", "answer", "cue")}
    run = split(one.model, example.options["prompt"], **given)
    found = resample_sentences(one.model, run, rollouts=ROLLOUTS, claims=example.options["claims"])
    return Item(example.mode, seed, False, True, example.label, "", resampled_scores(found))


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """P(a needed one scores higher than another) + P(tie) / 2; NaN scores count as the lowest, NaN without both kinds."""
    values = torch.tensor([-math.inf if math.isnan(score) else score for score in scores], dtype=torch.float64)
    mask = torch.tensor(labels, dtype=torch.bool)
    return auroc(values, mask) if mask.any() and not mask.all() else math.nan


def _area(items: Sequence[Item], method: str, seed: int) -> tuple[float, float, float]:
    """The area and its interval."""
    cells: dict[str, dict[int, list[Item]]] = {}
    for item in items:
        cells.setdefault(item.mode, {}).setdefault(item.seed, []).append(item)
    generator = torch.Generator().manual_seed(seed)

    def draw(some: Sequence[Any]) -> list[Any]:
        return [some[i] for i in torch.randint(len(some), (len(some),), generator=generator).tolist()]

    found = []
    for _ in range(DRAWS):
        drawn = [item for models in cells.values() for cell in draw(list(models.values())) for item in draw(cell)]
        found.append(auc([item.scores[method] for item in drawn], [item.is_needed for item in drawn]))
    area = auc([item.scores[method] for item in items], [item.is_needed for item in items])
    return (area, *middle(torch.tensor(found, dtype=torch.float64)))


def _chance(items: Sequence[Item], method: str, seed: int) -> tuple[float, float]:
    """The middle 95 % of areas of a method under shuffled labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([item.is_needed for item in items])
    scores = [item.scores[method] for item in items]
    found = [auc(scores, labels[torch.randperm(len(labels), generator=generator)].tolist()) for _ in range(DRAWS)]
    return middle(torch.tensor(found, dtype=torch.float64))


def _confusion(items: Sequence[Item]) -> dict[str, dict[str, int]]:
    """Verdicts counted by mode, with the class that is known."""
    rows: dict[str, Counter[str]] = {}
    for item in items:
        known = f"{item.mode} ({item.label or 'between'})" if item.mode in LABELS else f"{item.mode} (mixed)"
        rows.setdefault(known, Counter())[item.verdict] += 1
    return {known: dict(row) for known, row in rows.items()}
