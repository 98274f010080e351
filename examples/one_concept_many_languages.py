# %% [markdown]
# # Does it think the same in every language?
#
# When a language model reads *the dog* and *le chien*, does it think the same thing? If it does, features of its activations fire on
# both. We measure that on a 135M model at three depths, against the only fair baseline: the same languages, saying different things.
#
# A script with cells: open it in Jupyter (jupytext) or VS Code, or run it as it is, in about two minutes on two CPU cores.

# %%
from unweave.audit.shared_concepts import parallel_texts, shared_concepts
from unweave.saes import TrainConfig, bundled, cache, load_model, train

# %% [markdown]
# ## Dictionaries that know the languages
#
# A dictionary shows only what its text has taught it, so it is trained on prose in English and in the four other languages: an early
# layer, one in the middle, one near the end, all from one pass of the model. They are small, and so is the model.

# %%
model = load_model("smollm2-135m")
sites = {
    "layer 2": "blocks.2.hook_resid_post",
    "layer 14": "blocks.14.hook_resid_post",
    "layer 26": "blocks.26.hook_resid_post",
}
documents = bundled()
european = [d for d in documents if d.kind[9:12] in ("fra", "spa", "ita", "deu")]
prose = [d for d in documents if d.kind == "prose"]
mixed = [d._replace(text=d.text[:2000]) for pair in zip(european, prose[: len(european)], strict=True) for d in pair]
shards = cache(model, mixed, list(sites.values()), "activations", tokens=24_000, progress=False)
saes = {
    name: train(
        TrainConfig(latents=2048, k=32, batch=512, tokens=96_000, site=(site,)), shards, f"sae-{name}", progress=False
    )
    for name, site in sites.items()
}
for name, sae in saes.items():
    print(name, sae)

# %% [markdown]
# ## The same thing, five times
#
# Twenty-four sentences, each in five languages. No names and no numbers in them, since these are spelled alike everywhere: what we would
# find then is a feature of a word, not of a thought.

# %%
texts = parallel_texts()
for sentences in zip(*texts.values(), strict=True):
    print(" | ".join(sentences))
    break

# %% [markdown]
# ## Overlap against mismatched pairs
#
# Of each pair of sentences we compare the sets of active latents (shared over all: Jaccard). A sentence and its translation are *matched*;
# a sentence and the translation of another are *mismatched*. Both are about the same languages, the same lengths, the same grammar, and
# tokens that both sentences contain are left out. What remains in the gain is what was said. `q` is a permutation test, corrected for all
# rows; `found` is how often a sentence's translation is the nearest of the 24, which is 1 in 24 by chance.

# %%
found = shared_concepts(model, saes, texts)
print(found)
found

# %% [markdown]
# ### By depth
#
# The gain alone flatters no layer: it is in units of overlap, which differ. So relative to what mismatched pairs have, too.

# %%
for name in saes:
    rows = [row for row in found.rows if row["dictionary"] == name]
    gain, mismatched, share = (sum(row[key] for row in rows) / len(rows) for key in ("gain", "mismatched", "found"))
    sure = sum(row["q"] < 0.05 and row["low"] > 0 for row in rows)
    more = gain / mismatched
    print(
        f"{name}: gain {gain:.4f}, {more:.2f} of the mismatched; found {share:.3f} (chance 0.042); sure in {sure} of 10 pairs"
    )

# %% [markdown]
# The middle of the model has most in common: it reads words in at one end and writes them out at the other, and each language has its own.
# How small it all is belongs to the picture too. Most of what overlaps does so in mismatched pairs as well (grammar, the language family,
# "a sentence"), and a model of this size was hardly taught German.
#
# ## Which latents?
#
# A latent of a concept is strong on the same sentences in every language. Its mean correlation over all pairs of languages, beside what
# the best of all latents reaches when the sentences are shuffled: below that, a latent may be luck.

# %%
for name in saes:
    best = found.latents[name]
    above = [row for row in best if row["correlation"] > row["chance"]]
    print(
        f"{name}: {len(above)} of the best {len(best)} latents are above {best[0]['chance']:.2f}, the best of shuffled sentences"
    )
    for row in above[:4]:
        print(
            f"  {row['latent']:>5} {row['correlation']:.2f}",
            *(f"{way}: {where['tokens']}" for way, where in row["strongest"].items()),
        )

# %% [markdown]
# Read them with care. One that fires on the comma of every language is above chance too, and is no thought; one may rest on words of one
# root, *new* and *neue*. But *and*, *et*, *und*, *y* and *e* are not spelled alike, and the first latent of the middle layer, when this
# was written, fires on all five.
#
# ## Prose and code
#
# The same question for twelve small functions in Python and in words. Twelve pairs are few: look at the intervals.

# %%
code = shared_concepts(model, saes, parallel_texts("code"))
print(code)
