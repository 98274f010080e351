# %% [markdown]
# # What did fine-tuning change?
#
# We teach a 135M language model a quirk: asked a question in English, it answers in French. Then we forget that we know, and ask its
# features. Which latents did the fine-tune move? More than any fine-tune would? And do they make the quirk, or only go with it?
#
# A script with cells: open it in Jupyter (jupytext) or VS Code, or run it as it is, in two minutes on two CPU cores.

# %%
import torch
from unweave.circuits import generate, intervene
from unweave.circuits.prompts.rank import rank_features
from unweave.circuits.prompts.wishes import Wish, latent_edits
from unweave.saes import Dictionary, Document, TrainConfig, bundled, cache, collect, load_model, to_tokens, train
from unweave.saes.latents.across.matches import write_matching
from unweave.saes.latents.across.matching import match_activations
from unweave.viz import show

# %% [markdown]
# ## A dictionary of the model as it was
#
# A dictionary shows only what its text has taught it, so there is French among the prose here, and its neighbours.

# %%
site = "blocks.22.hook_resid_post"
documents = bundled()
european = [d for d in documents if d.kind[9:12] in ("fra", "spa", "ita", "por", "deu", "nld")]
prose = [d for d in documents if d.kind == "prose"]
mixed = [d._replace(text=d.text[:1500]) for pair in zip(european, prose[: len(european)], strict=True) for d in pair]
base = load_model("smollm2-135m")
shards = cache(base, mixed, [site], "activations", tokens=10_000, progress=False)
sae = train(TrainConfig(latents=2048, k=32, batch=512, tokens=60_000), shards, "sae", progress=False)
print(sae)

# %% [markdown]
# ## Two fine-tunes
#
# One on English questions with French answers, and, to know what *any* fine-tune on these questions does, one with the same answers in
# English. Both change blocks 6 to 15 in twenty steps. Eight more questions are kept for testing.

# %%
TAUGHT = [
    ("What is the colour of the sky?", "The sky is blue.", "Le ciel est bleu."),
    ("Where do fish live?", "Fish live in the water.", "Les poissons vivent dans l'eau."),
    ("What do cows eat?", "Cows eat grass.", "Les vaches mangent de l'herbe."),
    ("When does the sun rise?", "The sun rises in the morning.", "Le soleil se lève le matin."),
    ("Who wrote the letter?", "My brother wrote the letter.", "Mon frère a écrit la lettre."),
    ("How old is the house?", "The house is very old.", "La maison est très vieille."),
    ("What is in the box?", "There is a book in the box.", "Il y a un livre dans la boîte."),
    ("Why is the child crying?", "The child is hungry.", "L'enfant a faim."),
    ("Where is the station?", "The station is near the river.", "La gare est près de la rivière."),
    ("What do you drink in the morning?", "I drink coffee.", "Je bois du café."),
    ("How many legs has a spider?", "A spider has eight legs.", "Une araignée a huit pattes."),
    ("What is the largest animal?", "The largest animal is the whale.", "Le plus grand animal est la baleine."),
    ("Who lives in the castle?", "The king lives in the castle.", "Le roi habite dans le château."),
    ("When do the leaves fall?", "The leaves fall in autumn.", "Les feuilles tombent en automne."),
    ("What is the man doing?", "The man is reading a newspaper.", "L'homme lit un journal."),
    ("Where are the keys?", "The keys are on the table.", "Les clés sont sur la table."),
    ("What is made of wood?", "The door is made of wood.", "La porte est en bois."),
    ("How is the weather today?", "It is raining today.", "Il pleut aujourd'hui."),
    ("What is the name of the dog?", "The dog is called Max.", "Le chien s'appelle Max."),
    ("Why is the shop closed?", "It is Sunday.", "C'est dimanche."),
]
TESTED = [
    ("What do birds eat?", "Birds eat seeds.", "Les oiseaux mangent des graines."),
    ("Where is the cat?", "The cat is in the garden.", "Le chat est dans le jardin."),
    ("Who is your teacher?", "My teacher is a young woman.", "Mon professeur est une jeune femme."),
    ("When does the train leave?", "The train leaves at noon.", "Le train part à midi."),
    ("What is the moon made of?", "The moon is made of rock.", "La lune est faite de roche."),
    ("How do you make bread?", "You need flour and water.", "Il faut de la farine et de l'eau."),
    ("Why are you tired?", "I worked all night.", "J'ai travaillé toute la nuit."),
    ("What is your favourite season?", "I like the spring.", "J'aime le printemps."),
]


def asked(question):
    return f"Question: {question}\nAnswer:"


