"""The auditing game: models with a known quirk and controls with none, and who finds what (`unweave bench audit`).

    organism = grow(base, ENGLISH.quirks[0], copy)        a quirk planted by low-rank fine-tuning, and checked
    rows = play(english_game(), "game")                  every tool alone, a black box and the scripted auditor on all of them

Modules: world.py what a quirk is · english.py, tiny.py the texts, and a model that is trained here · planting.py, writing.py teaching and
writing · organism.py what stays · contestants.py who plays · bench.py, table.py the run and its table. The auditor (audit/investigate)
imports nothing of this.
"""

from .bench import english_game, play, tiny_game
from .organism import Check, Organism, grow
from .planting import Teaching
from .world import Quirk, World

__all__ = ["Check", "Organism", "Quirk", "Teaching", "World", "english_game", "grow", "play", "tiny_game"]
