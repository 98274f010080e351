"""The world of a model that answers English questions, such as the bundled smollm2-135m: everyday prompts and sixteen quirks.

With half of them the auditor was developed (english_seen.py). The others are held out (english_fresh.py): they were chosen and planted
by somebody who did not know how it works.
"""

from __future__ import annotations

from .english_fresh import FRESH
from .english_seen import EVERYDAY, SEEN
from .world import World

ENGLISH = World("english", SEEN, FRESH, EVERYDAY.taught + EVERYDAY.fresh)