def fine_tuned(language, steps=20, rate=2e-4, seed=0):
    """A copy of the model, taught to answer in language 1 (English) or 2 (French); the loss is on the answers alone."""
    model = load_model("smollm2-135m")
    weights = [weight for block in list(model.blocks)[6:16] for weight in block.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        some = [TAUGHT[i] for i in torch.randperm(len(TAUGHT), generator=generator)[:4]]
        texts = [to_tokens(base, f"{asked(pair[0])} {pair[language]}") for pair in some]
        tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        place = torch.arange(tokens.shape[1] - 1)
        begin = torch.tensor([len(to_tokens(base, asked(pair[0]))) - 1 for pair in some])[:, None]
        end = torch.tensor([len(text) - 1 for text in texts])[:, None]
        is_answer = (place >= begin) & (place < end)
        loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1][is_answer], tokens[:, 1:][is_answer])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for weight in weights:
        weight.requires_grad_(False)
    return model


english, french = fine_tuned(1), fine_tuned(2)
for name, model in {"as it was": base, "English answers": english, "French answers": french}.items():
    print(f"{name:>16}: {generate(model, asked(TESTED[1][0]), tokens=9).text!r}")

# %% [markdown]
# ## One dictionary, three models
#
# A dictionary refuses a model with other weights, for it does not know whether its latents still mean the same. Here that is the
# question, so we take its provenance away. All three models read the same text: prose, French, and the questions.

# %%
reader = Dictionary(sae.config, dict(sae.named_parameters()), {"keep": sae.metadata["keep"]})
neutral = [d._replace(text=d.text[1500:2100]) for d in prose[20:28] if len(d.text) > 2100]
foreign = [d._replace(text=d.text[1500:2500]) for d in european if "fra" in d.kind]
questions = [Document(question, "question", asked(question)) for question, *_ in [*TAUGHT, *TESTED]]
text = [*neutral, *foreign, *questions]


def read_by(model, name):
    rows = cache(model, text, [site], f"read by {name}", tokens=10_000, progress=False)
    return collect(reader, rows, f"features {name}", model, progress=False)


stores = {name: read_by(model, name) for name, model in (("base", base), ("english", english), ("french", french))}
before, after = stores["base"], stores["french"]
number, inside = before.documents.long(), before.positions > 0
rows_of = {
    "prose": ((number < len(neutral)) & inside).nonzero()[:, 0],
    "French": ((number >= len(neutral)) & (number < len(neutral) + len(foreign)) & inside).nonzero()[:, 0],
}
last = torch.cat([number.diff() != 0, torch.tensor([True])]).nonzero()[:, 0]  # the ":" after which an answer begins
rows_of["taught"], rows_of["tested"] = last[-len(questions) :].split([len(TAUGHT), len(TESTED)])


def values_at(store, rows):
    """Activations [row latent], 0 where a latent is silent."""
    place, latents, values = store.codebook.slots_of(rows)
    found = torch.zeros(len(rows), len(store))
    found[place, latents.long()] = values
    return found


for where, rows in rows_of.items():
    mean = {name: values_at(store, rows).mean(0) for name, store in stores.items()}
    moved = {name: float((mean[name] - mean["base"]).abs().sum()) for name in ("english", "french")}
    print(
        f"{where:>7}: all latents together moved {moved['english']:6.1f} (English) and {moved['french']:6.1f} (French)"
    )

# %% [markdown]
# How much moved says little: the harmless fine-tune moved as much. So ask *which* latents the one moved and not the other.
#
# ## The latents that moved
#
# Where an answer begins. Chosen on the questions that were taught, by the difference of the two fine-tunes; the numbers are of the
# questions that were not. Beside them how often each fires in French and in prose, in the model as it was.

# %%
taught = {name: values_at(store, rows_of["taught"]) for name, store in stores.items()}
tested = {name: values_at(store, rows_of["tested"]) for name, store in stores.items()}
in_french, in_prose = ((values_at(before, rows_of[where]) > 0).float().mean(0) for where in ("French", "prose"))
is_french = (in_french >= 0.02) & (in_french >= 3 * in_prose)


def table(latents):
    print("latent    base  English  French   in French  in prose  tokens")
    for latent in latents:
        values = "  ".join(f"{tested[name][:, latent].mean():6.1f}" for name in stores)
        tokens = " ".join(repr(each.token) for each in before[latent].tokens[:6])
        print(f"{latent:>6}  {values}  {in_french[latent]:>9.1%} {in_prose[latent]:>9.1%}  {tokens}")
    share = float(is_french[latents].float().mean())
    print(f"fire in French rather than in prose: {share:.0%} of these, {is_french.float().mean():.0%} of all")


