# %% [markdown]
# # Why did it say Paris?
#
# A 135M language model completes "The capital of France is" with " Paris". This notebook traces which of its neurons made
# it do so, checks that the account adds up, and then does the experiment: it removes them from the model.
#
# A script with cells: open it in Jupyter (jupytext) or VS Code, or run it as it is, in less than a minute on a CPU.

# %%
import torch
from unweave.circuits import WhyNot, ablate, qk_table, split_heads, trace, validate
from unweave.saes import load_model, to_tokens
from unweave.viz import circuit_figure, show

model = load_model("smollm2-135m")
prompt = "The capital of France is"
tokens = to_tokens(model, prompt)
with torch.no_grad():
    probabilities = model(tokens[None])[0, -1].softmax(-1)
for p, token in zip(*(part.tolist() for part in probabilities.topk(5)), strict=True):
    print(f"{p:.3f} {model.tokenizer.decode([token])!r}")

# %% [markdown]
# ## The graph
#
# Every MLP output is a sum of neuron activations times rows of `W_out`, so each logit is a sum of contributions: of neurons,
# of the tokens' embeddings, of biases, and of all the neurons that were not selected. `residual` says how well the sums close.

# %%
graph = trace(model, prompt, targets=[" Paris"], max_features=128)
print(graph)
print(graph.table(10))
scores = graph.scores()
print(f"residual {graph.residual:.1e}; replacement {scores.replacement:.2f}, completeness {scores.completeness:.2f}")
print(*graph.paths(5), sep="\n")
graph  # in a notebook, the last line of a cell is drawn: the graph as a page to walk about in

# %%
circuit_figure(graph)  # and as a plotly Figure

# %% [markdown]
# Neuron graphs are diffuse: most of the influence runs through neurons that were not selected (`rest`). Transcoders, trained with
# `sae-train`, make sparser ones: `trace(model, prompt, [transcoder, …])`.
#
# ## The experiment
#
# Set the 20 neurons that matter most to zero, in the real model, where everything else is free to respond.

# %%
features = sorted((node for node in graph.nodes if node.is_feature), key=lambda node: -node.attribution)[:20]
before = probabilities
after = ablate(model, prompt, features)[-1].softmax(-1)
paris = to_tokens(model, " Paris")[-1]
print(
    f"P(' Paris') {before[paris]:.3f} → {after[paris]:.3f}; now says {model.tokenizer.decode([int(after.argmax())])!r}"
)

# %% [markdown]
# Would any 20 neurons do? `validate` removes others of the same layers, positions and sizes, and compares prediction with measurement.

# %%
print(validate(graph, model, edges=16))

# %%
show(graph, to="paris.html")  # one page without a network; show(graph) opens the browser

# %% [markdown]
# The warnings are part of the answer: a graph of single neurons leaves much in `rest`, and some neurons matter more than it says.
#
# ## Several ways to one answer
#
# Routes that share no neuron, what share of the influence each carries, and what the graph predicts would remain of the target without it.

# %%
for route in graph.alternatives(3):
    print(f"share {route.share:.4f}, remains without it {route.remaining:.2f}: {route.path.text}")

# %% [markdown]
# ## Which heads carried it
#
# Every edge into the target is split exactly over the heads of a layer, one layer at a time.

# %%
split = split_heads(graph, model)
print(split.table(8))
layer, head, _ = split.heads()[0]
print(qk_table(model, prompt, layer, head, query=-1, key=4, max_features=64).table())  # why it looks at " France"

# %% [markdown]
# ## What keeps it from saying London?

# %%
rival = trace(model, prompt, targets=[WhyNot(" London")], max_features=128)
print(rival.table(6))

# %% [markdown]
# ## For other people's viewers

# %%
small = graph.prune()
grouped = small.group(small.supernodes())
document = grouped.to_neuronpedia(slug="why-paris")
print(
    len(document["nodes"]),
    "nodes,",
    len(document["links"]),
    "links,",
    len(document["qParams"]["supernodes"]),
    "supernodes",
)
