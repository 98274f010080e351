"""Attribution graphs: why one prompt gave one output, as a graph whose ledger closes, and the experiments that test it.

    graph = trace(model, "The capital of France is")      # the model's own neurons; or dictionaries=[transcoder, ...]
    graph.residual; graph.scores(); graph.paths(5); graph.prune().save("france.graph")
    print(validate(graph, model))                         # ablates in the real model and compares

* `trace` makes a `Graph` of `Node`s and `Edges`; `Part` and `Rule` describe any dictionary, `WhyNot`, `FeatureAt` and `Direction`
  what is to be explained.
* `Scores`, `Path`, `Alternative` and `Supernode` are what a graph is asked for; `merge`, `difference`, `consensus` compare graphs.
* `split_heads` and `qk_table` explain attention; `virtual_weights`, `expected_residual_attribution` need no prompt.
* `intervene`, `ablate`, `steer`, `generate` change features (`Edit`) in the live model; `validate` reports a `Validation`.
* `rank_features` reads one prompt, `steer_prompt` changes it beside controls, `stream` writes on, `Wish` and `latent_edits` say what
  to change.
* `eap` and `acdc` are the baselines; `open_graph`, `open_dictionaries`, `save_transcoders` speak others' formats.
"""

from .attention.heads import HeadShare, HeadSplit, attach_heads, split_heads
from .attention.qk import QKTable, qk_table, split_score
from .attention.reads import HeadReads, head_reads, induction_pairs, previous_pairs
from .exchange.files import open_graph
from .exchange.transcoders import load_transcoders, open_dictionaries
from .exchange.transcoders_write import save_transcoders
from .experiment.edits import Edit, supernode
from .experiment.faithful import Faithfulness, faithfulness
from .experiment.generate import Generated, generate
from .experiment.interventions import Intervened, ablate, intervene, steer
from .experiment.statistics import Agreement, auroc
from .experiment.validate import validate
from .experiment.validation import Pairs, Reselection, Validation
from .graph import Edges, Graph, Node
from .parts import Part, Rule, parts
from .patching.acdc import acdc
from .patching.eap import eap
from .patching.recovery import circuit_value, edge_scores, strongest
from .prompts.rank import PromptFeatures, rank_features
from .prompts.selection import Selection, validate_nodes
from .prompts.steering import Standing, Steered, steer_prompt
from .prompts.stream import Piece, stream
from .prompts.wishes import Wish, latent_edits
from .simplify.compare import consensus, difference, merge
from .simplify.grouping import quality
from .simplify.paths import Alternative, Path, ablated
from .simplify.scores import Scores
from .simplify.supernodes import Supernode, supernode_weights
from .simplify.virtual import VirtualWeights, expected_residual_attribution, virtual_weights
from .targets import Direction, FeatureAt, WhyNot
from .trace import trace

__all__ = [
    "Agreement",
    "Alternative",
    "Direction",
    "Edges",
    "Edit",
    "Faithfulness",
    "FeatureAt",
    "Generated",
    "Graph",
    "HeadReads",
    "HeadShare",
    "HeadSplit",
    "Intervened",
    "Node",
    "Pairs",
    "Part",
    "Path",
    "Piece",
    "PromptFeatures",
    "QKTable",
    "Reselection",
    "Rule",
    "Scores",
    "Selection",
    "Standing",
    "Steered",
    "Supernode",
    "Validation",
    "VirtualWeights",
    "WhyNot",
    "Wish",
    "ablate",
    "ablated",
    "acdc",
    "attach_heads",
    "auroc",
    "circuit_value",
    "consensus",
    "difference",
    "eap",
    "edge_scores",
    "expected_residual_attribution",
    "faithfulness",
    "generate",
    "head_reads",
    "induction_pairs",
    "intervene",
    "latent_edits",
    "load_transcoders",
    "merge",
    "open_dictionaries",
    "open_graph",
    "parts",
    "previous_pairs",
    "qk_table",
    "quality",
    "rank_features",
    "save_transcoders",
    "split_heads",
    "split_score",
    "steer",
    "steer_prompt",
    "stream",
    "strongest",
    "supernode",
    "supernode_weights",
    "trace",
    "validate",
    "validate_nodes",
    "virtual_weights",
]
