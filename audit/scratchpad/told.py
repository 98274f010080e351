"""How a Scratchpad is printed: the class and why, a row a sentence, and a line for each part beside its control."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .importance import small

if TYPE_CHECKING:
    from .graph import GraphShares
    from .resample import Moved, Resampled
    from .result import Scratchpad

WIDE = 60  # characters of a sentence
FORCED = 0.1  # share of rollouts that say something else, up to which a sentence is called forced
HALF = 0.5  # share of rollouts that come to an end by themselves, below which it is told
LEAST = 0.02  # probability of an answer that is told


def lines(found: Scratchpad) -> list[str]:
    """The lines of what was found; text of the run is quoted and cut."""
    return [
        f"Scratchpad({found.verdict}; answer {found.run.answer.text!r}; seeds: {', '.join(found.by_seed)})",
        *(f"  {reason}" for reason in found.reasons),
        *_by_sentence(found),
        *([] if found.resampled is None else _resampled(found, found.resampled)),
        *_mediated(found),
        *_claimed(found),
        *([] if found.graph is None else _graph(found.graph)),
        *(f"  no {name}: {why}" for name, why in found.left_out.items()),
    ]


def _by_sentence(found: Scratchpad) -> list[str]:
    p = found.trajectory.by_sentence
    head = [
        f"  P(answer) without a scratchpad {p[0]:.3f}, with {p[-1]:.3f}",
        "  P after   removed  replaced reworded       q  unattended   (KL in nats)",
    ]
    rows = []
    for row in found.rows():
        kls = f"{row['removed']:9.3g} {row['replaced']:9.3g} {row['reworded']:8.3g}"
        unattended = f"{small(row['q']):>7} {row['unattended']:11.3g}"
        rows.append(f"  {row['p_after']:7.3f} {kls} {unattended}   {row['sentence'][:WIDE]!r}")
    return head + rows


def _resampled(found: Scratchpad, some: Resampled) -> list[str]:
    """What moves when the model writes a sentence, and all after it, itself."""
    found_lines = [
        f"  written anew by the model, {some.rollouts} times from each sentence on, at temperature {some.temperature:g}",
        "  (moved: how far its answers move, 0 not at all, 1 all; other: it writes something else than the sentence)",
        "  moved [95 %]       chance       q  same again  other  moved where other",
    ]
    for i, sentence in enumerate(found.run.sentences):
        one, other = some.importance[i], some.counterfactual[i]
        where = "too few to tell" if other is None else f"{_moved(other)}, p {small(other.p)}"
        shares = f"{one.floor:6.2f} {small(some.q[i]):>7} {some.again[i]:>11.0%} {some.other[i]:>6.0%}"
        found_lines.append(f"  {_moved(one):<18} {shares}  {where:<27} {_quoted(sentence.text)}")
    return found_lines + _instead(some) + _answers(some) + _cautions(some)


def _moved(one: Moved) -> str:
    return f"{one.distance:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _quoted(text: str) -> str:
    return repr(text.strip()[:WIDE])


def _instead(some: Resampled) -> list[str]:
    """What stood most often in a sentence's place and says something else."""
    pairs = enumerate(some.instead, 1)
    return [f"    in place of sentence {i} most often {_quoted(text)}" for i, text in pairs if text is not None]


def _answers(some: Resampled) -> list[str]:
    """How likely the answers are when the model writes on after each sentence."""
    told = []
    for count, answers in enumerate(some.answers):
        likely = ", ".join(
            f"{name!r} {p:.2f}" for name, p in answers.items() if p >= LEAST or name == next(iter(answers))
        )
        told.append(f"    answers when it writes on after {count} of {len(some.answers) - 1}: {likely}")
    return told


def _cautions(some: Resampled) -> list[str]:
    """Where the numbers above say little."""
    told = []
    forced = [str(i) for i, share in enumerate(some.other, 1) if share <= FORCED]
    if forced:
        told.append(
            f"    it nearly always says the same again (sentence {', '.join(forced)}): "
            "that its answers do not move says nothing there of need; see replaced"
        )
    ended = min(some.ended)
    if ended < HALF:
        told.append(
            f"    only {ended:.0%} came to an end by themselves after some sentence; "
            "the others were cut after as many sentences as the run had left"
        )
    return told


def _mediated(found: Scratchpad) -> list[str]:
    told = []
    for name, one in (("counterfactual", found.mediation), ("hint", found.hint_mediation)):
        if one is not None:
            through = f"through the scratchpad {one.indirect:+.2f} (words {one.words:+.2f})"
            told.append(f"  {name}: total {one.total:+.2f}, direct {one.direct:+.2f}, {through}")
    return told


def _claimed(found: Scratchpad) -> list[str]:
    told = []
    for claim in found.claims:
        mean = claim.mean
        comes = f", the one that follows comes by {mean['follows']:+.2f} (chance {mean['chance']:+.2f})"
        known = comes if mean["follows"] == mean["follows"] else ""
        told.append(f"  claim {claim.value!r}: edited, the answer drops by {mean['drop']:.2f}{known}")
    return told


def _graph(graph: GraphShares) -> list[str]:
    shares = ", ".join(f"{name} {share:.2f}" for name, share in graph.shares.items())
    drops = ", ".join(f"{name} {drop:.2f} (control {graph.control[name]:.2f})" for name, drop in graph.measured.items())
    return [f"  graph: {shares}; completeness {graph.completeness:.2f}", f"  ablated: {drops}"]
