# %% [markdown]
# # Which features fire on code?
#
# A sparse autoencoder turns one layer of a 135M language model into 2,048 latents. Which of them are about Python and not about
# prose? Is that more than chance? Do they know the context, or only the token in front of them?
#
# A script with cells: open it in Jupyter (jupytext) or VS Code, or run it as it is, in about a minute on two CPU cores.

# %%
import torch
from unweave.saes import TrainConfig, bundled, cache, collect, load_model, train
from unweave.saes.latents.codes.company import company
from unweave.saes.latents.codes.intervals import intervals
from unweave.saes.latents.effect.effects import effects
from unweave.saes.latents.find.search import search
from unweave.viz import feature_figure, show

# %% [markdown]
# ## From text to features
#
# The bundled text is prose, 22 languages and Python files; a thousand characters from the middle of each make many documents. We
# cache what layer 12 of 30 says of them, train a dictionary on that, and collect what each latent does on the same text:
# its codes are kept, so every count below is exact. A small dictionary on little text; for a large one the questions are the same.

# %%
model = load_model("smollm2-135m")
documents = [document._replace(text=document.text[1000:2000]) for document in bundled()]
shards = cache(model, documents, ["blocks.12.hook_resid_post"], "activations", tokens=24_000, progress=False)
sae = train(TrainConfig(latents=2048, k=32, batch=512, tokens=96_000), shards, "sae", progress=False)
store = collect(sae, shards, "features", model, progress=False)
print(store)

# %% [markdown]
# ## Code against prose
#
# How often does each latent fire in each document? From that its *code share*: of its firings in code and in prose, the share
# in code, if there were as much of the one as of the other.

# %%
kinds = ["prose", "language", "code"]
kind = torch.tensor([kinds.index(document.kind.split(":")[0]) for document in documents])
read = store.positions > 0  # position 0 is the BOS, which the dictionary leaves out
tokens_in = torch.bincount(store.documents[read].long(), minlength=len(documents)).float()
fires_in = torch.zeros(len(store), len(documents))
for latent in range(len(store)):
    rows = store.codebook.firings(latent).rows
    fires_in[latent] = torch.bincount(store.documents[rows].long(), minlength=len(documents))


def code_share(kind):
    """Per latent, its rate in code over its rates in code and prose."""
    prose, _, code = (fires_in[:, kind == k].sum(1) / tokens_in[kind == k].sum() for k in range(3))
    return code / (code + prose)


share = code_share(kind)
is_frequent = fires_in[:, kind != 1].sum(1) >= 50
is_code = is_frequent & (share >= 0.95)
print(f"{int(is_code.sum())} of {int(is_frequent.sum())} latents that fire often have a code share of at least 0.95")

# %% [markdown]
# ### Is it chance?
#
# Among so many latents some would look like anything. So shuffle the kinds: the documents stay whole (what fires in a document tends
# to fire again there), only which of them are called code is drawn anew, and the same rule is applied.

# %%
generator = torch.Generator().manual_seed(0)
by_chance = [
    int((is_frequent & (code_share(kind[torch.randperm(len(kind), generator=generator)]) >= 0.95)).sum())
    for _ in range(100)
]
print(f"with shuffled kinds: {sum(by_chance) / 100:.1f} on average, {max(by_chance)} at most in 100 shuffles")

# %% [markdown]
# ### The token, or the context?
#
# A latent that fires on `self` is a latent of code for a dull reason: the token is. What would each latent's code share be if it
# knew nothing but the tokens it fires on? The gap between the two is what it takes from the context. (A rare token
# counts as code if it happened to stand there, so the gap errs on the low side.)

# %%
row_kind = kind[store.documents.long()]
rates = [
    torch.bincount(store.tokens[read & (row_kind == k)].long(), minlength=len(store.vocabulary)).float() for k in (0, 2)
]
prose, code = (rate / rate.sum() for rate in rates)
share_of_token = code / (code + prose)
by_token = torch.full((len(store),), torch.nan)
for latent in is_code.nonzero()[:, 0].tolist():
    rows = store.codebook.firings(latent).rows
    by_token[latent] = share_of_token[store.tokens[rows[row_kind[rows] != 1]].long()].mean()

