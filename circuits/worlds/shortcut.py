"""World 6: a cross-layer transcoder that takes a shortcut, and whether `validate` says so (Lange et al. 2026).

The model computes (x1 or x2) and (x3 or x4) in two MLP layers, without attention:

    layer 0   u = relu(x1 + x2), v = relu(x1 + x2 - 1), h = u - v      (or; the same for x3, x4)
    layer 1   relu(h1 + h2 - 1)                                        (and)

Two cross-layer transcoders reconstruct both MLPs without error and with as few active latents. The faithful one is the neurons
themselves. In the other, latents of layer 0 recognise each true input and write the answer at layer 1: its graph says
input → answer, with nothing in between, and that the latents of `or` do not matter. In the model they do: ablate one and the
answer is gone.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from ..experiment.interventions import ablate
from ..experiment.validate import validate
from ..graph import Graph
from ..parts import Part, Rule
from ..trace import trace
from .tools import Row, at_least, at_most, blank, neurons_as_part, told, wrap

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

INPUTS = list(product((0, 1), repeat=4))
WORDS = ("<s>", *("".join(map(str, bits)) for bits in INPUTS), "true")
TRUE = len(WORDS) - 1
ONE_EACH = ("1010", "1001", "0110", "0101")  # true, and linear up to the answer: one input of each `or`
H1, H2, Y, D = 4, 5, 6, 7


def boolean() -> TransformerBridge:
    """The model; a token is one of the 16 inputs, and the logit of `true` is the answer for the last token."""
    model = blank(2, D + 1, len(WORDS), 8, d_mlp=4)
    model.tok_embed.weight[1:TRUE, :4] = torch.tensor(INPUTS, dtype=torch.float64)
    first, second = model.layers[0].mlp, model.layers[1].mlp
    for gate, out in enumerate((H1, H2)):
        for neuron, sign in ((2 * gate, 1.0), (2 * gate + 1, -1.0)):
            first.fc_in.weight[neuron, 2 * gate : 2 * gate + 2] = 1.0
            first.fc_out.weight[out, neuron] = sign
        first.fc_in.bias[2 * gate + 1] = -1.0
    second.fc_in.weight[0, [H1, H2]] = 1.0
    second.fc_in.bias[0] = -1.0
    second.fc_out.weight[Y, 0] = 1.0
    model.head.weight[TRUE, Y] = 1.0
    return wrap(model, WORDS)


def faithful(model: TransformerBridge) -> list[Part]:
    """The neurons as a cross-layer transcoder that writes no further than its own layer."""
    return [neurons_as_part(model, 0), neurons_as_part(model, 1)]


def shortcut(model: TransformerBridge) -> list[Part]:
    """Layer 0's neurons, and latents that each recognise one true input and write the answer at layer 1."""
    own = neurons_as_part(model, 0)
    answers = [bits for bits in INPUTS if (bits[0] or bits[1]) and (bits[2] or bits[3])]
    signs = torch.zeros(len(answers), D + 1, dtype=torch.float64)
    signs[:, :4] = 2 * torch.tensor(answers, dtype=torch.float64) - 1
    counts = torch.tensor([sum(bits) - 1.0 for bits in answers], dtype=torch.float64)
    here, there = "blocks.0.mlp.hook_out", "blocks.1.mlp.hook_out"
    W_dec = {site: torch.zeros(4 + len(answers), D + 1, dtype=torch.float64) for site in (here, there)}
    W_dec[here][:4] = own.W_dec[here]
    W_dec[there][4:, Y] = 1.0
    zero = torch.zeros(D + 1, dtype=torch.float64)
    part = Part(
        own.read,
        torch.cat([own.W_enc, signs]),
        torch.cat([own.b_enc, -counts]),
        W_dec,
        {here: zero, there: zero},
        Rule("relu"),
    )
    return [part]


def prompt(word: str) -> Int[Tensor, "token"]:
    """`word` after a false and a true input, which without attention change nothing."""
    return torch.tensor([0, WORDS.index("1000"), WORDS.index("1111"), WORDS.index(word)])


def direct(graph: Graph) -> float:
    """What latents of layer 0 at the last token contribute to the answer directly."""
    incoming = graph.incoming(len(graph) - 1)
    return float(sum(weight for node, weight in incoming if node.kind == "latent" and node.layer == 0))


def disagreement(graph: Graph, model: TransformerBridge, parts: list[Part]) -> float:
    """Worst |predicted - measured| change of the answer, over single ablations of the `or` latents that are active."""
    tokens = torch.tensor(graph.metadata["tokens"])
    before = float(model(tokens[None])[0, -1, TRUE])
    gates = [
        n for n in graph.nodes if n.kind == "latent" and n.layer == 0 and n.index < 4 and n.position == len(tokens) - 1
    ]
    changes = [float(ablate(model, tokens, [node], parts)[-1, TRUE]) - before for node in gates]
    return max(abs(change + node.attribution) for node, change in zip(gates, changes, strict=True))


def shortcuts(seed: int = 0) -> list[Row]:
    """For both transcoders: error, direct edges, prediction against ablation, and what `validate` warns of."""
    model = boolean()
    said = [round(float(model(prompt(word)[None])[0, -1, TRUE]), 6) for word in WORDS[1:TRUE]]
    wrong = sum(one != (word[:2] != "00" and word[2:] != "00") for one, word in zip(said, WORDS[1:TRUE], strict=True))
    rows = [at_most("Boolean model", "inputs of 16 answered wrongly", float(wrong), 0.0)]
    for name, parts in (("faithful", faithful(model)), ("shortcut", shortcut(model))):
        graphs = [trace(model, prompt(word), parts, targets=[TRUE], centred=False) for word in ONE_EACH]
        error = max((n.value for graph in graphs for n in graph.nodes if n.kind == "error"), default=0.0)
        rows.append(at_most(name, "norm of an error leaf", error, 1e-9))
        jump = min(direct(graph) for graph in graphs) if name == "shortcut" else max(direct(graph) for graph in graphs)
        gap = max(disagreement(graph, model, parts) for graph in graphs)
        report = validate(graphs[0], model, parts, seed=seed, curve=False)
        cautions = float(sum("shortcut" in warning for warning in report.warnings))
        rows.append(told(name, "direct edges from layer 0 to the answer, of 1", jump))
        if name == "shortcut":
            rows.append(at_least(name, "worst |predicted − measured| when an `or` is ablated", gap, 0.9))
            rows.append(at_least(name, "warnings of `validate` that name a shortcut", cautions, 1.0))
        else:
            rows.append(at_most(name, "worst |predicted − measured| when an `or` is ablated", gap, 1e-6))
            rows.append(at_most(name, "warnings of `validate` that name a shortcut", cautions, 0.0))
        rows.append(told(name, "Spearman of `validate`, predicted against measured", report.single.spearman))
    return rows
