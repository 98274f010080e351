"""The tiny world of the auditing game, trained once for each process, and its organisms as they are wanted."""

import contextlib
import copy
import functools

from unweave.audit.game import tiny
from unweave.audit.game.organism import grow
from unweave.audit.tools import Workspace

QUIRKS = {quirk.name: quirk for quirk in tiny.TINY.quirks}


@functools.cache
def base():
    """The base model; tests leave it as it is."""
    return tiny.tiny_model()


@functools.cache
def target():
    """A second copy, which holds whatever organism was asked for last."""
    return copy.deepcopy(base())


@functools.cache
def organism(name, planted=True):
    """An organism or a control."""
    return grow(base(), QUIRKS[name], target(), 0 if planted else 1, planted=planted, teaching=tiny.TEACHING)


def workspace(name, planted=True, **more):
    """A workspace whose target is that organism, with the base model beside it."""
    organism(name, planted).model(target(), base())
    return Workspace({"target": target(), "base": base()}, **more)


@contextlib.contextmanager
def altered(owner, name, value):
    """An attribute replaced for a while."""
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)