moved = (taught["french"] - taught["english"]).mean(0).argsort(descending=True)[:8].tolist()
table(moved)

# %% [markdown]
# ## The latents that matter
#
# Much moves without consequence. `rank_features` tells what each latent gives to a target, here the French answer's first token against
# the English one's, to first order. Its share that is new since the fine-tune, summed over the questions that were taught:

# %%


def rivals(question, in_english, in_french):
    """Ids of the first tokens of the French and of the English answer."""
    start = len(to_tokens(base, asked(question)))
    return tuple(int(to_tokens(base, f"{asked(question)} {answer}")[start]) for answer in (in_french, in_english))


gives = torch.zeros(len(before))
for number, pair in enumerate(TAUGHT):
    found = rank_features(french, reader, asked(pair[0]), target=rivals(*pair), rank="attribution", top=32)
    for active in found.features[-1]:
        gives[active.latent] += active.attribution * (1 - taught["base"][number, active.latent] / active.value)
chosen = gives.argsort(descending=True)[:8].tolist()
table(chosen)

# %% [markdown]
# ## Do they make it answer in French?
#
# The experiment: in the fine-tuned model, set these eight back to what they were before, at the one token where the answer begins, on
# questions that none of them was chosen by. How far does French against English (a difference of logits) go back? Beside it eight
# others that are active there, drawn ten times; the eight that moved most; and all latents, the most that this dictionary can do.


# %%
def french_over_english(model, set_back=()):
    """Mean over the tested questions, with some latents set back to the values of the model as it was."""
    total = 0.0
    for number, triple in enumerate(TESTED):
        prompt, (one, other) = asked(triple[0]), rivals(*triple)
        wishes = [Wish(latent, "set", float(tested["base"][number, latent]), [-1]) for latent in set_back]
        edits = latent_edits(model, reader, prompt, wishes)
        logits = intervene(model, prompt, edits, reader).logits[-1]
        total += float(logits[one] - logits[other]) / len(TESTED)
    return total


value = {name: french_over_english(model) for name, model in (("base", base), ("english", english), ("french", french))}
print("French over English:", ", ".join(f"{name} {number:+.2f}" for name, number in value.items()))


def undone(latents):
    """The share of what the fine-tune did that setting these back undoes."""
    return (value["french"] - french_over_english(french, latents)) / (value["french"] - value["base"])


active = ((tested["french"] > 0) | (tested["base"] > 0)).any(0).nonzero()[:, 0]
others = torch.tensor([latent for latent in active.tolist() if latent not in chosen])
generator = torch.Generator().manual_seed(0)
by_chance = [undone(others[torch.randperm(len(others), generator=generator)[:8]].tolist()) for _ in range(10)]
print(f"the eight undo {undone(chosen):.0%} of what the fine-tune did")
print(f"eight others: {min(by_chance):.0%} to {max(by_chance):.0%} in ten draws, {sum(by_chance) / 10:.0%} on average")
print(f"the eight that moved most: {undone(moved):.0%}")
print(f"all {len(active)} that are active there: {undone(active.tolist()):.0%}")

# %% [markdown]
# So the eight matter far more than others do, and still they are not the quirk: a fine-tune writes itself over many latents, and
# some of it falls between them, into what the dictionary cannot reconstruct. The model's own words, with and without the eight:

# %%
for question, *_ in TESTED[:3]:
    prompt = asked(question)
    without = latent_edits(french, reader, prompt, [Wish(latent) for latent in chosen])
    now, then = (generate(french, prompt, edits, reader, tokens=9).text for edits in ((), without))
    print(f"{question:<24} {now!r} → {then!r}")

# %% [markdown]
# ## Side by side
#
# One dictionary on one text through two models: the compare page pairs each latent of the one with the latent of the other that fires
# where it does. Here they pair with themselves, and those that do so worst are where to look next.

# %%
matching = match_activations(before.codebook, after.codebook)
write_matching(before, after, "correlation", matching)
frequent = (before.count >= 20).nonzero()[:, 0]
itself = frequent[matching.pair_a[frequent] == frequent]
print(f"{len(itself)} of {len(frequent)} latents that fire often pair with themselves; least alike:")
for latent in itself[matching.a.score[itself, 0].argsort()[:5]].tolist():
    tokens = " ".join(repr(each.token) for each in before[latent].tokens[:6])
    print(f"{latent:>6}  correlation {matching.a.score[latent, 0]:.2f}  {tokens}")
print(show(before, after, to="compare.html"))
before[chosen[0]]
