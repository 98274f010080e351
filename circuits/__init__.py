"""Attribution graphs: why one prompt gave one output, as a graph whose ledger closes, and the experiments that test it.

    graph = trace(model, "The capital of France is")      # the model's own neurons; or dictionaries=[transcoder, ...]
    graph.residual; graph.scores(); graph.paths(5); graph.prune().save("france.graph")
    print(validate(graph, model))                         # ablates in the real model and compares

`trace` makes a `Graph` of `Node`s and `Edges`; `Scores` and `Path` are what it is asked for; `ablate` and `steer` change
features in the live model; `validate` reports a `Validation`.
"""

from .graph import Edges, Graph, Node
from .interventions import ablate, steer
from .paths import Path
from .scores import Scores
from .trace import trace
from .validate import Validation, validate

__all__ = ["Edges", "Graph", "Node", "Path", "Scores", "Validation", "ablate", "steer", "trace", "validate"]
