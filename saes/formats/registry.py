"""The forms in which dictionaries are kept, and how they are told apart: by the names of their files and tensors.

Each other library has one small module with a `Format`: what it holds, how it is read, and how it is written if it is.
`detect` asks them in order; a form that is more specific stands before one that is less so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..dictionary_config import as_sites
from ..errors import UserError
from . import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    hub,
    llama_scope,
    llamascopium,
    saelens_read,
    sparsify,
    state_dicts,
)
from .build import NOTHING, Given
from .form import Format, Look, look
from .saelens import save

if TYPE_CHECKING:
    from ..dictionary import Dictionary

LONGEST = 2000  # letters of an error
OURS = Format(
    "saelens",
    "cfg.json and sae_weights.safetensors: our own folders and those of SAELens",
    lambda seen: "cfg.json" in seen.files and "sae.safetensors" not in seen.files,
    saelens_read.load,
    save,
)


def formats() -> dict[str, Format]:
    """All forms by name, in the order in which they are tried."""
    known = (
        OURS,
        sparsify.FORMAT,
        dictionary_learning.FORMAT,
        gemma_scope.FIRST,
        gemma_scope.SECOND,
        llama_scope.FORMAT,
        llamascopium.FORMAT,
        circuit_tracer.FORMAT,
        *state_dicts.FORMATS,
    )
    return {form.name: form for form in known}


def detect(path: Path) -> Format:
    """The form of what is at `path`; UserError with what is looked for if it is none."""
    seen = look(path)
    for form in formats().values():
        if form.holds(seen):
            return form
    there = f"{', '.join(sorted(seen.files or seen.names)[:8])[:300] or 'nothing that can be read'}"
    raise UserError(
        f"expected a dictionary at {path}; got {there}; known are "
        + "; ".join(f"{form.name} ({form.about})" for form in formats().values())
    )


def opened(
    path: str | Path,
    format: str = "auto",
    *,
    site: str | Sequence[str] = (),
    site_out: str | Sequence[str] = (),
    k: int = 0,
) -> Dictionary:
    """What `Dictionary.load` reads: a path, or the name of a dictionary on the hub."""
    place, given = hub.place_of(path, Given(as_sites(site), as_sites(site_out), k))
    dictionary = load(place, format, given)
    dictionary.folder = place if place.is_dir() else place.parent
    return dictionary


def load(path: Path, format: str = "auto", given: Given = NOTHING) -> Dictionary:
    """Read what is at `path`. UserError for what is missing, damaged, of no known form, or cannot be expressed exactly."""
    known = formats()
    if format not in ("auto", *known):
        raise UserError(f"expected format auto, {', '.join(known)}; got {format!r}")
    if not path.exists():
        raise UserError(f"expected a dictionary at {path}; there is nothing; check the path")
    form = detect(path) if format == "auto" else known[format]
    try:
        return form.load(path, given)
    except UserError as error:
        if len(str(error)) <= LONGEST:
            raise
        raise UserError(f"{str(error)[:LONGEST]} ...") from error  # a file may have names of any length


def write(dictionary: Dictionary, folder: Path, format: str = "saelens") -> None:
    """Write a folder. UserError for what the form cannot hold exactly, and for one that is only read."""
    writing = {form.name: form.save for form in formats().values() if form.save}
    if format not in writing:
        raise UserError(f"expected format {', '.join(writing)} to write; got {format!r}; other forms are only read")
    writing[format](dictionary, folder)


__all__ = ["Format", "Look", "detect", "formats", "load", "look", "opened", "write"]
