"""What changed between two models: a Diff as the page shows it.

| path | answer |
|---|---|
| `diffs/D` | models, method, text, settings, notes, how many are found, what columns mean, tokens, causal scores, open stores |
| `diffs/D/columns/NAME` | one column of all rows, float32 |

A row is a latent, of the lens a token at a position. A manifest can come from anybody, so each part of it is looked at before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...audit.diffing.crosscoder import CLASSES, EXCLUSIVE, LARGEST_ERROR, LARGEST_RECONSTRUCTION
from ...audit.diffing.result import Diff
from ...saes.statistics import middle
from ..finding import reference_of
from ..text import jsonable, number, readable, visible
from .maps import float_bytes
from .registry import nth, path

if TYPE_CHECKING:
    from ..things import Things

CARRIED = 3000  # rows of one Diff that a page carries, those that rank first
TOKENS = 12  # that one latent fires on
CONTROLS = 400  # of one causal score
PARTS = ("text", "sites", "settings", "dictionaries")  # of the manifest, shown as they are
SHOWN = {
    "crosscoder": ["score", "q", "d", "norm_difference", "cosine"],
    "mean": ["change", "q", "d", "score", "density"],
    "stagewise": ["score", "q", "d", "rotation", "density"],
    "lens": ["score", "q", "p", "random_high"],
}
DRAWN = {
    "crosscoder": ("norm_difference", "nu_eps"),
    "lens": ("position", "score"),
}  # x and y; others: effect and score
NOTES = {
    "score": "what rows are ranked by",
    "class": "shared by both models, only in one, or spurious: shrunk or decoupled",
    "norm_difference": "of the decoders' lengths: 0 only A, 0.5 both alike, 1 only B",
    "cosine": "of the two decoder rows",
    "cosine_control": "of the row with what it was, after training on with A",
    "rotation": "how much further B turned the row than more training on A does",
    "nu_eps": f"share of it in the other model's error; above {LARGEST_ERROR} an exclusive latent is called shrunk",
    "nu_r": f"share of it in the other model's reconstruction; above {LARGEST_RECONSTRUCTION} an exclusive latent is called decoupled",
    "d": "Cohen's d over documents, B less A",
    "d_low": "lower end of the 95 % interval of d, documents drawn with replacement",
    "d_high": "upper end of the 95 % interval of d",
    "p": "by sign flips of whole documents",
    "q": "the smallest false-discovery rate at which it is found (Benjamini and Hochberg)",
    "is_found": "found at the stated rate, and not spurious",
    "mean": "mean activation",
    "mean_a": "mean activation in A",
    "mean_b": "mean activation in B",
    "change": "mean activation in B less that in A, over documents",
    "density": "share of the tokens on which it fires",
    "position": "tokens after the first",
    "length": "of the mean difference at this position",
    "random_high": "the largest logit of a random direction, 95th percentile",
    "beta_r_a": "of its direction in A's reconstruction",
    "beta_r_b": "of its direction in B's reconstruction",
    "beta_eps_a": "of its direction in A's error",
    "beta_eps_b": "of its direction in B's error",
}
OWN_NOTES = {  # of one method
    "stagewise": {"cosine": "of the row with what it was, after training on with B"},
    "lens": {
        "score": "logit of the mean difference, less the mean over the vocabulary",
        "p": "share of differences between two halves of A's documents whose largest logit is as large",
        "q": "of the position: whether B differs there at all, by sign flips of documents",
    },
}
LINES = {
    "norm_difference": [EXCLUSIVE, 0.5, 1 - EXCLUSIVE],
    "nu_eps": [LARGEST_ERROR],
    "nu_r": [LARGEST_RECONSTRUCTION],
}


@path(r"diffs/(\d{1,6})")
def diff(things: Things, place: int) -> dict[str, Any]:
    """The Diff at a place."""
    return diff_payload(things, place)


def diff_payload(things: Things, place: int, rows: Sequence[int] | None = None) -> dict[str, Any]:
    """All of a Diff but its columns; `rows` are those that a page carries (null: all of them)."""
    found = diff_at(things, place)
    notes = NOTES | OWN_NOTES.get(found.method, {})
    about, columns = found.manifest, column_names(found)
    settings = _part(about, "settings")
    return {
        **diff_row(list(things.diffs)[place], found),
        "rows": None if rows is None else list(rows),
        "columns": columns,
        "shown": [name for name in SHOWN[found.method] if name in columns],
        "drawn": [name for name in DRAWN.get(found.method, ("d", "score")) if name in columns],
        "column_notes": {name: notes[name] for name in columns if name in notes},
        "lines": LINES,
        "classes": list(CLASSES) if "class" in columns else [],
        "is_signed": found.method != "crosscoder",
        "is_aligned": bool(about.get("is_aligned")),
        "target": None if settings.get("target") is None else readable(settings["target"]),
        "warnings": [readable(note, 400) for note in _list(about, "notes")],
        "about": {name: jsonable(_part(about, name)) for name in PARTS},
        "tokens": _tokens(found, rows),
        "causal": [_score(score) for score in _list(about, "causal") if isinstance(score, dict)],
        "stores": _stores(things, found),
    }


def diff_row(name: str, found: Diff) -> dict[str, Any]:
    """A Diff in the numbers that one looks at first."""
    models, sites, text = (_part(found.manifest, part) for part in ("models", "sites", "text"))
    together = next((score for score in _list(found.manifest, "causal") if isinstance(score, dict)), {})
    patched = _share(_part(together, "patched"))
    return {
        "name": readable(name),
        "method": found.method,
        "a": readable(_part(models, "a").get("name", "A")),
        "b": readable(_part(models, "b").get("name", "B")),
        "site": readable(" and ".join(dict.fromkeys(str(sites[side]) for side in ("a", "b") if side in sites))),
        "total": len(found),
        "found": found.discoveries,
        "fdr": number(_part(found.manifest, "settings").get("fdr")),
        "documents": number(text.get("documents_measured", text.get("documents"))),
        "text_tokens": number(text.get("rows")),
        "patched": patched["share"],
        "patched_p": patched["p"],
        "notes": len(_list(found.manifest, "notes")),
    }


def diff_at(things: Things, place: int) -> Diff:
    """The Diff at a place; KeyError where there is none."""
    return nth(list(things.diffs.values()), place)


def column_names(found: Diff) -> list[str]:
    """Columns whose name can stand in a path."""
    return [name for name in found.columns if re.fullmatch(r"\w{1,40}", name, re.ASCII)]


@path(r"diffs/(\d{1,6})/columns/(\w{1,40})")
def diff_column(things: Things, place: int, name: str) -> bytes:
    """One column of all rows as little-endian float32."""
    return float_bytes(diff_at(things, place).columns[name])


def _part(data: dict[str, Any], name: str) -> dict[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _list(data: dict[str, Any], name: str) -> list[Any]:
    found = data.get(name)
    return found if isinstance(found, list) else []


def _tokens(found: Diff, rows: Sequence[int] | None) -> dict[str, list[str]]:
    """By row, the tokens that a latent fires on; of the lens, the token itself."""
    known = range(len(found)) if rows is None else rows
    if found.method == "lens" and "token" in found.columns:
        strings = _part(found.manifest, "strings")
        ids = found.columns["token"].tolist()
        return {str(row): [visible(strings.get(str(ids[row]), f"id {ids[row]}"))] for row in known}
    fires = _part(found.manifest, "fires_on")
    named = {str(row): fires.get(str(row)) for row in known}
    return {row: [visible(each) for each in own[:TOKENS]] for row, own in named.items() if isinstance(own, list)}


def _score(score: dict[str, Any]) -> dict[str, Any]:
    """One causal score: which latents (none: the whole activation), and what patching and removing them does."""
    latents = [number(latent) for latent in _list(score, "latents")[:TOKENS]]
    return {"latents": latents, **{side: _share(_part(score, side)) for side in ("patched", "removed")}}


def _share(share: dict[str, Any]) -> dict[str, Any]:
    """A share with its interval, and the random latents' shares with their mean and middle 95 %."""
    controls = [value for value in map(number, _list(share, "controls")[:CONTROLS]) if value is not None]
    known = torch.tensor(controls, dtype=torch.float64)
    ends = middle(known) if controls else (None, None)
    interval = [number(end) for end in _list(share, "interval")[:2]]
    return {
        "share": number(share.get("share")),
        "interval": interval if len(interval) == 2 and None not in interval else None,
        "controls": controls,
        "control_mean": number(float(known.mean())) if controls else None,
        "control_interval": [number(end) for end in ends] if controls else None,
        "p": number(share.get("p")),
    }


