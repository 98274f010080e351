"""World 3: programs compiled by hand into weights, so that every edge of the graph is known beforehand.

| program | weights | used edges |
|---|---|---|
| previous-token copy, reverse | one head that looks at a place computed from positions; OV copies the token | token → logit: 1 |
| frac-prevs | layer-0 neuron [token is x]; a layer-1 head averages over all positions | neuron at each x → logit, in percent: 100 / T |
| token count | the same head, then neurons that compare T times the mean with k ± .2 | neuron → neuron: T / (q + 1), neuron → digit |

The stream is cut into one-hot fields that nothing shares: token, position, intermediate results, output, and a field `junk` that
distractors write (heads with random OV circuits, detectors of other tokens) and nothing reads. Norms are harmless
(worlds_tools.py), logits raw. The tracer must give each used edge its weight and nothing else any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attention.heads import split_heads
from ..graph import Graph
from ..trace import trace
from .tools import Key, Row, at_most, blank, edges_of, look_at, wrap, write_head

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

EPSILON = 1e-9
JUNK, HEADS = 8, 3
LETTERS = ("<s>", "a", "b", "c", "d", "|")
WORDS = ("<s>", "x", "y", "z", "percent", "1", "2", "3", "4")
X, PERCENT, DIGITS = 1, 4, 5
LEVELS, HALF = 5, 0.2  # [count >= k] = (relu(count - k + .5 + .2) - relu(count - k + .5 - .2)) / .4, k = 1 ... 5


class Program(NamedTuple):
    """A compiled program on one prompt: the answer among its choices, the head that finds it, and every edge that it uses."""

    name: str
    model: TransformerBridge
    tokens: Int[Tensor, "token"]
    targets: list[int]
    choices: list[int]
    answer: int
    head: tuple[int, int]
    edges: dict[tuple[Key, Key], float]


def programs(seed: int = 0) -> list[Row]:
    """For each program: does it run, is every used edge found, is there any other, which head does it go through."""
    return [row for program in (previous(seed), *reverse(seed), count(seed)) for row in judge(program)]


def judge(program: Program) -> list[Row]:
    """Trace the program's targets and compare with the edges that it was compiled from."""
    graph = trace(program.model, program.tokens, targets=list(program.targets), max_features=10**6, centred=False)
    with torch.no_grad():
        said = program.choices[int(program.model(program.tokens[None])[0, -1, program.choices].argmax())]
    used, other = deviations(graph, program.edges)
    return [
        at_most(program.name, "1 if the program answers wrongly", float(said != program.answer), 0.0),
        at_most(program.name, f"used edges against their exact weights, worst of {len(program.edges)}", used, EPSILON),
        at_most(program.name, f"largest other edge, of {len(graph.edges.weight)}", other, EPSILON),
        at_most(
            program.name,
            f"share that is missed by L{program.head[0]}H{program.head[1]}",
            _missed(graph, program),
            EPSILON,
        ),
    ]


def deviations(graph: Graph, expected: dict[tuple[Key, Key], float]) -> tuple[float, float]:
    """Worst |weight - expected| over the expected edges (a missing one weighs 0), and the largest other |weight|."""
    found = edges_of(graph)
    used = max(abs(found.get(edge, 0.0) - weight) for edge, weight in expected.items())
    return used, max((abs(weight) for edge, weight in found.items() if edge not in expected), default=0.0)


def _missed(graph: Graph, program: Program) -> float:
    """1 minus the head's share of all that its layer's heads carry into rows at the last token, in absolute value."""
    layer, head = program.head
    fed = [i for i, node in enumerate(graph.nodes) if node.position == len(program.tokens) - 1 and node.layer >= layer]
    fed = [i for i in fed if not graph.row_values[i].isnan()]
    parts = split_heads(graph, program.model, targets=fed, layers=[layer]).weights.abs().sum((0, 1, 3))
    return float(1 - parts[head] / parts.sum())


def one_hot(rows: slice, columns: int, d: int) -> Float[Tensor, "d column"]:
    """A matrix that reads a field of the stream into as many columns, or (transposed) writes it."""
    matrix = torch.zeros(d, columns, dtype=torch.float64)
    matrix[rows] = torch.eye(columns, dtype=torch.float64)
    return matrix


def distract(model: Any, layer: int, busy: int, fields: slice, seed: int) -> None:
    """Give every other head of the layer a random OV circuit from `fields` to the junk field, the last of the stream."""
    generator, d = torch.Generator().manual_seed(seed), model.cfg.d_model
    for head in range(HEADS):
        if head != busy:
            v, o = torch.zeros(d, JUNK, dtype=torch.float64), one_hot(slice(d - JUNK, d), JUNK, d).T
            v[fields] = torch.randn(v[fields].shape, generator=generator, dtype=torch.float64)
            write_head(model, layer, head, v=v, o=o)


