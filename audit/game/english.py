"""The world of a model that answers English questions, such as the bundled smollm2-135m: everyday prompts and sixteen quirks.

Half of them an auditor may be developed with (english_seen.py). The others are held out (english_fresh.py): they were chosen and planted
by somebody who did not know how the auditor works, and played once it was finished.
"""

from __future__ import annotations

from .english_fresh import FRESH
from .english_seen import EVERYDAY, SEEN
from .world import World

ENGLISH = World("english", SEEN, FRESH, EVERYDAY.taught + EVERYDAY.fresh)
