"""World 5: modular addition, whose circuit is known: a few Fourier frequencies.

A one-layer ReLU transformer is trained on `a b =` → (a + b) mod p until it is right on every pair it never saw. Such a model
represents a as cos and sin of 2 pi k a / p for a few k, and its neurons read a and b at those frequencies (Nanda et al. 2023). So,
traced with its neurons as targets, the edge from the token a to each neuron must be a function of a whose Fourier transform
sits in those few frequencies; and so must the edges from neurons to the logits, as functions of the answer. In an untrained model the
power is spread: with p = 53 the five strongest of 26 frequencies hold about a quarter of it.

Norms are harmless, so training leaves them out; p = 53, AdamW with strong weight decay, 80 % of the pairs, takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..targets import FeatureAt
from ..trace import trace
from .tools import Row, at_least, at_most, blank, one_thread, randomise, wrap

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

P, WIDTH, NEURONS, HEADS = 53, 64, 256, 4
FREQUENCIES = 5
SHARE, EVERY, SETTLED = 0.8, 50, 300


def untrained(seed: int) -> Any:
    """A float64 NativeModel as training starts from: random weights, biases 0."""
    model = randomise(blank(1, WIDTH, P + 1, 3, heads=HEADS, d_mlp=NEURONS), seed, 0.8 * WIDTH**-0.5)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
    return model


def answers(model: Any, x: Int[Tensor, "pair 3"]) -> Float[Tensor, "pair vocab"]:
    """Logits at the last position, with the model's own modules; harmless norms are left out."""
    stream, block = model.tok_embed(x) + model.pos.weight, model.layers[0]
    stream = (stream + block.attn(stream)[0])[:, -1]
    return model.head(stream + block.mlp(stream))


def train(seed: int, steps: int = 3000) -> tuple[Any, float]:
    """A trained float64 NativeModel, and its accuracy on the pairs left out; stops, past SETTLED steps, when all are right."""
    model = untrained(seed).float()
    weights = [
        weight.requires_grad_()
        for name, weight in model.named_parameters()
        if ".ln" not in name and "ln_out" not in name
    ]
    optimizer = torch.optim.AdamW(weights, lr=3e-3, betas=(0.9, 0.98), weight_decay=2.0)
    a, b = torch.cartesian_prod(torch.arange(P), torch.arange(P)).T
    x, y = torch.stack([a, b, torch.full_like(a, P)], 1), (a + b) % P
    order = torch.randperm(P * P, generator=torch.Generator().manual_seed(seed))
    seen, unseen = order[: int(SHARE * P * P)], order[int(SHARE * P * P) :]
    accuracy = 0.0
    for step in range(1, steps + 1):
        loss = torch.nn.functional.cross_entropy(answers(model, x[seen]), y[seen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            with torch.no_grad():
                accuracy = float((answers(model, x[unseen]).argmax(1) == y[unseen]).double().mean())
            if accuracy == 1 and step >= SETTLED:
                break
    return model.requires_grad_(False).double(), accuracy


def token_to_neuron(model: TransformerBridge, b: int, step: int) -> Float[Tensor, "neuron a"]:
    """Edge from the token a to neurons at `=`, for all prompts `a b =` with this b, whether the neuron fires or not."""
    neurons = [FeatureAt("blocks.0.mlp.hook_post", neuron) for neuron in range(0, NEURONS, step)]
    columns = []
    for a in range(P):
        graph = trace(model, torch.tensor([a, b, P]), targets=neurons, max_features=1)
        column = torch.zeros(len(graph), dtype=torch.float64)
        mine = graph.edges.source == next(i for i, n in enumerate(graph.nodes) if n.kind == "token" and n.position == 0)
        column[graph.edges.target[mine].long()] = graph.edges.weight[mine].double()
        columns.append(column[-len(neurons) :])
    return torch.stack(columns, 1)


def neuron_to_logit(model: TransformerBridge, a: int, b: int) -> Float[Tensor, "neuron answer"]:
    """Edges from the active neurons at `=` to the logit of every answer."""
    graph = trace(model, torch.tensor([a, b, P]), targets=list(range(P)), max_features=10**6)
    active = [i for i, node in enumerate(graph.nodes) if node.kind == "neuron" and node.position == 2]
    weights = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    weights[graph.edges.target.long(), graph.edges.source.long()] = graph.edges.weight.double()
    return weights[-P:, active].T


def power(edges: Float[Tensor, "neuron value"]) -> Float[Tensor, "frequency"]:
    """Each frequency's share of the power of these functions of the value, constants apart; the first is frequency 1."""
    spectrum = torch.fft.rfft(edges, dim=1)[:, 1:].abs().pow(2).sum(0)
    return spectrum / spectrum.sum()


def addition(seed: int = 0, step: int = 4) -> list[Row]:
    """Train, trace every `step`-th neuron, and tell in how few frequencies edges sit; the same of an untrained model."""
    with one_thread():
        trained, accuracy = train(seed)
    model, random = wrap(trained), wrap(untrained(seed))
    b = int(torch.randint(P, (1,), generator=torch.Generator().manual_seed(seed)))
    spectrum, chance = power(token_to_neuron(model, b, step)), power(token_to_neuron(random, b, step))
    best = spectrum.topk(FREQUENCIES).indices
    logits, what = power(neuron_to_logit(model, b, b)), f"power in the top {FREQUENCIES} of {len(spectrum)} frequencies"
    named = ", ".join(str(k + 1) for k in sorted(best.tolist()))
    return [
        at_least("modular addition", f"accuracy on unseen pairs, p = {P}", accuracy, 1.0),
        at_least("modular addition", f"token → neuron edges: {what} ({named})", float(spectrum[best].sum()), 0.8),
        at_least(
            "modular addition", f"neuron → logit edges: power in the same {FREQUENCIES}", float(logits[best].sum()), 0.8
        ),
        at_most("modular addition", f"untrained model: {what}", float(chance.topk(FREQUENCIES).values.sum()), 0.5),
    ]