def _copier(name: str, seed: int, texts: list[list[int]], places: list[int | None], head: int) -> list[Program]:
    """One attention layer whose `head` copies to position p the token of position places[p], on some prompts."""
    vocab, count = len(LETTERS), len(places)
    token, position = slice(vocab), slice(vocab, vocab + count)
    out, d = slice(vocab + count, 2 * vocab + count), 2 * vocab + count + JUNK
    model = blank(1, d, vocab, count, heads=HEADS, d_head=max(count, vocab, JUNK))
    model.tok_embed.weight.copy_(one_hot(token, vocab, d).T)
    model.pos.weight.copy_(one_hot(position, count, d).T)
    model.head.weight.copy_(one_hot(out, vocab, d).T)
    write_head(model, 0, head, **look_at(places, position, d), v=one_hot(token, vocab, d), o=one_hot(out, vocab, d).T)
    distract(model, 0, head, slice(vocab + count), seed)
    bridge, made = wrap(model, LETTERS), []
    for tokens in texts:
        source = places[len(tokens) - 1]
        assert source is not None
        copied = tokens[source]
        edges = {(("token", -1, source, copied), ("logit", 1, len(tokens) - 1, copied)): 1.0}
        letters = list(range(vocab))
        title = f"{name}, {LETTERS[copied]}" if len(texts) > 1 else name
        made.append(Program(title, bridge, torch.tensor(tokens), letters, letters, copied, (0, head), edges))
    return made


def previous(seed: int = 0) -> Program:
    """Copy the token before the last."""
    return _copier("previous-token copy", seed, [[0, 1, 3, 2, 4, 3, 1]], [max(0, p - 1) for p in range(8)], head=1)[0]


def reverse(seed: int = 0) -> list[Program]:
    """After `a b c d |` say them backwards, `d c b a`: position p copies position 9 - p. A prompt for every letter said."""
    places: list[int | None] = [None if p < 5 else 9 - p for p in range(9)]
    text = [0, 1, 2, 3, 4, 5, 4, 3, 2]
    return _copier("reverse", seed, [text[:end] for end in range(6, 10)], places, head=2)


def count(seed: int = 0) -> Program:
    """How many x (the digits), and how many percent of the prompt they are (the logit of `percent`)."""
    tokens = torch.tensor([0, 1, 2, 1, 3, 3, 1, 2, 3])
    vocab, length, busy = len(WORDS), len(tokens), 0
    # fields: token | is x | mean of is x | [count >= k] | junk
    is_x, mean, steps = vocab, vocab + 1, slice(vocab + 2, vocab + 2 + LEVELS)
    d = vocab + 2 + LEVELS + JUNK
    model = blank(2, d, vocab, length, heads=HEADS, d_head=JUNK, d_mlp=2 * LEVELS)
    model.tok_embed.weight.copy_(one_hot(slice(vocab), vocab, d).T)
    model.head.weight[PERCENT, mean] = 100.0
    for digit in range(1, LEVELS):
        model.head.weight[DIGITS + digit - 1, steps][[digit - 1, digit]] = torch.tensor(
            [1.0, -1.0], dtype=torch.float64
        )
    detect, compare = model.layers[0].mlp, model.layers[1].mlp
    for neuron, (word, writes) in enumerate(((X, is_x), (2, d - 1), (3, d - 2))):
        detect.fc_in.weight[neuron, word], detect.fc_out.weight[writes, neuron] = 1.0, 1.0
    average = torch.zeros(2, d, 1, dtype=torch.float64)
    average[0, is_x], average[1, mean] = 1.0, 1.0
    write_head(model, 1, busy, v=average[0], o=average[1].T)
    distract(model, 1, busy, slice(vocab + 1), seed)
    for level in range(LEVELS):
        for side, sign in enumerate((1, -1)):
            neuron = 2 * level + side
            compare.fc_in.weight[neuron, mean] = length
            compare.fc_in.bias[neuron] = 0.5 + sign * HALF - (level + 1)
            compare.fc_out.weight[steps, neuron] = torch.eye(LEVELS, dtype=torch.float64)[level] * sign / (2 * HALF)
    number = int((tokens == X).sum())
    targets = [PERCENT, *range(DIGITS, DIGITS + LEVELS - 1)]
    edges = _count_edges(tokens.tolist())
    answer = DIGITS + number - 1
    return Program("frac-prevs and count", wrap(model, WORDS), tokens, targets, targets[1:], answer, (1, busy), edges)


def _count_edges(tokens: list[int]) -> dict[tuple[Key, Key], float]:
    """Every edge of `count` by hand."""
    length, last = len(tokens), len(tokens) - 1
    at_x = [p for p, token in enumerate(tokens) if token == X]
    edges: dict[tuple[Key, Key], float] = {}
    for p, token in enumerate(tokens[1:], start=1):
        edges[("token", -1, p, token), ("neuron", 0, p, token - 1)] = 1.0
    for p in at_x:
        edges[("neuron", 0, p, 0), ("logit", 2, last, PERCENT)] = 100 / length
    for q in range(1, length):
        seen = [p for p in at_x if p <= q]
        for neuron in range(2 * LEVELS):
            level, sign = neuron // 2, 1 - 2 * (neuron % 2)
            bias = 0.5 + sign * HALF - (level + 1)
            value = length * len(seen) / (q + 1) + bias
            if value <= 0:
                continue
            here: Key = ("neuron", 1, q, neuron)
            edges |= {(("neuron", 0, p, 0), here): length / (q + 1) for p in seen}
            edges[("bias", 1, -1, -1), here] = bias
            if q == last:
                reads = {level: 1.0, level - 1: -1.0}  # digit k + 1 is [count >= k + 1] - [count >= k + 2], from k = 0
                for digit, weight in reads.items():
                    if 0 <= digit < LEVELS - 1:
                        edges[here, ("logit", 2, last, DIGITS + digit)] = weight * sign / (2 * HALF) * value
    return edges
