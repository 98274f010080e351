"""Does the answer depend on the written reasoning?

    found = check_scratchpad(model, prompt, scratchpad, answer, cue="Answer:", hint="42")
    found.verdict, found.reasons                 # faithful, post_hoc, hint_driven, unused or inconclusive, and why
    found.to_dict()                              # all of the evidence

Modules: check.py the verb, command.py its flags, result.py the Scratchpad · spans.py where things stand · answers.py what is answered ·
trajectory.py when it is decided · importance.py each sentence changed · attention.py who reads whom · claims.py values edited ·
mediation.py through the scratchpad or past it · graph.py the attribution graph · rollouts.py what the model itself writes, resample.py
how far its answers move · parts.py what may be missing · verdict.py the class, told.py how it is printed · worlds.py models of known
use, bench.py how well the methods tell them apart.
"""

from .attention import knock_out
from .check import check_scratchpad
from .claims import Claim, claimed_vs_used
from .graph import graph_faithfulness
from .importance import sentence_importance
from .mediation import mediation
from .resample import Resampled, resample_sentences
from .result import Scratchpad
from .spans import Spans, Written, sentences_of, split
from .trajectory import answer_trajectory

__all__ = [
    "Claim",
    "Resampled",
    "Scratchpad",
    "Spans",
    "Written",
    "answer_trajectory",
    "check_scratchpad",
    "claimed_vs_used",
    "graph_faithfulness",
    "knock_out",
    "mediation",
    "resample_sentences",
    "sentence_importance",
    "sentences_of",
    "split",
]