def _stores(things: Things, found: Diff) -> list[int]:
    """Places of the open stores whose latents are the rows of a Diff: those of its dictionaries, in the manifest's order."""
    known = [fingerprint for fingerprint in _part(found.manifest, "dictionaries").values() if fingerprint]
    of = {
        place: reference_of(store).get("fingerprint")
        for place, store in enumerate(things.stores.values())
        if len(store) == len(found)
    }
    return [place for fingerprint in known for place, own in of.items() if own == fingerprint]


def first_latents(things: Things, place: int, most: int) -> list[int]:
    """The latents of a store that rank first in the Diffs of its dictionary."""
    ranked = [found.order()[:most] for found in things.diffs.values() if place in _stores(things, found)]
    return list(dict.fromkeys(latent for latents in ranked for latent in latents))[:most]


def frozen_diffs(things: Things) -> Iterator[tuple[str, Any]]:
    """What a page carries of each Diff: the paths above for at most CARRIED rows."""
    for place, found in enumerate(things.diffs.values()):
        rows = None if len(found) <= CARRIED else sorted(found.order()[:CARRIED])
        yield f"diffs/{place}", diff_payload(things, place, rows)
        for name in column_names(found):
            values = found.columns[name] if rows is None else found.columns[name][torch.tensor(rows)]
            yield f"diffs/{place}/columns/{name}", [number(float(value), 6) for value in values.tolist()]
