"""What changed between two models that read the same text: latents that differ, tested, and whether they make the difference.

    found = diff(base, tuned, texts, "diff", method="crosscoder")        or mean, stagewise, lens
    found.rows(10)
    found.causal

Modules: run.py the verb, prepare.py what it needs, command.py its flags · pair.py two models over the same tokens · crosscoder.py with
scaling.py, mean.py, stagewise.py, lens.py the methods · reading.py what latents write in each model · statistics.py what is chance ·
causal.py what patching does · result.py the Diff.
"""

from .causal import Score, Share
from .result import Diff
from .run import diff

__all__ = ["Diff", "Score", "Share", "diff"]