gap = (share - by_token).nan_to_num(-1)
found = gap.argsort(descending=True)[: int(is_code.sum())].tolist()
print("latent   fires  code share  by token alone  tokens")
for latent in found[:12]:
    tokens = "  ".join(repr(each.token) for each in store[latent].tokens[:6])
    print(f"{latent:>6}  {fires_in[latent].sum():>6.0f}  {share[latent]:>10.3f}  {by_token[latent]:>14.3f}  {tokens}")

# %% [markdown]
# At the top of the list stand latents for tokens that prose has as well (`,`, ` in`, ` and`) where they are Python's. Toward its end come
# latents of Python's own tokens, for which there is nothing to explain.
#
# ## One of them, closely
#
# The first of the list: its tokens, what it promotes by its direct effect on the logits, and where it fires most.

# %%
latent = found[0]
feature = store[latent]
feature  # in a notebook, the last line of a cell is drawn

# %%
for example in feature.examples[:6]:
    before = "".join(example.tokens[: example.focus])[-48:]
    after = "".join(example.tokens[example.focus + 1 :])[:24]
    print(f"{example.value:6.1f}  {(before + '«' + example.tokens[example.focus] + '»' + after)!r}")
print("promotes", *(repr(token) for token, _ in feature.top_logits[:6]))

# %%
feature_figure(feature)

# %% [markdown]
# The strongest examples flatter a latent. Its weaker activations, in five intervals of equal width with random places from each, show
# whether it stays with its subject.

# %%
for interval in intervals(store, latent, "width", number=5, examples=2)[::-1]:
    places = ["".join(each.tokens[max(each.focus - 6, 0) : each.focus + 1]) for each in interval.examples]
    print(f"{interval.low:5.1f} to {interval.high:5.1f}  {interval.count:>4} firings  {places}")

# %% [markdown]
# ## The company it keeps
#
# Latents that fire on the same tokens, by the correlation of their values, with how often that would be if they were independent.

# %%
for other in company(store, latent, 5):
    print(
        f"{other.latent:>5}  together {other.together:>4}, expected {other.expected:5.1f}; correlation {other.correlation:.2f}; "
        f"code share {share[other.latent]:.2f}"
    )

# %% [markdown]
# ## Does the model use it?
#
# Remove it from the layer wherever it fires and let the model go on: which next tokens did it raise, and did it help to predict the
# one that came? (Nats; above 0, it helped.)

# %%
measured = effects(store, latent, model, sae, feature.examples[:4])
for effect in measured:
    here, following = effect.focus, effect.focus + 1
    raised = ", ".join(f"{token!r} {change:+.2f}" for token, change in effect.logit_up[here][:4])
    if following < len(effect.tokens):
        change, token = float(effect.loss_change[following]), effect.tokens[following]
        print(f"after {effect.tokens[here]!r}: helped by {change:+.3f} with {token!r}; raises {raised}")

# %% [markdown]
# A latent seldom raises just the token that came: it votes for a family, and others choose from it.
#
# ## Find it again
#
# Say what you think it is; it is kept beside the store, with its history. Search goes by label, by token, by text, by promoted token.

# %%
words = ", ".join(each.token.strip() or repr(each.token) for each in feature.tokens[:3])
store.labels.set(latent, label=f"{words} in Python", tags=["code"], author="me")
for other in found[1:12]:
    store.labels.tag(other, add=["code"])
for query, way in (("in python", "label"), ("code", "label"), ("def", "token"), ("return", "text")):
    result = search(store, query, way)
    print(f"{query!r} by {way}: {result.latents[:8].tolist()} {result.why}")

# %% [markdown]
# ## Look around
#
# A store draws itself in a notebook. `show(store, model=model)` opens the browser, where prompts can be tried and latents ablated;
# `to=` writes one page that needs neither Python nor a network.

# %%
page = show(store, to="code.html")
print(page)
store
